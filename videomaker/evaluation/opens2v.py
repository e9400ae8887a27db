"""OpenS2V-Eval's measures (github.com/PKU-YuanGroup/OpenS2V-Nexus, eval/) as far as no closed model is needed.

Each network turns the frames of one video, and its prompt, into values per frame and the video's value.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from videomaker.errors import InputError
from videomaker.model_files import load_whole

from .networks import MissingNetwork, folder_digest

SAMPLED = 32  # frames of a video, spread evenly; a shorter one's count several times
TITLES = {
    "aes_score": "Aesthetics",
    "motion_amplitude": "Motion amplitude",
    "gme_score": "GmeScore",
    "facesim_cur": "FaceSim-Cur",
    "motion_smoothness": "Motion smoothness",
    "nexus_score": "NexusScore",
    "natural_score": "NaturalScore",
}
OPENS2V = tuple(TITLES)
OPENS2V_GROUPS = {"aesthetic": ("aes_score",), "farneback": ("motion_amplitude",), "gme": ("gme_score",)}
UNAVAILABLE = {  # and why
    "facesim_cur": "FaceSim-Cur needs CurricularFace's network, which no package holds; Face is insightface's ArcFace",
    "motion_smoothness": "motion smoothness needs Q-Align's one-align, which runs only by code from its hub page",
    "nexus_score": "NexusScore needs YOLO-World's image prompts, which run only in mmyolo (no current torch)",
    "natural_score": "NaturalScore asks GPT-4o, a closed model",
}


class Scored(NamedTuple):
    """The value of a video, and what it is of."""

    value: float
    frames: list[float]


class VideoNetwork(Protocol):
    """What measures a video."""

    digest: str

    def score(self, frames: np.ndarray, prompt: str) -> Scored:
        """Of `[F, H, W, 3]` uint8 RGB; `MissingNetwork` when these frames cannot be measured."""


def sampled(count: int) -> np.ndarray:
    """Which frames of `count` are measured, `[32]`."""
    return np.linspace(0, count - 1, SAMPLED, dtype=int)


class Aesthetic:
    """LAION's aesthetic predictor: CLIP ViT-L/14, then linear layers on its unit embedding; about 1 to 10."""

    HINT = "put openai/clip-vit-large-patch14 there in the transformers format, and LAION's aesthetic-model.pth"

    def __init__(self, folder: Path, device: str):
        from transformers import CLIPImageProcessorPil, CLIPModel

        files = sorted(path for path in folder.iterdir() if path.suffix == ".pth")
        if len(files) != 1:
            raise MissingNetwork(f"{folder} holds {len(files)} .pth files: {self.HINT}")
        self.processor = load_whole(CLIPImageProcessorPil, folder)
        self.model = load_whole(CLIPModel, folder, dtype=torch.float32).to(device).eval()
        self.layers = _linear_layers(files[0], self.model.config.projection_dim, device)
        self.digest = folder_digest(folder)

    @torch.inference_mode()
    def score(self, frames: np.ndarray, prompt: str) -> Scored:
        """The mean over the sampled frames."""
        values = np.concatenate([self._values(frame) for frame in frames])
        return Scored(float(values[sampled(len(frames))].mean()), values.tolist())

    def _values(self, frame: np.ndarray) -> np.ndarray:
        pixels = self.processor(images=Image.fromarray(frame), return_tensors="pt")["pixel_values"]
        pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device)).pooler_output
        embedding = self.model.visual_projection(pooled).float()
        embedding = embedding / torch.linalg.vector_norm(embedding, dim=-1, keepdim=True)
        for weight, bias in self.layers:
            embedding = torch.nn.functional.linear(embedding, weight, bias)
        return embedding[:, 0].double().cpu().numpy()


