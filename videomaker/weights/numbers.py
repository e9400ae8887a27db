"""Numbers that no trained weight is: damage, which every way to load a model refuses alike."""

from __future__ import annotations

import os

import torch

from videomaker.errors import InputError

LARGEST = 1e6  # of a weight: a file in half precision holds up to 65,504, and trained ones stay far below


def is_usable(value: torch.Tensor) -> bool:
    """Whether all numbers of a weight are finite, and none so large that only changed bytes can make it.

    A tensor without numbers here is: one on "meta", whole numbers, or less than two bytes a number (quantised).
    """
    if value.is_meta or not (value.numel() and value.is_floating_point() and value.element_size() > 1):
        return True
    low, high = value.detach().aminmax()  # NaN if one is
    return bool(low >= -LARGEST and high <= LARGEST)


def check_usable(model: torch.nn.Module, source: str | os.PathLike) -> None:
    """Refuses a model with weights that are not `is_usable`: half a second for every billion of them on a CPU.

    Args:
        model: as it was loaded, in its dtype.
        source: where it comes from, for the message.

    Raises:
        InputError: names the first.
    """
    if bad := [name for name, value in model.state_dict().items() if not is_usable(value)]:
        raise InputError(
            f"{source} has {len(bad)} tensors with numbers that are not finite or that no model has, such as "
            f"{bad[0]}: fetch it again, or give a wider dtype"
        )
