"""The configuration of a training run: frozen dataclasses, presets as functions, overrides by dotted keys."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from videomaker.errors import InputError

from .augment import PEOPLE, Augmentation
from .dataset import DataConfig

COMPONENTS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class ModelConfig:
    """Where the model comes from and how it computes."""

    path: str = ""  # diffusers pipeline folder
    motion_adapter: str = ""  # diffusers MotionAdapter folder, for a base whose UNet is 2D
    vae: str = ""  # VAE folder that replaces the one in `path`
    from_scratch: tuple[str, ...] = ()  # components drawn at random from their config.json
    train_text_encoder: bool = False  # task `text` only
    gradient_checkpointing: bool = True
    attention_backend: str = "auto"  # of videomaker.kernels.pisa_attention
    compile: bool = False  # the UNet through torch.compile: a minute or more before the first step, faster ones after


@dataclass(frozen=True)
class MethodConfig:
    """The training recipe. The first five are the rows of the paper's Table 3 (the fifth is `data.highlight`)."""

    pisa: bool = True
    girl_weight: float = 0.1  # β of L = L_video + β·L_reg
    reference_cross_attention: bool = True
    update_motion: bool = True
    train_all: bool = False  # every parameter of the UNet: where no trained base is at hand
    girl_alpha: float = 0.01  # the reference is noised at t' = int(α·t)
    reference_noise: Literal["own", "mean"] = "own"  # "mean": of the frames' noise
    min_snr_gamma: float = 0.0  # 0: off (arXiv 2303.09556)
    drop_text: float = 0.0  # rates; a dropped image is the zero latent
    drop_image: float = 0.05
    drop_both: float = 0.0
    dropped_text: Literal["zeros", "empty"] = "zeros"  # the zero embedding, or that of ""
    kl_weight: float = 1e-6  # task `autoencoder` only, as is the next
    anchor_weight: float = 0.0  # pull of the latent towards the frames' blocks of pixels; see model.blocks_of_pixels


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule, and the moving average of the weights."""

    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float = 1.0  # norm of the gradient; 0: off
    ema_decay: float = 0.0  # 0: off


@dataclass(frozen=True)
class ZeroConfig:
    """How DeepSpeed spreads optimizer state (1), gradients (2) and parameters (3) over the devices."""

    stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "cpu"] = "none"  # of the optimizer


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: int = 1000  # steps; 0: only at the end
    keep_last: int = 3
    keep_every: int = 0  # steps; these are never removed. 0: none
    resume: str = "auto"  # auto: the newest complete checkpoint of the run | none | a checkpoint folder


@dataclass(frozen=True)
class ValidationConfig:
    """Losses on held-out clips, per noise level."""

    every: int = 1000  # steps; 0: off
    clips: int = 8
    batch_size: int = 2  # per device; two or more also give the reference gain
    levels: tuple[int, ...] = (100, 300, 500, 700, 900)  # timesteps
    split: str = "val"


@dataclass(frozen=True)
class SamplingConfig:
    """Sample videos from fixed prompts and references."""

    every: int = 1000  # steps; 0: off
    prompts: tuple[str, ...] = ()
    references: tuple[str, ...] = ()  # images, one per prompt or one for all
    num_inference_steps: int = 30
    guidance_scale: float = 8.0
    fps: int = 8


@dataclass(frozen=True)
class GuardConfig:
    """When a step is refused and when a run is given up."""

    spike_factor: float = 3.0  # a loss above this many times the largest of the window is skipped; 0: off
    spike_window: int = 100  # steps
    max_skipped: int = 20  # in a row
    watchdog: float = 1800.0  # seconds without a step; 0: off


@dataclass(frozen=True)
class LogConfig:
    """Where progress goes besides the terminal, metrics.csv and TensorBoard."""

    every: int = 10
    wandb: str = ""  # project name; "": off


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on."""

    preset: str = ""
    output: str = ""  # the run's folder
    task: Literal["subject", "text", "autoencoder"] = "subject"
    seed: int = 0
    steps: int = 150_000
    batch_size: int = 4  # clips per optimizer step, over all devices
    micro_batch_size: int = 1  # clips per device and pass; the rest of batch_size is accumulated
    precision: Literal["bf16", "fp16", "fp32", "autocast"] = "bf16"  # autocast: fp32 weights, bf16 where safe and quick
    deterministic: bool = True  # the same bits on the same machine
    deepspeed: str = ""  # a DeepSpeed JSON of your own, laid over the derived one
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def accumulation(self, world_size: int) -> int:
        """Micro-batches that each device adds up for one optimizer step.

        Raises:
            InputError: `batch_size` cannot be split evenly over the devices.
        """
        per_pass = self.micro_batch_size * world_size
        if self.batch_size % per_pass:
            raise InputError(
                f"batch_size={self.batch_size} does not fit {world_size} devices with micro_batch_size="
                f"{self.micro_batch_size}: give a multiple of {per_pass}, or another number of devices"
            )
        return self.batch_size // per_pass


