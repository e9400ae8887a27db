"""How the two losses of `L = L_video + β·L_reg` pull at what is trained: norms, angles and noise of their gradients.

    python bench/girl.py --model runs/sprites-base/export --batches 200 --set batch_size=4 --output FILE

The gradients of many batches at the same weights, without a step between them. Of each loss: the root mean square of
the norm of a batch's gradient, how much of it is the same in every batch (the norm of their mean, freed of what chance
adds to it), and the cosine of the two means. Adam divides a step by the root mean square of the gradient, so a term
whose gradient is noise slows the other one: "rate left" is `sqrt(E v² / E (v + β·g)²)`, each weight by itself, averaged
over the weights as Adam sees them. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from measure import environment
from tqdm import tqdm
from videomaker.train.engine import set_numerics
from videomaker.train.inputs import Inputs
from videomaker.train.model import load_pipeline, prepare_denoiser
from videomaker.train.overrides import load_config

from videomaker.data.cache import open_cache
from videomaker.data.dataset import build_dataset
from videomaker.data.loader import build_loader
from videomaker.files import atomic_path

WEIGHTS = (0.01, 0.1, 1.0)  # β


@dataclass
class Moments:
    """Sums over batches of a loss's gradient, of its square, and of its product with the video loss's."""

    first: torch.Tensor
    second: torch.Tensor
    product: torch.Tensor
    count: int = 0

    def add(self, gradient: torch.Tensor, video: torch.Tensor) -> None:
        """Counts one batch."""
        self.first += gradient
        self.second += gradient.square()
        self.product += gradient * video
        self.count += 1

    @property
    def norm(self) -> float:
        """Root mean square over the batches."""
        return (self.second.sum() / self.count).sqrt().item()

    @property
    def signal(self) -> float:
        """Norm of the mean, without bias: chance adds the variance of a batch's gradient over their number."""
        mean, of_squares = self.first / self.count, self.second / self.count
        chance = (of_squares - mean.square()).sum() / (self.count - 1)
        return (mean.square().sum() - chance).clamp(min=0).sqrt().item()


def gradients(config, *, batches: int) -> tuple[dict[str, Moments], dict[str, float]]:
    """Moments of the gradients of "video" and "reference", and the losses' means."""
    set_numerics(config, torch.device("cpu"))
    pipe = load_pipeline(config.model, dtype=torch.float32, seed=config.seed)
    denoiser = prepare_denoiser(pipe, config)
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    steps = len(pipe.scheduler.alphas_cumprod)
    inputs = Inputs(config, pipe, num_train_timesteps=steps, device=torch.device("cpu"))
    cache = open_cache(config.data, vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    dataset = build_dataset(config.data, seed=config.seed, cache=cache)
    loader = build_loader(dataset, batch_size=config.batch_size, num_workers=0)
    size = sum(parameter.numel() for parameter in trained)
    found = {name: Moments(*torch.zeros(3, size).unbind()) for name in ("video", "reference")}
    sums = dict.fromkeys(found, 0.0)
    for number, batch in enumerate(tqdm(islice(loader, batches), total=batches, unit="batch")):
        keys = [(config.seed, number * config.batch_size + i) for i in range(config.batch_size)]
        losses = denoiser(*inputs(batch, keys))
        flat = {}
        for name in found:
            parts = torch.autograd.grad(losses[name], trained, retain_graph=True, materialize_grads=True)
            flat[name] = torch.cat([part.flatten() for part in parts])
            sums[name] += losses[name].item() / batches
        for name, moments in found.items():
            moments.add(flat[name], flat["video"])
    return found, sums


def summary(found: dict[str, Moments]) -> dict:
    """Norms, signals, the angle between the means, and the rate that each β leaves to the video loss."""
    video, reference = found["video"], found["reference"]
    cosine = torch.nn.functional.cosine_similarity(video.first, reference.first, dim=0).item()
    left = {}
    for weight in WEIGHTS:
        both = video.second + 2 * weight * reference.product + weight**2 * reference.second
        left[str(weight)] = (video.second / both.clamp(min=1e-30)).sqrt().mean().item()
    return {
        "norm": {name: moments.norm for name, moments in found.items()},
        "signal": {name: moments.signal for name, moments in found.items()},
        "cosine of means": cosine,
        "rate left at β": left,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="pipeline in the diffusers format")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of the preset sprites")
    parser.add_argument("--output", type=Path, help="also write the JSON document here")
    options = parser.parse_args()
    fixed = [f"model.path={options.model}", "model.compile=false", "precision=fp32"]
    config = load_config("sprites", [*options.set, *fixed])
    found, losses = gradients(config, batches=options.batches)
    document = {
        "model": str(options.model),
        "overrides": options.set,
        "batches": options.batches,
        "losses": losses,
        **summary(found),
        "environment": environment(torch.device("cpu")),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    print(text)
    if options.output:
        with atomic_path(options.output) as path:
            path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
