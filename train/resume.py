"""What a run goes on from, and what may differ from the settings that it began with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from videomaker.digests import blake2b_of_all
from videomaker.errors import InputError

from .checkpoint import Checkpoints, check_stage
from .checkpoint_files import WEIGHTS, Found, read
from .config import OptimizerConfig, TrainConfig
from .optimizer import parameter_groups
from .overrides import flatten, show

# What decides which tensors a checkpoint holds and how; `precision` may change between the two with fp32 weights.
_FIXED = (
    "task", "seed", "precision", "method.update_motion", "method.train_all", "model.train_text_encoder",
    "method.lora.rank", "method.lora.alpha", "method.lora.targets", "optimizer.name",
)  # fmt: skip
_FP32 = {"fp32", "autocast"}
_SILENT = ("output", "checkpoint.resume", "log.every", "data.num_workers")  # says nothing about the run's result


def find_checkpoint(config: TrainConfig, checkpoints: Checkpoints, report: Callable[[str], object]) -> Found | None:
    """The checkpoint that `config` goes on from; None for a new run. `report` hears what differs from then.

    Raises:
        InputError: every checkpoint is damaged, the wanted one is, or two runs would be mixed in one folder; or a
            setting differs that cannot change, or no step is left to train.
    """
    found = _look(config, checkpoints, report)
    if found is None:
        return None
    _check_steps(found, config.steps, own=_is_own(found, checkpoints))
    check_stage(found, config.zero.stage)
    _check_settings(found, config, report)
    return found


def _look(config: TrainConfig, checkpoints: Checkpoints, report: Callable[[str], object]) -> Found | None:
    resume, folder = config.checkpoint.resume, Path(config.output)
    if resume == "auto":
        return checkpoints.newest_complete(report)
    steps = checkpoints.steps()
    if resume == "none":
        if steps:
            raise InputError(
                f"{folder} has checkpoints of an earlier run and checkpoint.resume=none would mix the two; "
                "give another output=, or checkpoint.resume=auto"
            )
        return None
    found = read(Path(resume))
    if isinstance(found, str):
        raise InputError(f"checkpoint.resume={resume}: {found}")
    if steps and not (_is_own(found, checkpoints) and found.step == steps[-1]):
        raise InputError(
            f"checkpoint.resume={resume} is of step {found.step} and {folder} has checkpoints up to step {steps[-1]}, "
            "which would be mixed with the new ones; give another output="
        )
    return found


def _is_own(found: Found, checkpoints: Checkpoints) -> bool:
    return found.folder.resolve().parent == checkpoints.folder.resolve()


def _check_steps(found: Found, steps: int, *, own: bool) -> None:
    """A run that is at its last step may be asked for again, and ends at once; one beyond it may not."""
    if found.step > steps or (found.step == steps and not own):
        raise InputError(
            f"{found.folder} is at step {found.step}, so steps={steps} leaves nothing to train: give more steps"
        )


def _check_settings(found: Found, config: TrainConfig, report: Callable[[str], object]) -> None:
    then, now = flatten(found.state["config"]), flatten(config)
    changed = [key for key, value in now.items() if key in then and then[key] != value and key not in _SILENT]
    for key in changed:
        if key in _FIXED and not (key == "precision" and {then[key], now[key]} <= _FP32):
            raise InputError(
                f"{key} was {show(then[key])} when {found.folder.name} was written and is {show(now[key])} now, "
                f"which cannot change within a run: set {key}={show(then[key])}, or another output= for a new run"
            )
    if changed:
        listed = ", ".join(f"{key} {show(then[key])} → {show(now[key])}" for key in changed)
        going_on = f"going on from step {found.step} with other settings than before"
        finished = f"at its last step, {found.step}, so that these other settings train nothing"
        report(f"{going_on if found.step < config.steps else finished}: {listed}")


def check_parameters(found: Found, learner: nn.Module, frozen: str, report: Callable[[str], object]) -> None:
    """Compares the checkpoint's trained tensors with the model's, and the frozen rest by its digest.

    Raises:
        InputError: the model trains other parameters, or of other shapes.
    """
    from safetensors import safe_open

    with safe_open(found.folder / WEIGHTS["weights"], framework="pt") as tensors:
        then = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (no dict)
    now = {name: _shape(p) for name, p in learner.named_parameters() if p.requires_grad}
    if then != now:
        name = next(name for name in [*then, *now] if then.get(name) != now.get(name))
        raise InputError(
            f"{found.folder.name} trained {len(then)} tensors and this model trains {len(now)}, first other {name!r} "
            f"({then.get(name, 'absent')} then, {now.get(name, 'absent')} now): go on with the model that it began "
            "with, or give another output= for a new run"
        )
    if found.state["frozen"] not in ("", frozen):
        report(f"going on from step {found.step} with another base model: its frozen weights are not those of before")


def check_groups(found: Found, learner: nn.Module, settings: OptimizerConfig) -> None:
    """Refuses rates by part that divide the parameters into other groups, by which the optimizer's state lies.

    Raises:
        InputError: they do.
    """
    before = found.state["config"].get("optimizer", {})
    rates = {name: value for name, value in before.items() if name.endswith("learning_rate")}
    trained = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    then, now = (
        [[*map(id, group["params"])] for group in parameter_groups(one, trained)]
        for one in (replace(settings, **rates), settings)
    )
    if then != now:
        listed = " ".join(f"optimizer.{name}={show(value)}" for name, value in rates.items())
        raise InputError(
            f"{found.folder.name} was written with {listed}: parts that have one rate cannot get two within a run, nor "
            "two become one; give rates that differ where those did, or another output= for a new run"
        )


def digest_frozen(parts: Sequence[nn.Module]) -> str:
    """A digest of the frozen weights, the same for fp32 and for the same ones loaded as bf16."""
    frozen = (named for part in parts for named in part.named_parameters() if not named[1].requires_grad)
    return blake2b_of_all(
        piece
        for name, parameter in frozen
        for piece in (name, parameter.detach().cpu().to(torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
    )


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 keeps the whole shape apart
