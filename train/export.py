"""From a run to what people load: a partial checkpoint, a pipeline folder or a VAE folder, with a model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from videomaker import __version__
from videomaker.errors import InputError
from videomaker.files import atomic_directory, atomic_path, check_replaceable
from videomaker.weights import save_partial

from .best import FOLDER, read_best
from .best import WEIGHTS as WEIGHTS_OF_BEST
from .checkpoint import Checkpoints
from .checkpoint_files import WEIGHTS, Found
from .config import TrainConfig
from .lora import changed_names, is_lora_name, merge_lora, to_diffusers
from .overrides import load_config, save_config
from .run_folder import source_commit

LORA_FILE = "lora.safetensors"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Weights:
    """Trained parameters and where in the run they come from."""

    tensors: dict[str, torch.Tensor]  # fp32, named as in the learner: `unet.…`, `text_encoder.…` or `vae.…`
    step: int
    ema: bool  # of the moving average
    losses: dict[str, float]  # of the step itself; of the best, on held-out clips
    measure: str = ""  # of the best: the loss that was lowest

    @property
    def about(self) -> dict[str, str]:
        """The same in words, for the header of a file."""
        best = {"measure": self.measure, "value": str(self.losses[self.measure])} if self.measure else {}
        return {"steps": str(self.step), "kind": "ema" if self.ema else "weights", **best}


@dataclass(frozen=True)
class Run:
    """A run's configuration and its newest complete checkpoint."""

    folder: Path
    config: TrainConfig
    found: Found

    @property
    def has_ema(self) -> bool:
        """Whether the run kept a moving average of its weights."""
        return (self.found.folder / WEIGHTS["ema"]).is_file()

    def weights(self, ema: bool | None = None) -> Weights:
        """Those of the newest checkpoint.

        Args:
            ema: the moving average, or not; `None`: if the run kept one.

        Raises:
            InputError: the run kept no moving average.
        """
        ema = self.has_ema if ema is None else ema
        if ema and not self.has_ema:
            raise InputError(
                f"{self.folder} kept no moving average; leave out --ema, or train with optimizer.ema_decay=0.9999"
            )
        tensors = load_file(self.found.folder / WEIGHTS["ema" if ema else "weights"])
        return Weights(tensors, self.found.step, ema, self.found.state["metrics"])

    def best_weights(self, ema: bool | None = None) -> Weights:
        """Those that `checkpoint.best` kept.

        Args:
            ema: whether they should be of the moving average; `None`: as they are.

        Raises:
            InputError: the run kept none, or of the other kind.
        """
        about = read_best(self.folder)
        if not about:
            raise InputError(f"{self.folder} kept no best weights: train with checkpoint.best=…, or leave it out")
        kept = about["kind"] == "ema"
        if ema not in (None, kept):
            raise InputError(
                f"{self.folder} kept the best {'moving average' if kept else 'raw weights'}, which validation.weights "
                f"judged: leave out --{'ema' if ema else 'no-ema'}"
            )
        tensors = load_file(self.folder / FOLDER / WEIGHTS_OF_BEST)
        losses = {about["measure"]: about["value"], **about.get("losses", {})}  # not kept by earlier versions
        return Weights(tensors, about["step"], kept, losses, about["measure"])