def _linear_layers(file: Path, width: int, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights and biases of `layers.N`, in order; between them is only dropout."""
    from videomaker.weights import read_state_dict

    state = read_state_dict(file, strip=False)
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith("layers.")})
    layers = []
    for number in numbers:
        weight, bias = state.get(f"layers.{number}.weight"), state.get(f"layers.{number}.bias")
        if weight is None or bias is None or weight.shape[1:] != (width,):
            break
        layers.append((weight.float().to(device), bias.float().to(device)))
        width = len(weight)
    if not layers or len(layers) < len(numbers) or width != 1:
        raise InputError(f"{file} is no aesthetic predictor for this CLIP: {Aesthetic.HINT}")
    return layers


class Farneback:
    """OpenCV's flow by G. Farnebäck: how far the whole picture drifts. No weights."""

    HINT = "pip install opencv-python-headless"

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MissingNetwork(f"motion amplitude needs OpenCV: {self.HINT}") from error
        self._cv2 = cv2
        self.digest = f"OpenCV {cv2.__version__} Farneback"

    def score(self, frames: np.ndarray, prompt: str) -> Scored:
        """The mean flow of each pair, signed, both directions together; the video's is the mean's absolute value."""
        if len(frames) < 2:
            raise MissingNetwork("one frame only")
        # Their code reads RGB as BGR here, so red and blue change places in the grey.
        grey = [self._cv2.cvtColor(np.ascontiguousarray(frame), self._cv2.COLOR_BGR2GRAY) for frame in frames]
        flows = [self._drift(first, second) for first, second in pairwise(grey)]
        return Scored(abs(float(np.mean(flows))), flows)

    def _drift(self, first: np.ndarray, second: np.ndarray) -> float:
        flow = self._cv2.calcOpticalFlowFarneback(
            first,
            second,
            flow=None,
            pyr_scale=0.5,
            levels=3,
            winsize=15,
            iterations=3,
            poly_n=5,
            poly_sigma=1.2,
            flags=0,
        )
        height, width = first.shape
        size = (16, max(1, int(height * 16 / width)))
        return float(self._cv2.resize(flow, size, interpolation=self._cv2.INTER_AREA).mean(dtype=np.float64))


class Gme:
    """GME, a Qwen2-VL that embeds texts and pictures in one space: how well frames go with the prompt."""

    HINT = "put Alibaba-NLP/gme-Qwen2-VL-7B-Instruct there in the transformers format"
    _QUERY = "Find an image that matches the given text."
    _SYSTEM = "You are a helpful assistant."
    _CELL, _LEAST = 28, 4  # a picture is first brought to whole cells of so many pixels, and at least so many cells
    _TOKENS = (256, 1280)  # then to so many cells

    def __init__(self, folder: Path, device: str):
        from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen2VLModel

        self.tokenizer = load_whole(AutoTokenizer, folder)
        limits = [number * self._CELL**2 for number in self._TOKENS]
        self.processor = load_whole(
            Qwen2VLImageProcessorPil, folder, size={"shortest_edge": limits[0], "longest_edge": limits[1]}
        )
        dtype = "auto" if device.startswith("cuda") else torch.float32
        self.model = load_whole(Qwen2VLModel, folder, dtype=dtype).to(device).eval()
        self.digest = folder_digest(folder)

    @torch.inference_mode()
    def score(self, frames: np.ndarray, prompt: str) -> Scored:
        """The mean cosine of the sampled frames with the prompt."""
        text = self._embed(self._QUERY, prompt)
        values = np.array([float(text @ self.picture(Image.fromarray(frame))) for frame in frames])
        return Scored(float(values[sampled(len(frames))].mean()), values.tolist())

    @torch.inference_mode()
    def picture(self, image: Image.Image) -> torch.Tensor:
        """The unit embedding of a picture, `[E]` float32."""
        image = image.convert("RGB").resize(self._whole_cells(*image.size))
        found = self.processor(images=image, return_tensors="pt")
        count = int(found["image_grid_thw"].prod()) // self.processor.merge_size**2
        text = "<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"
        return self._embed(self._SYSTEM, text, found["pixel_values"], found["image_grid_thw"])

    def _embed(self, instruction: str, text: str, *picture: torch.Tensor) -> torch.Tensor:
        """The last token's hidden state, of length 1."""
        message = (
            f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"
            "<|im_start|>assistant\n<|endoftext|>"
        )
        ids = self.tokenizer(message, return_tensors="pt").input_ids.to(self.model.device)
        given: dict[str, Any] = {}
        if picture:
            pixels, grid = (part.to(self.model.device) for part in picture)
            given = {"pixel_values": pixels.to(self.model.dtype), "image_grid_thw": grid}
        # GME was trained and is used with positions in a line, not with Qwen2-VL's of rows and columns.
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
        hidden = self.model(input_ids=ids, position_ids=positions, use_cache=False, **given).last_hidden_state
        return torch.nn.functional.normalize(hidden[0, -1].float(), dim=-1).cpu()

    def _whole_cells(self, width: int, height: int) -> tuple[int, int]:
        """The nearest size of whole cells."""
        cell, least = self._CELL, self._LEAST * self._CELL**2
        sides = [max(cell, round(side / cell) * cell) for side in (width, height)]
        if sides[0] * sides[1] < least:
            scale = (least / (width * height)) ** 0.5
            sides = [int(-(-side * scale // cell)) * cell for side in (width, height)]
        return sides[0], sides[1]
