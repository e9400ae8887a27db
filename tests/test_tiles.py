"""The tiles of every GPU, whichever the tests pretend: whole and partial, row sums by the matrix unit."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from videomaker.kernels import pisa_attention, reference_attention
from videomaker.kernels.accuracy import error_band, errors, evaluate, evaluate_naive, failures, largest_score
from videomaker.kernels.pisa import plans
from videomaker.kernels.pisa.configs import TABLE, Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = {"whole": (128, 128), "partial": (130, 70)}  # of a frame and of the reference


def distinct_tiles() -> dict[str, Config]:
    """Of every GPU's table those that compute differently, and one that only the tuner takes."""
    configs = [
        config for kernels in TABLE.values() for entries in kernels.values() for _, *some in entries for config in some
    ]
    configs.append(Config(128, 64, split_values=False, sum_by_dot=True))
    named = {}
    for config in sorted(configs, key=lambda config: config.arithmetic):
        sums = ", sums by dot" * config.sum_by_dot + ", one tile of values" * (not config.split_values)
        named[f"{config.block_q}x{config.block_k}{sums}"] = config
    return named


CONFIGS = distinct_tiles()


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.setattr(plans, "config_of", lambda kernel, geometry: request.param)
    plans.forget_plans()
    yield request.param
    plans.forget_plans()


def inputs(frames: int, tokens: int, extra: int) -> list[Tensor]:
    return [torch.randn(1, frames * tokens + extra, 1, 24, device=DEVICE).half() for _ in range(4)]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_pisa_is_as_exact_as_ever(tiles: Config, lengths: str) -> None:
    tokens, num_ref_tokens = LENGTHS[lengths]
    tensors = inputs(2, tokens, num_ref_tokens)
    options = {"num_frames": 2, "num_ref_tokens": num_ref_tokens, "scale": 24**-0.5}
    exact = evaluate_naive(*tensors, **options)
    naive = errors(evaluate_naive(*tensors, **options, dtype=torch.float16), exact, num_ref_tokens)
    found = errors(evaluate(pisa_attention, *tensors, **options, backend="triton"), exact, num_ref_tokens)
    assert not failures(found, naive, error_band(torch.float16, largest_score(*tensors[:2], options["scale"])))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_reference_that_asks_nothing(tiles: Config, lengths: str) -> None:
    """In float32, against the naive path; a bias that sums must hold too."""
    tokens, num_ref_tokens = LENGTHS[lengths]
    tensors = [x.float().requires_grad_() for x in (*inputs(2, tokens, 0)[:3], *inputs(0, 0, num_ref_tokens)[:2])]

    def attend(backend: str) -> list[Tensor]:
        out = reference_attention(*tensors, num_frames=2, reference_bias=0.7, backend=backend)
        return [out, *torch.autograd.grad(out.sin().sum(), tensors)]

    for x, y in zip(attend("triton"), attend("naive"), strict=True):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-4)