def open_run(folder: Path, *, report: Callable[[str], None] = print) -> Run:
    """Reads the run in `folder`.

    Raises:
        InputError: `folder` is no run, or has no complete checkpoint.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} is not a run's folder (it has no config.yaml); give the `output` of a training run")
    config = load_config(str(folder / "config.yaml"))
    found = Checkpoints(folder / "checkpoints", config.checkpoint).newest_complete(report, clean=False)
    if found is None:
        raise InputError(f"{folder} has no complete checkpoint yet; train until the first one, or stop it with SIGTERM")
    return Run(folder, config, found)


def export_run(
    folder: Path,
    out: Path | None = None,
    *,
    dtype: str = "",
    ema: bool | None = None,
    whole: bool = False,
    merge: bool = False,
    best: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Writes what a run made, complete or not at all, and a model card beside it.

    A run of task `subject` gives a partial checkpoint with the names of the published ones, which
    `load_videomaker_weights` reads; with LoRA, adapters that diffusers' `load_lora_weights` reads. `text` gives a
    pipeline folder, `autoencoder` a VAE folder.

    Args:
        folder: the run.
        out: the file or folder to write; default in `folder/export`.
        dtype: "bf16", "fp16" or "fp32"; by default bf16, and fp32 for what the next training starts from.
        ema: the moving average of the weights, or not; `None`: if the run kept one.
        best: the weights that `checkpoint.best` kept, not the newest.
        merge: of a run with LoRA, the changed weights themselves (as without LoRA), not the adapters.
        whole: a pipeline folder for a run of task `subject` as well, as one that trained everything always gives.
        report: hears about damaged checkpoints.

    Raises:
        InputError: no run, no checkpoint, no such weights, or an unknown dtype.
    """
    if dtype and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose {', '.join(DTYPES)}")
    run = open_run(folder, report=report)
    lora = run.config.method.lora
    if merge and not lora.rank:
        raise InputError(f"{folder} was trained without LoRA, so there is nothing to merge: leave out --merge")
    adapters = bool(lora.rank) and not (merge or whole)
    dtype = dtype or ("bf16" if run.config.task == "subject" and not adapters else "fp32")
    weights = run.best_weights(ema) if best else run.weights(ema)
    task, card = run.config.task, model_card(run, weights, dtype=dtype)
    if adapters:
        weights = replace(weights, tensors=to_diffusers(weights.tensors, lora))
        return _export_partial(run, weights, out or folder / "export" / LORA_FILE, dtype, card)
    if lora.rank and not whole:
        weights = replace(weights, tensors=_merged(run, weights))
    if task == "subject" and not (whole or run.config.method.train_all):
        return _export_partial(run, weights, out or folder / "export" / "videomaker.safetensors", dtype, card)
    out = out or folder / ("export" if task != "subject" else "export/pipeline")
    check_replaceable(out, _is_export)
    if out.suffix == ".safetensors":
        raise InputError(f"{out} is a file, but this run trained every parameter and gives a folder; name a folder")
    with atomic_directory(out, ours=_is_export) as temporary:
        _loaded(run, weights).to(dtype=DTYPES[dtype]).save_pretrained(temporary)
        if task != "autoencoder":
            (temporary / "generation.json").write_text(json.dumps(_generation_defaults(run)), encoding="utf-8")
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return out


_CARD_START = "---\nlibrary_name: videomaker\n"
_EXPORTED = (
    "README.md", "generation.json", "model_index.json", "config.json", "diffusion_pytorch_model.safetensors",
    "unet", "vae", "text_encoder", "tokenizer", "scheduler",
)  # fmt: skip


def _is_export(folder: Path) -> bool:
    """Whether a folder holds what `export_run` wrote, and nothing else."""
    return _is_card(folder / "README.md") and all(path.name in _EXPORTED for path in folder.iterdir())


def _is_card(path: Path) -> bool:
    try:
        return path.read_bytes().startswith(_CARD_START.encode())
    except OSError:
        return False


