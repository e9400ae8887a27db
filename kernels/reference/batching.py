"""vmap of the reference operators: a reference that the videos of a sample share is one of each sample's own."""

from typing import Any

from torch import Tensor

from ..transforms import fold


def register_reference_batching(operator: Any, *, first: int) -> None:
    """`first` is the place of q among the operator's arguments: q, k, v, k_ref, v_ref and the bias follow."""
    places = (first + 3, first + 4)  # of k_ref and v_ref

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[object, object]:
        size = info.batch_size
        folded = [fold(x, dim, size) for x, dim in zip(arguments, in_dims, strict=True)]
        batch = folded[first].shape[0] // size
        is_shared = batch > 1 and folded[places[0]].shape[0] == size
        if is_shared:
            for place in places:
                folded[place] = folded[place].repeat_interleave(batch, dim=0)
        results = [x.unflatten(0, (size, x.shape[0] // size)) for x in operator(*folded)]
        if is_shared:
            results[3:5] = [_sum_over_videos(x) for x in results[3:5]]
        return tuple(results), (0,) * len(results)

    operator.register_vmap(rule)


def _sum_over_videos(gradient: Tensor) -> Tensor:
    return gradient.sum(dim=1, keepdim=True) if gradient.numel() else gradient[:, :1]
