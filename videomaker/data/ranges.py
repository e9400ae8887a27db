"""The ranges that numbers of a configuration can have; pydantic checks them where a configuration is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _no_truth(value: Any) -> Any:
    """Python takes true for 1."""
    if isinstance(value, bool):
        raise ValueError(f"give a number, not {str(value).lower()}")
    return value


NoTruth = BeforeValidator(_no_truth)
_Int = Annotated[int, NoTruth, Field(le=2**63 - 1)]
_Float = Annotated[float, NoTruth, Field(allow_inf_nan=False)]

Positive = Annotated[_Int, Field(ge=1)]
Count = Annotated[_Int, Field(ge=0)]
Timestep = Annotated[_Int, Field(ge=0, le=999)]
AboveZero = Annotated[_Float, Field(gt=0)]
NonNegative = Annotated[_Float, Field(ge=0)]
Share = Annotated[_Float, Field(ge=0, le=1)]
Decay = Annotated[_Float, Field(ge=0, lt=1)]  # of an exponential average
Angle = Annotated[_Float, Field(ge=0, le=180)]  # degrees
FrameRate = Annotated[_Int, Field(ge=1, le=240)]
