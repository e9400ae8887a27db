"""Tuning: the fastest candidate that is exact, kept as it is found."""

import pytest
import torch
from torch import Tensor
from triton_inputs import FRAMES, REFERENCE, TOKENS, fused_inputs
from videomaker.kernels.pisa import autotune, configs, launch, op
from videomaker.kernels.pisa.plans import config_of


def test_autotune_takes_the_fastest_that_is_exact(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs.tuned_configs.cache_clear()
    usual, faster, wrong = configs.Config(32, 32), configs.Config(16, 32), configs.Config(32, 16)
    seconds = {usual: 3.0, faster: 2.0, wrong: 1.0}
    monkeypatch.setattr(autotune, "KERNELS", ("forward",))
    monkeypatch.setattr(autotune, "candidates", lambda kernel, head_dim, found, usual: list(seconds))
    monkeypatch.setattr(autotune, "_median_seconds", lambda problem, kernel, config: seconds[config])
    run_forward = launch.run_forward

    def run_forward_wrong_for_one(problem: launch.Problem, save: bool) -> tuple[Tensor, ...]:
        out, *saved = run_forward(problem, save)
        return out * (1.01 if config_of("forward", problem.geometry) == wrong else 1), *saved

    monkeypatch.setattr(op, "run_forward", run_forward_wrong_for_one)
    try:
        q, k, v = fused_inputs()
        with torch.inference_mode():
            found = autotune.autotune(op.pisa_triton, q * 1, k * 1, v * 1, num_frames=FRAMES, num_ref_tokens=REFERENCE)
        assert found == {"forward": faster}
        configs.tuned_configs.cache_clear()
        assert list(configs.tuned_configs().values()) == [faster]
    finally:
        configs.tuned_configs.cache_clear()


def test_tuning_draws_no_number_of_the_programs_and_takes_expanded_tensors(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs.tuned_configs.cache_clear()
    config, locked = configs.Config(16, 16), []

    def attend(*arguments: object, **options: object) -> Tensor:
        locked.append(autotune._tuning.locked())  # so a call under VIDEOMAKER_AUTOTUNE does not tune within the check
        return op.pisa_triton(*arguments, **options)

    monkeypatch.setattr(autotune, "candidates", lambda *_: [config])
    monkeypatch.setattr(autotune, "_median_seconds", lambda *_: 1.0)
    x = torch.randn(1, FRAMES * TOKENS + REFERENCE, 1, 8).expand(-1, -1, 2, -1)
    before = torch.get_rng_state()
    try:
        found = autotune.autotune(attend, x, x, x, num_frames=FRAMES, num_ref_tokens=REFERENCE)
    finally:
        configs.tuned_configs.cache_clear()
    assert set(found.values()) == {config} and torch.equal(torch.get_rng_state(), before)
    assert all(locked) and not autotune._tuning.locked()


def test_a_candidate_that_cannot_run_ends_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of the compiler that fails raises RuntimeError; what was found before is on disk already."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs.tuned_configs.cache_clear()
    good, bad = configs.Config(16, 16), configs.Config(32, 16)

    def median_seconds(problem: launch.Problem, kernel: str, config: configs.Config) -> float:
        if kernel == "backward_query":
            raise KeyboardInterrupt
        if config == bad:
            raise RuntimeError("PassManager::run failed")
        return 1.0

    monkeypatch.setattr(autotune, "candidates", lambda kernel, head_dim, found, usual: [bad, good])
    monkeypatch.setattr(autotune, "_median_seconds", median_seconds)
    try:
        with pytest.raises(KeyboardInterrupt):
            autotune.autotune(op.pisa_triton, *fused_inputs(), num_frames=FRAMES, num_ref_tokens=REFERENCE)
        configs.tuned_configs.cache_clear()
        assert list(configs.tuned_configs().values()) == [good, good]
    finally:
        configs.tuned_configs.cache_clear()


def test_training_is_tuned_within_the_tiles_of_inference() -> None:
    like = configs.Config(128, 64, num_warps=8, max_registers=128)
    found = list(autotune.candidates("forward_training", 80, {"forward": like}))
    assert len(found) > 3 and {config.arithmetic for config in found} == {like.arithmetic}


@pytest.mark.parametrize("kernel", configs.KERNELS)
def test_candidates_begin_with_the_table_and_waste_no_warp(kernel: str) -> None:
    usual = configs.table_configs(kernel, "sm_80", 160, torch.bfloat16)
    found = list(autotune.candidates(kernel, 160, usual=usual))
    assert found[: len(usual)] == list(usual) and len(found) == len(set(found)) > 30
    assert not any(config.repeats_work(kernel) for config in found)


def test_the_check_of_a_candidate_has_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "CHECKED_TOKENS", 4)
    problem = launch.Problem.of_pisa(*(x.detach() for x in fused_inputs()), FRAMES, REFERENCE, 0.3)
    seen = []
    checked = autotune._checked_part(problem)
    check = autotune._exactness_check(lambda *a, **k: seen.append(a[0].shape) or op.pisa_triton(*a, **k), checked)
    assert check("forward", configs.Config(16, 16))
    assert seen == [torch.Size((1, 2 * 4 + 4, 2, 8))]
