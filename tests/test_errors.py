"""Numbers that cannot be, refused where they are given: counts, sizes, fractions, and names of backends."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tiny import tiny_pipeline, tiny_unet

from videomaker import (
    Approximations,
    Bucket,
    install_attention,
    install_pisa,
    install_reference_attention,
    install_style_aligned,
)
from videomaker.attention import set_pisa_backend
from videomaker.errors import InputError, check_counts, check_number, first_line
from videomaker.pipeline.windows import plan_windows


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True, math.nan, [1], 10**30])
def test_counts(value: Any) -> None:
    for call in (
        lambda: check_counts(n=value),
        lambda: Bucket(num_frames=value),
        lambda: Bucket(height=value),
        lambda: Bucket(batch=value),
        lambda: Approximations(reuse_every=value),
    ):
        with pytest.raises(
            InputError, match="must be below 2147483648" if value == 10**30 else "whole number|at least 1"
        ):
            call()


def test_counts_that_may_be_zero() -> None:
    check_counts(least=0, n=0)
    assert Bucket(num_references=0).num_references == 0
    with pytest.raises(InputError, match="num_references is -1; it must be at least 0"):
        Bucket(num_references=-1)


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", None, True, 1j, [1.0]])
def test_numbers(value: Any) -> None:
    for call in (lambda: check_number("x", value), lambda: Approximations(guidance_until=value)):
        with pytest.raises(InputError, match="must be a finite number"):
            call()


@pytest.mark.parametrize("value", [True, 1.5, "2", [1]])
def test_windows_are_counted_in_whole_frames(value: Any) -> None:
    fits = {"limit": 32, "trained": 16}
    with pytest.raises(InputError, match=r"window_frames is .* whole number"):
        plan_windows(40, 1, **fits, size=value, overlap=None)
    with pytest.raises(InputError, match=r"window_overlap is .* whole number"):
        plan_windows(40, 1, **fits, size=8, overlap=value)


@pytest.mark.parametrize("backend", ["flash", "SDPA", "", None, ["sdpa"]])
def test_backends_are_known_when_they_are_chosen(backend: Any) -> None:
    unet = tiny_unet()
    for install in (install_pisa, install_attention, install_reference_attention, install_style_aligned):
        with pytest.raises(InputError, match="unknown attention backend"):
            install(unet, backend=backend)
    with pytest.raises(InputError, match="unknown attention backend"):
        set_pisa_backend(unet, backend)


@pytest.mark.parametrize("buckets", [5, [5], [None], "x", [{"height": 8}]])
def test_what_is_compiled_for_are_buckets(buckets: Any) -> None:
    pipe = tiny_pipeline()
    with pytest.raises(InputError, match="give a list of Bucket"):
        pipe.compile(buckets)
    assert pipe.compiled is None


@pytest.mark.parametrize(
    ("error", "line"), [(OSError(" gone\nfor good"), "gone"), (TimeoutError(), "TimeoutError"), (KeyError(""), "''")]
)
def test_an_error_in_one_line(error: Exception, line: str) -> None:
    assert first_line(error) == line  # also of those that say nothing
