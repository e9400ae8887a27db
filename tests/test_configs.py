"""Which tiles the kernels use, and how frames are grouped."""

import dataclasses
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from videomaker.kernels.pisa import configs


def test_head_widths_cover_the_head() -> None:
    for head_dim in range(1, 257):
        main, tail = configs.head_widths(head_dim)
        whole, none = configs.head_widths(head_dim, split=False)
        assert main >= 16 and tail in (0, 16, 32, 64)
        assert head_dim <= main + tail <= whole and none == 0
    assert [configs.head_widths(d) for d in (8, 40, 64, 80, 160)] == [(16, 0), (32, 16), (64, 0), (64, 16), (128, 32)]


@pytest.mark.parametrize("family", configs.TABLE)
def test_table_covers_every_head_dim(family: str) -> None:
    for kernel in configs.KERNELS:
        for head_dim in range(1, 257):
            assert configs.table_configs(kernel, family, head_dim, torch.bfloat16)


@pytest.mark.parametrize("family", [family for family in configs.TABLE if family != "sm_100"])
def test_no_warp_repeats_the_work_of_another(family: str) -> None:
    """In whole tiles up to D = 160; wider accumulators need more warps than rows, masks at D = 160 on some chips too.

    sm_100 is left out: its accumulators are in tensor memory.
    """
    for kernel in configs.KERNELS:
        for head_dim in range(1, 161):
            *larger, last = configs.table_configs(kernel, family, head_dim, torch.bfloat16)
            for config in larger or [last]:
                assert not config.repeats_work(kernel), (kernel, head_dim, config)
            assert head_dim > 128 or not last.repeats_work(kernel), (kernel, head_dim, last)


def test_fewer_tokens_than_a_tile_take_the_smaller_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the 64 tokens of Stable Diffusion's middle block; the last one is for what is whole tiles of none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs.tuned_configs.cache_clear()
    options = {"device": torch.device("cpu"), "dtype": torch.bfloat16, "head_dim": 160}
    large, small, masked = configs.table_configs("backward_key", "sm_90", 160, torch.bfloat16)
    assert max(large.block_q, large.block_k) > 64 >= max(small.block_q, small.block_k)
    for tokens, expected in ((256, large), (64, small), (250, masked)):
        sizes = {"num_tokens": tokens, "num_ref_tokens": tokens}
        assert configs.choose_config("backward_key", **options, **sizes) == expected


def test_long_problems_are_not_split_and_short_ones_are() -> None:
    def groups(tokens: int, block: int = 64) -> int:
        return configs.frame_groups(
            num_frames=16, num_tokens=tokens, num_ref_tokens=tokens, heads=16, block=block, slots=264
        )

    assert [groups(tokens) for tokens in (4096, 1024, 256, 64)] == [1, 1, 4, 16]


def test_tuned_configurations_are_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs.tuned_configs.cache_clear()
    try:
        shape = {"device": torch.device("cpu"), "dtype": torch.float16, "head_dim": 40}
        tokens = {"num_tokens": 100, "num_ref_tokens": 60}
        usual = configs.choose_config("forward", **shape, **tokens)
        tuned = dataclasses.replace(usual, block_k=32)
        configs.store_tuned({configs.tuning_key("forward", *shape.values(), *tokens.values()): tuned})
        configs.tuned_configs.cache_clear()
        assert configs.choose_config("forward", **shape, num_tokens=128, num_ref_tokens=64) == tuned
        assert configs.choose_config("forward", **shape, num_tokens=129, num_ref_tokens=64) == usual
        configs.tuning_file().write_text(json.dumps({"key": {"no such field": 1}}))
        configs.tuned_configs.cache_clear()
        assert configs.choose_config("forward", **shape, **tokens) == usual
    finally:
        configs.tuned_configs.cache_clear()


def test_a_choice_does_not_depend_on_earlier_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was asked or launched before: the same question, the same answer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs.tuned_configs.cache_clear()
    draw = random.Random(0)
    sizes = (1, 15, 49, 64, 196, 256, 784, 1024, 3136, 4096)

    def question() -> dict[str, object]:
        return {
            "kernel": draw.choice(configs.KERNELS),
            "device": torch.device("cpu"),
            "dtype": draw.choice((torch.float16, torch.bfloat16, torch.float32)),
            "head_dim": draw.choice((8, 40, 64, 80, 128, 160, 256)),
            "num_tokens": draw.choice(sizes),
            "num_ref_tokens": draw.choice((0, *sizes)),
            "ref_queries": draw.random() < 0.5,
        }

    questions = [question() for _ in range(300)]
    answers = [configs.choose_config(**q) for q in questions]
    order = draw.sample(range(300), 300)
    assert [configs.choose_config(**questions[i]) for i in order] == [answers[i] for i in order]


def test_processes_that_tune_at_once_keep_all_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs.tuned_configs.cache_clear()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: configs.store_tuned({f"key {i}": configs.Config(16, 16 + i)}), range(24)))
        assert len(json.loads(configs.tuning_file().read_text())) == 24
    finally:
        configs.tuned_configs.cache_clear()
