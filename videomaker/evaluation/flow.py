"""How far pixels move between frames: RAFT, as the paper's dynamic degree wants it, or OpenCV's DIS without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from videomaker.errors import InputError

from .networks import MissingNetwork, folder_digest

UPDATES = 20  # of RAFT's recurrent part, as VBench's
_SMALLEST = 128  # pixels: RAFT's smallest map of correlations needs them

FlowModel = Callable[..., list[torch.Tensor]]  # (first, second, num_flow_updates=) -> flows [1, 2, H, W], the last best


class Raft:
    """torchvision's `raft_large`, whose weights `C_T_V1` are the "things" ones; any model with its call will do."""

    HINT = "put raft_large_C_T_V1-22a6c225.pth of torchvision there, or use --flow dis"

    def __init__(self, model: FlowModel, *, device: str = "cpu", digest: str = ""):
        self.model, self.device, self.digest = model, device, digest

    @classmethod
    def from_folder(cls, folder: Path, device: str) -> Raft:
        """The model with the folder's one file of weights, `.pth` or `.safetensors`.

        Raises:
            MissingNetwork: torchvision or the file is not there.
            InputError: the file does not fit.
        """
        try:
            from torchvision.models.optical_flow import raft_large
        except (ImportError, RuntimeError) as error:  # beside another build of torch it raises RuntimeError
            raise MissingNetwork(f"torchvision cannot be imported ({error}): install it, or use --flow dis") from error
        files = sorted(path for path in folder.iterdir() if path.suffix in (".pth", ".safetensors"))
        if len(files) != 1:
            raise MissingNetwork(f"{folder} holds {len(files)} files of weights: {cls.HINT}")
        from videomaker.weights import read_state_dict

        model = raft_large(weights=None)
        try:
            model.load_state_dict(read_state_dict(files[0]))
        except RuntimeError as error:
            raise InputError(f"{files[0]} does not fit torchvision's raft_large: {cls.HINT}") from error
        return cls(model.to(device).eval(), device=device, digest=folder_digest(folder))

    @torch.inference_mode()
    def magnitudes(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        """Lengths `[H, W]` in pixels of the flow from each of `[F, H, W, 3]` uint8 to the next.

        Raises:
            MissingNetwork: the frames are too small for RAFT.
        """
        height, width = frames.shape[1:3]
        if min(height, width) < _SMALLEST:
            raise MissingNetwork(f"RAFT needs frames of at least {_SMALLEST} pixels, not {width}x{height}: --flow dis")
        pixels = torch.from_numpy(frames).movedim(-1, 1).to(self.device, torch.float32) / 127.5 - 1
        pad = (-height % 8, -width % 8)
        edges = (pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2)
        pixels = torch.nn.functional.pad(pixels, edges, mode="replicate")
        for first, second in pairwise(pixels):
            flow = self.model(first[None], second[None], num_flow_updates=UPDATES)[-1][0]
            lengths = flow.float().norm(dim=0).cpu().numpy()
            yield lengths[edges[2] : edges[2] + height, edges[0] : edges[0] + width]


class Dis:
    """OpenCV's dense inverse search: no weights; right on both sides of the threshold for shifts of a real picture."""

    HINT = "pip install opencv-python-headless"

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MissingNetwork(f"--flow dis needs OpenCV: {self.HINT}") from error
        self._cv2 = cv2
        self.digest = f"OpenCV {cv2.__version__} DIS medium"

    def magnitudes(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        """As `Raft.magnitudes`; a search of its own for each pair, so that no pair depends on another."""
        grey = [self._cv2.cvtColor(np.ascontiguousarray(frame), self._cv2.COLOR_RGB2GRAY) for frame in frames]
        for first, second in pairwise(grey):
            search = self._cv2.DISOpticalFlow.create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
            yield np.linalg.norm(search.calc(first, second, None), axis=-1)