def paper_human() -> TrainConfig:
    """People, as the paper trains: CelebV-Text, four devices (arXiv 2412.19645, section 5.1)."""
    return TrainConfig(data=DataConfig(augmentation=PEOPLE))


def paper_object() -> TrainConfig:
    """Objects, as the paper trains: VideoBooth's data."""
    return TrainConfig(steps=100_000, data=DataConfig(crop_to_subject=True))


def authors_human() -> TrainConfig:
    """People, as the authors' published code behaves where it differs from the paper."""
    return replace(
        paper_human(),
        precision="fp16",
        zero=ZeroConfig(stage=1),
        method=MethodConfig(min_snr_gamma=5.0, drop_text=0.05, drop_image=0.05, drop_both=0.05),
    )


def _ablation(**changes: bool | float) -> Callable[[], TrainConfig]:
    return lambda: replace(paper_human(), method=MethodConfig(**changes))


def ablation_no_highlight() -> TrainConfig:
    """Table 3: the reference is a raw frame, background included."""
    human = paper_human()
    return replace(human, data=replace(human.data, highlight=False))


def smoke() -> TrainConfig:
    """A few steps of the real recipe on a tiny clip size: does this installation train at all?"""
    return TrainConfig(
        steps=4,
        batch_size=1,
        precision="fp32",
        data=DataConfig(num_frames=4, frame_stride=1, height=64, width=64, num_workers=0),
        zero=ZeroConfig(stage=0),
        checkpoint=CheckpointConfig(every=2),
        validation=ValidationConfig(every=0),
        sampling=SamplingConfig(every=0),
        log=LogConfig(every=1),
    )


def sprites_vae() -> TrainConfig:
    """The small autoencoder of the sprite world; the first of the three runs behind the embedded default model."""
    shared = _sprites()
    return replace(
        shared,
        task="autoencoder",
        steps=2500,
        data=replace(shared.data, num_frames=1),  # pictures of many creatures teach it more than many of one
        model=ModelConfig(path="runs/sprites-untrained", from_scratch=("vae",)),
        method=MethodConfig(anchor_weight=1.0),
        optimizer=OptimizerConfig(4e-3, betas=(0.9, 0.99), warmup_steps=20, schedule="cosine", ema_decay=0.99),
    )


def sprites_base() -> TrainConfig:
    """Text to video in the sprite world: every parameter, no reference."""
    return replace(
        _cached_sprites(),
        task="text",
        steps=3000,
        batch_size=16,
        model=ModelConfig(
            path="runs/sprites-untrained", vae="runs/sprites-vae/export", from_scratch=("unet",), **_SPRITE_SPEED
        ),
        method=MethodConfig(drop_text=0.1, drop_image=0.0, dropped_text="empty"),
    )


