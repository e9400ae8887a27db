"""The rows of the paper's Table 3 in miniature: each trained on the same base, clips and steps, and measured.

    python bench/ablation.py                                  after `make default` or its first three stages
    python bench/ablation.py --seeds 0 1 --set batch_size=4 micro_batch_size=4 model.compile=false    in half the time
    python bench/ablation.py --report                         the table and the figure of what is measured so far
    python bench/ablation.py --steps 2 --clips 4 --seeds 0 --out /tmp/ablation    does it run at all?

Rows add up from "PISA" downwards. A row is a run of `train/main.py` with overrides, so an interrupted ablation goes on
where it stopped; finished rows are not trained or measured again. Prints a table, and writes it, a JSON document, and a
figure of the same subject and prompt over the rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AnimateDiffPipeline
from measure import environment
from own_timestep import give_own_timestep
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm
from videomaker.train.config import TrainConfig
from videomaker.train.engine import learning_rate, set_numerics
from videomaker.train.model import load_pipeline, mixed_precision
from videomaker.train.overrides import load_config
from videomaker.train.step import add_noise, draw, target

from videomaker import media
from videomaker.data.cache import open_cache
from videomaker.data.dataset import build_dataset
from videomaker.data.encode import encode_latents
from videomaker.data.loader import build_loader
from videomaker.denoising import predict_noise
from videomaker.evaluation.sprites import SpriteSuite, evaluate_sprites, sprite_cases
from videomaker.files import atomic_path, sha256
from videomaker.pipeline import VideoMakerPipeline

ROOT = Path(__file__).parents[1]
MEASURES = {
    "identity": "identity",
    "pattern": "pattern",
    "colour_distance": "colour distance",
    "reference_gain": "reference gain",
    "motion": "motion",
    "background": "background",
    "copied_background": "copied background",
    "temporal_consistency": "temporal consistency",
}


@dataclass(frozen=True)
class Row:
    """One way to train, as overrides of the preset `sprites`, and what it is shown when it is measured."""

    overrides: tuple[str, ...] = ()
    reference: str = "raw"
    rival: bool = False  # reference as cross-attention tokens instead of PISA
    trained: bool = True  # False: the base as it is
    own_timestep: bool = False  # the references' own in the network, instead of their frames'


def _row(**changes) -> Row:
    """PISA alone: attn1 trained, no GIRL, raw references without text; `changes` add the rest."""
    settings = {
        "method.train_all": False,
        "method.girl_weight": 0.0,
        "method.reference_cross_attention": False,
        "method.update_motion": False,
        "data.highlight": False,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())
    return Row(overrides, reference="white" if settings["data.highlight"] else "raw")


_GIRL = {"method__girl_weight": 0.1}
_TEXT = _GIRL | {"method__reference_cross_attention": True}
_MOTION = _TEXT | {"method__update_motion": True}
ROWS = {
    "no reference": Row(reference="none", trained=False),
    "cross-attention only": replace(_row(data__highlight=True), rival=True),
    "PISA": _row(),
    "+ GIRL": _row(**_GIRL),
    "+ reference in cross-attention": _row(**_TEXT),
    "+ motion update": _row(**_MOTION),
    "+ subject highlighting": _row(**_MOTION, data__highlight=True),
}
# Where GIRL's cost comes from; not of the table: ask for them by --rows. A rate in place of the preset's 1.5e-3.
_WHOLE = _MOTION | {"data__highlight": True}
GIRL_ROWS = {
    "GIRL of a tenth": _row(method__girl_weight=0.01),
    "GIRL at a larger step": _row(**_GIRL, method__girl_alpha=0.1),
    "GIRL at a higher rate": _row(**_GIRL, optimizer__learning_rate=2.2e-3),
    "PISA at a higher rate": _row(optimizer__learning_rate=2.2e-3),
    "PISA with its own timestep": replace(_row(), own_timestep=True),
    "GIRL with its own timestep": replace(_row(**_GIRL), own_timestep=True),
    "all but GIRL": _row(**_WHOLE | {"method__girl_weight": 0.0}),
}
ALL_ROWS = ROWS | GIRL_ROWS


class CrossAttentionRival(nn.Module):
    """The reference as tokens beside the text's, as in IP-Adapter: one for every 2×2 latent pixels.

    Unlike there, keys and values are shared with the text's and `attn2` is trained, so that it gets a fair chance.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.projection = nn.Conv2d(channels, width, kernel_size=2, stride=2)

    def forward(self, reference: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, L, E]` of reference latents `[B, C, 1, h, w]`."""
        return self.projection(reference[:, :, 0]).flatten(2).transpose(1, 2)


class RivalPipeline(VideoMakerPipeline):
    """Generates with a `CrossAttentionRival`, which is set as `tokens` after loading."""

    tokens: CrossAttentionRival

    def __call__(self, prompt: list[str], reference_image: list, **settings):
        """As in `VideoMakerPipeline`; no reference means zero latents here, too."""
        side = self.unet.config.sample_size
        pixels = torch.cat([self.reference_processor.preprocess(image).float() for image in reference_image])
        reference = self.vae.encode(pixels).latent_dist.mode()[:, :, None] * self.vae.config.scaling_factor
        text, empty = self.encode_prompt(prompt, "cpu", 1, True)
        nothing = torch.zeros_like(reference)
        return super().__call__(
            prompt_embeds=torch.cat([text, self.tokens(reference)], dim=1),
            negative_prompt_embeds=torch.cat([empty, self.tokens(nothing)], dim=1),
            reference_image_embeds=nothing[:, :, :, :side, :side],
            **settings,
        )


class TextOnlyPipeline(VideoMakerPipeline):
    """Generates as plain AnimateDiff: a base that never saw a reference should not be shown an empty one either."""

    def __call__(self, prompt: list[str], reference_image_embeds: torch.Tensor, **settings):
        """As in `AnimateDiffPipeline`; the empty reference is left out."""
        return AnimateDiffPipeline.__call__(self, prompt, **settings)


def train_rival(config: TrainConfig, folder: Path) -> None:
    """Trains the rival's tokens and `attn2` with the loss, clips, steps and optimizer settings of the other rows."""
    set_numerics(config, torch.device("cpu"))
    torch.manual_seed(config.seed)
    pipe = load_pipeline(config.model, dtype=torch.float32, seed=config.seed)
    unet, settings = pipe.unet.requires_grad_(False), config.optimizer
    rival = nn.ModuleDict({"tokens": CrossAttentionRival(unet.config.in_channels, unet.config.cross_attention_dim)})
    trained = {f"unet.{name}": p for name, p in unet.named_parameters() if ".attn2." in name and "motion" not in name}
    trained |= dict(rival.named_parameters())
    for parameter in trained.values():
        parameter.requires_grad_(True)
    if config.model.compile:
        unet.compile(dynamic=False)
    average = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(
        trained.values(), betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )
    cache = open_cache(config.data, vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    dataset = build_dataset(config.data, seed=config.seed, cache=cache)
    loader = build_loader(dataset, batch_size=config.batch_size, num_workers=0)
    steps = tqdm(range(config.steps), desc=folder.name, unit="step")
    for step, batch in zip(steps, loader, strict=False):
        loss = rival_loss(pipe, rival["tokens"], batch, config, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), settings.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step, config.steps)
        optimizer.step()
        for name, parameter in trained.items():
            average[name].lerp_(parameter.detach(), 1 - settings.ema_decay)
    with atomic_path(folder / "rival.safetensors") as path:
        save_file(average, path)


def rival_loss(
    pipe: VideoMakerPipeline, tokens: CrossAttentionRival, batch: dict, config: TrainConfig, step: int
) -> torch.Tensor:
    """The video loss of one batch, with the reference as tokens after the text and a zero latent as the extra frame."""
    keys = [(config.seed, step * config.batch_size + i) for i in range(config.batch_size)]
    clean, alphas = batch["latents"], pipe.scheduler.alphas_cumprod
    reference = encode_latents(pipe.vae, batch["reference"], keys, "reference_latents")
    draws = draw(
        config.method, clean.shape[1:], reference.shape[1:], keys=keys, num_train_timesteps=len(alphas), device="cpu"
    )
    reference = reference.masked_fill(draws.drop_image.view(-1, 1, 1, 1, 1), 0)
    empty = pipe.encode_prompt("", "cpu", 1, False)[0]
    text = torch.where(draws.drop_text.view(-1, 1, 1), empty, batch["prompt_embeds"])
    noised = add_noise(clean, draws.noise, draws.timestep, alphas)
    with mixed_precision(config.precision == "autocast", noised.device):
        condition = torch.cat([text, tokens(reference)], dim=1)
        predicted, _ = predict_noise(pipe.unet, noised, torch.zeros_like(reference), draws.timestep, condition)
    wanted = target(pipe.scheduler.config.prediction_type, clean, draws.noise, draws.timestep, alphas)
    return nn.functional.mse_loss(predicted.float(), wanted)


def train_row(name: str, row: Row, seed: int, options: argparse.Namespace) -> VideoMakerPipeline:
    """Trains the row, or takes the finished one; returns it ready to generate."""
    if not row.trained:
        return TextOnlyPipeline.from_pretrained(options.base)
    folder = options.out / "runs" / _slug(name, seed)
    _begin(folder, _training(options) | {"row": list(row.overrides)})
    overrides = [
        *row.overrides,
        f"output={folder}",
        f"seed={seed}",
        f"steps={options.steps}",
        f"model.path={options.base}",
        "validation.every=0",
        *options.set,
    ]
    if row.rival:
        return _rival(folder, load_config("sprites", overrides))
    exported = folder / "pipeline"
    if not exported.is_dir():
        script = ROOT / ("bench/own_timestep.py" if row.own_timestep else "train/main.py")
        subprocess.run([sys.executable, script, "--config", "sprites", *overrides], check=True)
        from videomaker.train.export import export_run

        export_run(folder, exported, dtype="fp32", whole=True)
    pipe = VideoMakerPipeline.from_pretrained(exported)
    if row.own_timestep:
        give_own_timestep(pipe.unet, load_config("sprites", overrides).method.girl_alpha)
    return pipe


def _begin(folder: Path, training: dict) -> None:
    """Refuses the run of another training: one that was cut would go on as this one, one that ended be taken for it."""
    path = folder.with_name(f"{folder.name}.json")
    if path.is_file():
        _check_same(path, json.loads(path.read_text(encoding="utf-8")), training)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(training), encoding="utf-8")


def _check_same(path: Path, before: dict, setting: dict) -> None:
    if before != setting:
        raise SystemExit(f"{path} was made with {before}, not {setting}: ask for the same, or give another --out")


def _rival(folder: Path, config) -> RivalPipeline:
    weights = folder / "rival.safetensors"
    if not weights.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        train_rival(config, folder)
    pipe = RivalPipeline.from_pretrained(config.model.path)
    pipe.tokens = CrossAttentionRival(pipe.unet.config.in_channels, pipe.unet.config.cross_attention_dim)
    for name, value in load_file(weights).items():
        part, _, parameter = name.partition(".")
        {"tokens": pipe.tokens, "unet": pipe.unet}[part].get_parameter(parameter).data.copy_(value)
    return pipe


def measure_row(name: str, row: Row, seed: int, options: argparse.Namespace) -> None:
    """Trains and measures the row with this seed, unless its measures are already there."""
    path, setting = _measures(options, name, seed), _setting(options)
    for there in sorted(path.parent.glob("*.json")):  # one table shows them all
        _check_same(there, json.loads(there.read_text(encoding="utf-8"))["setting"], setting)
    if path.is_file():
        return
    pipe = train_row(name, row, seed, options)
    pipe.set_progress_bar_config(disable=True)
    suite = SpriteSuite(clips=options.clips, reference=row.reference)
    results, videos = evaluate_sprites(pipe, suite)
    if row.rival:
        results["reference_gain"] = {}  # it is measured with the reference as a frame, which the rival does not read
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(videos[0], axis=1)).save(path.with_suffix(".png"))
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"setting": setting, **results}), encoding="utf-8")


def _setting(options: argparse.Namespace) -> dict[str, int | str | list[str]]:
    """What rows must share to be compared."""
    return _training(options) | {"clips": options.clips}


def _training(options: argparse.Namespace) -> dict[str, int | str | list[str]]:
    base = sha256(options.base / "unet/diffusion_pytorch_model.safetensors")
    return {"steps": options.steps, "base": base[:12], "overrides": sorted(options.set)}


def measured(options: argparse.Namespace) -> dict[str, dict[int, dict]]:
    """The measures that are there, by row and seed."""
    results: dict[str, dict[int, dict]] = {}
    for name, seed in itertools.product(options.rows, options.seeds):
        path = _measures(options, name, seed)
        if path.is_file():
            results.setdefault(name, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    return results


def table(results: dict[str, dict[int, dict]]) -> str:
    """Markdown: mean over the seeds, and the sample standard deviation where there is more than one."""
    lines = ["| | seeds | " + " | ".join(MEASURES.values()) + " |", "|---" * (len(MEASURES) + 2) + "|"]
    for name, runs in results.items():
        cells = [_cell([_value(run, measure) for run in runs.values()]) for measure in MEASURES]
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _value(run: dict, measure: str) -> float:
    gains = run["reference_gain"]
    return run[measure] if measure != "reference_gain" else float(np.mean(list(gains.values()))) if gains else np.nan


def _cell(values: Sequence[float]) -> str:
    if np.isnan(values).any():
        return "—"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def figure(results: dict[str, dict[int, dict]], options: argparse.Namespace) -> Image.Image:
    """The first subject and prompt of the suite over the rows, each with its first seed."""
    lines = []
    for name, runs in results.items():
        case = sprite_cases(SpriteSuite(clips=1, reference=ALL_ROWS[name].reference))[0]
        strip = np.asarray(Image.open(_measures(options, name, min(runs)).with_suffix(".png")))
        frames = np.stack(np.split(strip, strip.shape[1] // strip.shape[0], axis=1))
        lines.append(media.sheet_row([Image.fromarray(case.portrait)], frames, f"{name}: {case.clip.caption}"))
    return media.contact_sheet(lines)


def _slug(name: str, seed: int) -> str:
    return f"{'-'.join(name.replace('+', 'plus').lower().split())}-{seed}"


def _measures(options: argparse.Namespace, name: str, seed: int) -> Path:
    """What the row's videos measured; the first video is beside it, with the suffix .png."""
    return options.out / "measures" / f"{_slug(name, seed)}.json"


def write_report(options: argparse.Namespace) -> None:
    """The table, the JSON document and the figure of what is measured."""
    results = measured(options)
    if not results:
        raise SystemExit(f"nothing is measured in {options.out} yet")
    runs = [(_measures(options, name, seed), run) for name, of in results.items() for seed, run in of.items()]
    for path, run in runs[1:]:
        _check_same(path, run["setting"], runs[0][1]["setting"])
    print(table(results))
    document = json.dumps({"environment": environment(torch.device("cpu")), "rows": results}, indent=2) + "\n"
    for name, text in (("ablation.json", document), ("ablation.md", table(results))):
        with atomic_path(options.out / name) as path:
            path.write_text(text, encoding="utf-8")
    with atomic_path(options.out / "ablation.png") as path:
        figure(results, options).save(path)


def main() -> None:
    """Trains and measures what is missing, then reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("runs/sprites-base/export"), help="text-to-video model")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides for all rows")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=2200, help="copying begins after some 1,500")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=100, help="unseen creatures in the measure")
    parser.add_argument("--rows", nargs="+", choices=ALL_ROWS, default=list(ROWS))
    parser.add_argument("--report", action="store_true", help="only report what is measured so far")
    options = parser.parse_args()
    if not options.report:
        for seed, name in itertools.product(options.seeds, options.rows):
            measure_row(name, ALL_ROWS[name], seed, options)
    write_report(options)


if __name__ == "__main__":
    main()
