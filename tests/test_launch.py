"""Launches: how frames are grouped, what is planned once, and the plans' independence of earlier calls."""

import pytest
import torch
from torch import Tensor
from triton_inputs import FRAMES, REFERENCE, SCALE, attend, fused_inputs, output_and_gradients
from videomaker.kernels.pisa import launch, plans
from videomaker.kernels.pisa.configs import Config
from videomaker.kernels.pisa.naive import pisa_naive


@pytest.mark.parametrize("groups", [1, 2, FRAMES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_number_of_frame_groups(groups: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "frame_groups", lambda **_: groups)
    plans.forget_plans()

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return pisa_naive(q, k, v, num_frames=FRAMES, num_ref_tokens=REFERENCE, scale=SCALE)

    tensors = fused_inputs(dtype=dtype)
    try:
        found = output_and_gradients(attend, tensors)
    finally:
        plans.forget_plans()
    tolerance = {"rtol": 2e-2, "atol": 4e-3} if dtype == torch.float16 else {}
    for x, y in zip(found, output_and_gradients(naive, tensors), strict=True):
        torch.testing.assert_close(x, y, **tolerance)


def test_a_plan_is_made_once_for_each_kind_of_call() -> None:
    plans.forget_plans()
    for _ in range(3):
        output_and_gradients(attend, fused_inputs())
    for plan in (plans.plan_forward, plans.plan_backward_query, plans.plan_backward_key):
        assert plan.cache_info().misses == 1
    assert plans.plan_forward.cache_info().hits == 2


def test_plans_do_not_depend_on_earlier_calls() -> None:
    def plan(tokens: int) -> plans.Plan:
        x = torch.empty(1, 17 * tokens, 8, 80, dtype=torch.bfloat16)
        return plans.plan_forward(launch.Problem.of_pisa(x, x, x, 16, tokens, 0.1).geometry, False)

    plans.forget_plans()
    alone = plan(1024)
    plans.forget_plans()
    plan(784)  # 448 x 448: partial tiles
    assert plan(1024) == alone


def test_programs_of_more_warps_are_fewer_at_once_so_frames_make_fewer_groups() -> None:
    """A group repeats the reference's attention to itself, so there are no more than keep the multiprocessors busy."""
    x = torch.empty(2, 17 * 256, 8, 160, dtype=torch.bfloat16)
    geometry = launch.Problem.of_pisa(x, x, x, 16, 256, 0.1).geometry
    groups = [plans.plan_forward(geometry, False, Config(128, 64, num_warps=warps)).integers[-1] for warps in (2, 4, 8)]
    assert groups == [16, 8, 4]


def test_a_shared_reference_has_no_stride_over_the_batch() -> None:
    q = torch.empty(3, 8, 1, 16)
    k_ref = torch.empty(1, 5, 1, 16)
    problem = launch.Problem(q, q, q, k_ref, k_ref, 2, 0.3)
    assert problem.geometry.strides[3][0] == 0 and problem.geometry.is_shared
    assert not launch.Problem.of_pisa(q[:1], q[:1], q[:1], 2, 4, 0.3).geometry.is_shared