def sprites() -> TrainConfig:
    """The paper's recipe on the sprite base: PISA and GIRL, `attn1` and the motion modules."""
    return replace(
        _cached_sprites(),
        steps=19_500,
        model=ModelConfig(path="runs/sprites-base/export", **_SPRITE_SPEED),
        method=MethodConfig(drop_text=0.05, drop_image=0.05, drop_both=0.05, dropped_text="empty"),
    )


# With 64 tokens to a frame, training on a CPU is quickest when the reference is simply repeated, and compiled.
_SPRITE_SPEED = {"attention_backend": "naive", "compile": True, "gradient_checkpointing": False}


def _cached_sprites() -> TrainConfig:
    """With the frames' latents and the captions' embeddings from `videomaker data cache`."""
    shared = _sprites()
    return replace(shared, data=replace(shared.data, cache="data/sprites-cache"))


def _sprites() -> TrainConfig:
    """What the three runs share; `videomaker data sprites --out data/sprites` draws their clips."""
    return TrainConfig(
        batch_size=8,
        micro_batch_size=8,
        precision="autocast",
        data=DataConfig(
            manifest="data/sprites/manifest.jsonl",
            num_frames=8,
            frame_stride=1,
            height=32,
            width=32,
            augmentation=Augmentation(flip_probability=0.5, rotation=0, translation=0, scale_min=1, scale_max=1),
            num_workers=0,
        ),
        optimizer=OptimizerConfig(1.5e-3, betas=(0.9, 0.99), warmup_steps=50, schedule="cosine", ema_decay=0.998),
        zero=ZeroConfig(stage=0),
        checkpoint=CheckpointConfig(every=500),
        validation=ValidationConfig(every=500, clips=32, batch_size=32, levels=(300, 500, 700, 900)),
        sampling=SamplingConfig(every=0, num_inference_steps=10, guidance_scale=2.0),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "paper-human": paper_human,
    "paper-object": paper_object,
    "authors-human": authors_human,
    "ablation-no-pisa": _ablation(pisa=False),
    "ablation-no-girl": _ablation(girl_weight=0.0),
    "ablation-no-reference-cross-attention": _ablation(reference_cross_attention=False),
    "ablation-frozen-motion": _ablation(update_motion=False),
    "ablation-no-highlight": ablation_no_highlight,
    "smoke": smoke,
    "sprites-vae": sprites_vae,
    "sprites-base": sprites_base,
    "sprites": sprites,
}