def _export_partial(run: Run, weights: Weights, out: Path, dtype: str, card: str) -> Path:
    if out.suffix != ".safetensors":
        raise InputError(f"{out} is not a name for weights: end it in .safetensors")
    card_file = out.with_suffix(".md")
    if card_file.exists() and not _is_card(card_file):
        raise InputError(f"{card_file} is where the model card goes, and it is another file: give another --out")
    if out.exists() and not card_file.exists():
        raise InputError(f"{out} is there without its model card: give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = "" if any(map(is_lora_name, weights.tensors)) else "unet."  # diffusers wants it for adapters
    tensors = {name.removeprefix(prefix): value for name, value in weights.tensors.items()}
    about = {"videomaker": __version__, **weights.about, "config": save_config(run.config)}
    save_partial(tensors, out, dtype=DTYPES[dtype], metadata=about)
    with atomic_path(card_file) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return out


def _loaded(run: Run, weights: Weights):
    """The run's pipeline, or its VAE, with the trained weights in place.

    How the training computed its attention is not what the weights need: the pipeline goes out with "auto".
    """
    from .model import load_pipeline, load_vae

    config = replace(run.config, model=replace(run.config.model, attention_backend="auto"))
    state = weights.tensors
    if config.task == "autoencoder":
        vae = load_vae(config.model, seed=config.seed)
        vae.load_state_dict({name.removeprefix("vae."): value for name, value in state.items()})
        losses = {**run.found.state["metrics"], **weights.losses}
        vae.register_to_config(scaling_factor=1 / losses["latent_std"])
        return vae
    pipeline = load_pipeline(
        config.model, dtype=torch.float32, seed=config.seed,
        reference_cross_attention=config.method.reference_cross_attention, use_pisa=config.method.pisa,
    )  # fmt: skip
    if config.method.lora.rank:
        merge_lora(pipeline.unet, state, config.method.lora)
        return pipeline
    for component in ("unet", "text_encoder"):
        part = {n.removeprefix(f"{component}."): v for n, v in state.items() if n.startswith(f"{component}.")}
        getattr(pipeline, component).load_state_dict(part, strict=False)
    return pipeline


def _merged(run: Run, weights: Weights) -> dict[str, torch.Tensor]:
    """The weights that a run's adapters change, with the adapters added, as a run without LoRA has them."""
    unet = _loaded(run, weights).unet
    return {f"unet.{name}": unet.get_parameter(name) for name in changed_names(weights.tensors)}


def _generation_defaults(run: Run) -> dict[str, int | float]:
    """What `videomaker generate` should do without being told: what the model was trained for."""
    data, sampling = run.config.data, run.config.sampling
    return {
        "num_frames": data.num_frames,
        "height": data.height,
        "width": data.width,
        "fps": sampling.fps,
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
    }


def model_card(run: Run, weights: Weights, *, dtype: str) -> str:
    """Markdown that says what the weights are and how they came about."""
    config = run.config
    kind = {"subject": "subject-driven video", "text": "text to video", "autoencoder": "a video frame autoencoder"}
    return f"""{_CARD_START}tags: [{config.task}, video-generation]
---
# {run.folder.name}: {kind[config.task]}

| | |
|---|---|
| Base model | `{config.model.path}` {f"with `{config.model.motion_adapter}`" if config.model.motion_adapter else ""} |
| Data | {_data_line(run)} |
| Steps | {weights.step} of {config.steps}, {config.batch_size} clips each |
| {_losses_line(weights)} |
| Weights | {dtype}{", moving average" if weights.ema else ""} |
| Made with | videomaker {__version__}, commit {source_commit()} |

## Configuration

```yaml
{save_config(config).strip()}
```
"""


def _losses_line(weights: Weights) -> str:
    if measure := weights.measure:
        return f"Best by | lowest held-out `{measure}`: {weights.losses[measure]:.4g}"
    return "Last losses | " + ", ".join(f"{name} {value:.4g}" for name, value in weights.losses.items())


def _data_line(run: Run) -> str:
    data = run.config.data
    clips = run.found.state["data"]["num_clips"]
    names = ", ".join(f"`{name}`" for name in data.manifests)
    spacing = f"{data.fps:g} a second" if data.fps else f"stride {data.frame_stride}"
    shapes = "; ".join(f"{shape.num_frames} frames, {shape.width}×{shape.height}" for shape in data.shapes)
    return f"{names}: {clips} clips, split `{data.split}`, {shapes}, at {spacing}"
