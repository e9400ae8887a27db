"""A configuration from a preset or a YAML file and `key=value` overrides, checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from videomaker.errors import InputError

from .config import COMPONENTS, TrainConfig
from .presets import PRESETS


def preset(name: str) -> TrainConfig:
    """The preset `name`, whose run goes to `runs/<name>`.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}{nearest(name, PRESETS)}; presets: {', '.join(PRESETS)}")
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
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as nested JSON values."""
    return TypeAdapter(TrainConfig).dump_python(config, mode="json")


def flatten(config: TrainConfig | Mapping[str, Any]) -> dict[str, Any]:
    """JSON values by dotted key, such as "optimizer.clip"; of a configuration, or of what `as_dict` made of one."""
    mapping = as_dict(config) if isinstance(config, TrainConfig) else config
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def differences(config: TrainConfig) -> str:
    """What differs from the preset that the configuration starts from, as overrides; "" when nothing does."""
    base = flatten(preset(config.preset) if config.preset else TrainConfig())
    changed = {key: value for key, value in flatten(config).items() if base[key] != value}
    return " ".join(f"{key}={show(value)}" for key, value in changed.items())


def show(value: Any) -> str:
    """A value as one would write it in an override."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(show, value)) + "]"
    return str(value)


def _from_yaml(path: Path) -> TrainConfig:
    if not path.is_file():
        raise InputError(f"configuration {path} does not exist; give a YAML file or a preset: {', '.join(PRESETS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"configuration {path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    mapping = _parse(text, str(path))
    if not isinstance(mapping, Mapping):
        raise InputError(f"configuration {path} is not a mapping of keys to values")
    name = mapping.get("preset")
    if not isinstance(name, str | None):
        raise InputError(f"configuration {path}: preset={name!r} is not a name; presets: {', '.join(PRESETS)}")
    base = preset(name) if name else TrainConfig(output=f"runs/{path.stem}")
    return _merge(base, mapping)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}") from error
    except (RecursionError, ValueError, TypeError) as error:  # deep nesting, dates that are none, unhashable keys
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{where} cannot be read: {reason}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if doubles := [key for key in keys if keys.count(key) > 1 and key != "<<"]:
            raise yaml.constructor.ConstructorError(None, None, f"{doubles[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _nested(parts: list[str], value: Any) -> dict[str, Any]:
    for part in reversed(parts):
        value = {part: value}
    return value


def _merge(config: Any, changes: Mapping[str, Any], prefix: str = "") -> Any:
    """`config` with `changes`, checked against the types of its fields."""
    types = get_type_hints(type(config), include_extras=True)
    values = {}
    for name, value in changes.items():
        key = f"{prefix}{name}"
        if name not in types:
            raise InputError(f"no configuration key {key!r}{nearest(key, flatten(TrainConfig()))}")
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
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{key}={shorten(repr(value), 60, placeholder=' …')}: {message}") from error


def _check(config: TrainConfig) -> None:
    """What the ranges of single numbers cannot say."""
    method, model, scales = config.method, config.model, config.data.augmentation
    if not config.output.strip() or "\0" in config.output:
        raise InputError(f"output={config.output!r}: give the folder of the run")
    if scales.scale_min > scales.scale_max:
        raise InputError(f"data.augmentation.scale_min={scales.scale_min} is above scale_max={scales.scale_max}")
    if 0 < config.guards.spike_factor <= 1:
        raise InputError(f"guards.spike_factor={config.guards.spike_factor}: give 0 (off) or a number above 1")
    rates = (method.drop_text, method.drop_image, method.drop_both)
    if sum(rates) > 1:
        raise InputError(f"method.drop_text, drop_image, drop_both={rates}: give rates that add up to at most 1")
    if config.validation.weights == "ema" and not config.optimizer.ema_decay:
        raise InputError("validation.weights=ema needs optimizer.ema_decay, such as 0.9999, got 0")
    if unknown := set(model.from_scratch) - set(COMPONENTS):
        raise InputError(f"model.from_scratch has {sorted(unknown)[0]!r}; choose from {', '.join(COMPONENTS)}")
    if model.train_text_encoder and config.task != "text":
        raise InputError(f"model.train_text_encoder=true needs task=text, got task={config.task}")
    if model.compile and config.zero.stage == 3:
        raise InputError("model.compile=true needs zero.stage=0, 1 or 2: stage 3 swaps parameters within a pass, got 3")
    if config.zero.offload != "none" and config.zero.stage == 0:
        raise InputError("zero.offload=cpu needs zero.stage=1, 2 or 3, got 0")
    _check_memory_saving(config)
    _check_best(config)
    images, prompts = len(config.sampling.references), len(config.sampling.prompts)
    if config.task == "subject" and prompts and images not in (1, prompts):
        raise InputError(f"sampling.references has {images} images for {prompts} prompts: give one for all or one each")


def _check_memory_saving(config: TrainConfig) -> None:
    lora, optimizer, zero = config.method.lora, config.optimizer, config.zero
    if lora.rank and (config.task != "subject" or config.method.train_all or not lora.targets):
        raise InputError(
            f"method.lora.rank={lora.rank} needs task=subject, method.train_all=false and a method.lora.targets, got "
            f"task={config.task}, train_all={config.method.train_all}, targets={list(lora.targets)}"
        )
    if zero.offload_parameters != "none" and zero.stage != 3:
        raise InputError(f"zero.offload_parameters=cpu needs zero.stage=3, got {zero.stage}")
    if config.model.offload_activations and config.model.compile:
        raise InputError("model.offload_activations=true needs model.compile=false: a compiled graph saves by itself")
    if optimizer.name == "adafactor" and (zero.stage != 0 or config.precision not in ("fp32", "autocast")):
        raise InputError(
            "optimizer.name=adafactor needs zero.stage=0 and precision=fp32 or autocast: ZeRO and half precision keep "
            f"flat weights, which have no rows and columns to factor; got stage {zero.stage}, {config.precision}"
        )
    if zero.offload == "cpu" and optimizer.name != "adamw":
        raise InputError(f"zero.offload=cpu needs optimizer.name=adamw, got {optimizer.name}")


def _check_best(config: TrainConfig) -> None:
    best = config.checkpoint.best
    if not best:
        return
    if not config.validation.every:
        raise InputError(f"checkpoint.best={best} needs validation.every, in steps, such as 1000, got 0")
    names = held_out_losses(config)
    if best not in names:
        listed = ", ".join(names)
        raise InputError(f"checkpoint.best={best!r} is no held-out loss{nearest(best, names)}; choose from {listed}")


def held_out_losses(config: TrainConfig) -> list[str]:
    """The columns of held_out.csv of which lower is better: not the reference gain, nor the spread of latents."""
    if config.task == "autoencoder":
        return ["loss", "reconstruction", "kl", *(["anchor"] if config.method.anchor_weight else [])]
    parts = ("video", "reference") if config.task == "subject" else ("video",)
    return [f"{part}_{level}" for level in config.validation.levels for part in parts]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The closest name as a question, by the whole dotted name or by its last part."""
    candidates = list(candidates)
    match = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if not match:
        by_leaf = {candidate.rpartition(".")[2]: candidate for candidate in candidates}
        match = [by_leaf[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1)]
    return f" (did you mean {match[0]!r}?)" if match else ""