def preset(name: str) -> TrainConfig:
    """The preset `name`, whose run goes to `runs/<name>`.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}{_nearest(name, PRESETS)}; presets: {', '.join(PRESETS)}")
    return replace(PRESETS[name](), preset=name, output=f"runs/{name}")


def load_config(source: str, overrides: Iterable[str] = ()) -> TrainConfig:
    """A preset's name or a YAML file, with `key=value` overrides on top.

    A YAML file has the same keys, nested, and may name the preset that it starts from as `preset`.

    Raises:
        InputError: no such preset or file, an unknown key, or a value of the wrong type or range.
    """
    config = _from_yaml(Path(source)) if Path(source).suffix in (".yaml", ".yml") else preset(source)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise InputError(f"{override!r} is not an override; write key=value, such as optimizer.learning_rate=1e-5")
        value = _parse(value, key) if value.strip() else ""  # YAML would read nothing as null
        config = _merge(config, _nested(key.strip().split("."), value))
    _check(config)
    return config


def save_config(config: TrainConfig) -> str:
    """The configuration as YAML, which `load_config` reads back to an equal one."""
    return yaml.safe_dump(TypeAdapter(TrainConfig).dump_python(config, mode="json"), sort_keys=False)


def _from_yaml(path: Path) -> TrainConfig:
    if not path.is_file():
        raise InputError(f"configuration {path} does not exist; give a YAML file or a preset: {', '.join(PRESETS)}")
    mapping = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(mapping, Mapping):
        raise InputError(f"configuration {path} is not a mapping of keys to values")
    base = preset(mapping["preset"]) if mapping.get("preset") else TrainConfig(output=f"runs/{path.stem}")
    return _merge(base, mapping)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}") from error


def _nested(parts: list[str], value: Any) -> dict[str, Any]:
    for part in reversed(parts):
        value = {part: value}
    return value


def _merge(config: Any, changes: Mapping[str, Any], prefix: str = "") -> Any:
    """`config` with `changes`, checked against the types of its fields."""
    types = get_type_hints(type(config))
    values = {}
    for name, value in changes.items():
        key = f"{prefix}{name}"
        if name not in types:
            raise InputError(f"no configuration key {key!r}{_nearest(key, _keys(TrainConfig()))}")
        current = getattr(config, name)
        if not is_dataclass(current):
            values[name] = _validated(types[name], value, key)
        elif isinstance(value, Mapping):
            values[name] = _merge(current, value, f"{key}.")
        else:
            raise InputError(f"{key} is a group of keys; set {key}.{fields(current)[0].name}=… and so on")
    return replace(config, **values)


def _validated(annotation: Any, value: Any, key: str) -> Any:
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{key}={value!r}: {error.errors()[0]['msg']}") from error


def _keys(config: Any, prefix: str = "") -> list[str]:
    names = []
    for item in fields(config):
        value = getattr(config, item.name)
        names += _keys(value, f"{prefix}{item.name}.") if is_dataclass(value) else [f"{prefix}{item.name}"]
    return names


def _nearest(name: str, candidates: Iterable[str]) -> str:
    """The closest name as a question, by the whole dotted name or by its last part."""
    candidates = list(candidates)
    match = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if not match:
        by_leaf = {candidate.rpartition(".")[2]: candidate for candidate in candidates}
        match = [by_leaf[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1)]
    return f" (did you mean {match[0]!r}?)" if match else ""


def _check(config: TrainConfig) -> None:
    """Ranges that types cannot say."""
    method, model = config.method, config.model
    for key in ("steps", "batch_size", "micro_batch_size"):
        if getattr(config, key) < 1:
            raise InputError(f"{key}={getattr(config, key)}: give at least 1")
    rates = (method.drop_text, method.drop_image, method.drop_both)
    if min(rates) < 0 or sum(rates) > 1:
        raise InputError(f"method.drop_text, drop_image, drop_both={rates}: give rates that add up to at most 1")
    if config.checkpoint.keep_last < 1:
        raise InputError(f"checkpoint.keep_last={config.checkpoint.keep_last}: give at least 1")
    if not 0 <= method.girl_alpha <= 1:
        raise InputError(f"method.girl_alpha={method.girl_alpha}: give a fraction of the timestep, 0 to 1")
    if not 0 <= config.optimizer.ema_decay < 1:
        raise InputError(f"optimizer.ema_decay={config.optimizer.ema_decay}: give 0 (off) or a number below 1")
    if unknown := set(model.from_scratch) - set(COMPONENTS):
        raise InputError(f"model.from_scratch has {sorted(unknown)[0]!r}; choose from {', '.join(COMPONENTS)}")
    if model.train_text_encoder and config.task != "text":
        raise InputError(f"model.train_text_encoder=true needs task=text, got task={config.task}")
    if model.compile and config.zero.stage == 3:
        raise InputError("model.compile=true needs zero.stage=0, 1 or 2: stage 3 swaps parameters within a pass, got 3")
    if config.zero.offload != "none" and config.zero.stage == 0:
        raise InputError("zero.offload=cpu needs zero.stage=1, 2 or 3, got 0")
    images, prompts = len(config.sampling.references), len(config.sampling.prompts)
    if config.task == "subject" and prompts and images not in (1, prompts):
        raise InputError(f"sampling.references has {images} images for {prompts} prompts: give one for all or one each")
