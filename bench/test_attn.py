"""The main cases of bench/attn.py under pytest-benchmark: `pytest bench --benchmark-only`."""

import functools

import attn
import pytest
import torch
from rivals import Rival, rivals

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
gate = functools.lru_cache(maxsize=1)(functools.partial(attn.Gate, dtype=DTYPE, device=DEVICE))


@pytest.mark.parametrize("direction", attn.DIRECTIONS)
@pytest.mark.parametrize("rival", rivals(DEVICE, DTYPE), ids=lambda rival: rival.name)
@pytest.mark.parametrize("case", attn.main_cases(DEVICE), ids=str)
def test_attention(benchmark: object, case: attn.Case, rival: Rival, direction: str) -> None:
    """Time one path; those that are wrong or cannot run are skipped with the reason."""
    if rival.forward_only and direction != "forward":
        pytest.skip(f"{rival.name} is measured forward only")
    wrong = gate(case).wrong(rival)
    if wrong is not None:
        pytest.skip(f"{rival.name}: {wrong}")
    call = attn.calls(rival, case, *attn.inputs_of(case, DTYPE, DEVICE))[direction]

    def synchronized() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{direction}, {case}"
    benchmark.pedantic(synchronized, rounds=3 if DEVICE.type == "cpu" else 20, warmup_rounds=1)
