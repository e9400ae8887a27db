"""Videos longer than the motion modules reach: overlapping windows of frames, fused at every step of the denoising.

Every window sees the whole reference, so the subject needs no memory from window to window. A step predicts the noise
of each window and averages where windows overlap, the middle of a window counting most (as FreeNoise and MultiDiffusion
do, arXiv 2310.15169 and 2302.08113); the scheduler then takes one step for the whole video. All windows have the same
number of frames, so one compiled shape serves any length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from videomaker.errors import InputError, check_counts

# (index of the step, latents, text, guidance) -> the guided prediction
Predict = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Windows:
    """How the frames of a video are cut.

    Args:
        num_frames: of the video.
        size: frames of a window.
        overlap: frames that two neighbours share, at least.
    """

    num_frames: int
    size: int
    overlap: int

    @property
    def starts(self) -> list[int]:
        """The first frame of every window: evenly spread, the last window ends with the video."""
        gaps = -(-(self.num_frames - self.size) // (self.size - self.overlap))
        return [round(k * (self.num_frames - self.size) / gaps) for k in range(gaps + 1)] if gaps else [0]

    def spread_noise(self, noise: torch.Tensor) -> torch.Tensor:
        """The noise of the video `[B, C, F, h, w]` from that of one window `[B, C, size, h, w]`.

        Later frames take the first window's noise again, shuffled within pieces of `size - overlap` frames (FreeNoise,
        arXiv 2310.15169, section 3.2): windows that start from other noise would drift into other scenes. The order
        is the same for every seed; the noise is not.
        """
        source = torch.Generator().manual_seed(0)
        order = list(range(self.size))
        while len(order) < self.num_frames:
            piece = order[-self.size :][: self.size - self.overlap]
            order += [piece[k] for k in torch.randperm(len(piece), generator=source).tolist()]
        return noise[:, :, order[: self.num_frames]]

    def fuse(self, predict: Predict) -> Predict:
        """A prediction for the whole video out of one for a window.

        Args:
            predict: for latents `[B, C, size, h, w]`; called window after window, so it takes a window's memory.
        """
        weights = _pyramid(self.size)

        def fused(index: int, latents: torch.Tensor, text: torch.Tensor, guidance: torch.Tensor | None) -> torch.Tensor:
            total = torch.zeros_like(latents, dtype=torch.float32)
            share = torch.zeros(self.num_frames, device=latents.device)
            scale = weights.to(latents.device)
            for start in self.starts:
                frames = slice(start, start + self.size)
                prediction = predict(index, latents[:, :, frames].contiguous(), text, guidance)
                total[:, :, frames] += scale.view(-1, 1, 1) * prediction
                share[frames] += scale
            return (total / share.view(-1, 1, 1)).to(latents.dtype)

        return fused


def _pyramid(size: int) -> torch.Tensor:
    """`[size]`: 1, 2, … in the middle, …, 2, 1."""
    rise = torch.arange(1, size + 1, dtype=torch.float32)
    return torch.minimum(rise, rise.flip(0))


def plan_windows(
    num_frames: int, num_references: int, *, limit: int, trained: int, size: int | None, overlap: int | None
) -> Windows | None:
    """The windows of a video, or None when it is made in one.

    Args:
        num_frames: of the video.
        num_references: pictures, which take a position of every window.
        limit: positions of the motion modules.
        trained: frames that the model was trained for: the size of windows where `size` is None.
        size: frames of a window; None makes one window of what fits.
        overlap: frames that neighbours share; None is half a window.

    Raises:
        InputError: a window does not fit the model, or the overlap does not fit the window.
    """
    most = limit - num_references
    if most < 1:
        raise InputError(f"{num_references} references leave no frame of the {limit} positions of the motion modules")
    if size is None:
        if num_frames <= most and overlap is None:
            return None
        size = min(trained, most, num_frames)
    check_counts(window_frames=size)
    if not 1 <= size <= most:
        raise InputError(
            f"window_frames is {size}; with {num_references} references the {limit} positions of the motion modules "
            f"take 1 to {most} frames"
        )
    overlap = size // 2 if overlap is None else overlap
    check_counts(least=0, window_overlap=overlap)
    if not 0 <= overlap < size:
        raise InputError(f"window_overlap is {overlap}; windows of {size} frames overlap by 0 to {size - 1}")
    return Windows(num_frames, size, overlap) if num_frames > size else None
