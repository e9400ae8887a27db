"""What a run will need, counted on the meta device before anything is loaded: `--dry-run --memory`.

Counted: every tensor that a step makes, from the inputs to the last gradient, and when it is freed; weights, masters,
the optimizer's state and the average on one device; a checkpoint's files. Attention counts as the fused kernels hold
it (q, k, v, the output and a log-sum-exp per row). Not counted: workspaces inside other operators, the allocator's
fragments, CUDA's own memory, DeepSpeed's buckets, encoding the clips (which runs before the step, frame by frame).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch

from videomaker.data.dataset import DataConfig
from videomaker.errors import InputError
from videomaker.pipeline.memory import PeakMemory, module_bytes

from .config import TrainConfig
from .meta import MetaParts, meta_pipeline
from .model import DTYPES, Denoiser, prepare_denoiser
from .recompute import checkpointing_mode, stays_on_device
from .step import Draws

_STATE_COPIES = {"adamw": 2.0, "adamw8bit": 0.5, "adafactor": 0.0, "prodigy": 4.0}  # fp32 tensors beside the master


@dataclass(frozen=True)
class States:
    """Bytes that do not depend on the clips, on one device of several."""

    state_bytes: int  # what lies there all the time: weights, masters, optimizer, average
    checkpoint_bytes: int  # on disk
    trained_parameters: int


@dataclass(frozen=True)
class Footprint(States):
    """Bytes of one configuration on one device."""

    activation_peak_bytes: int  # what a step adds at its peak: activations, gradients, working memory

    @property
    def device_bytes(self) -> int:
        """What the card must hold."""
        return self.activation_peak_bytes + self.state_bytes


def count(config: TrainConfig, world_size: int = 1) -> Footprint:
    """The footprint of a run of task `subject` or `text`; precision `autocast` counts as fp32, an upper bound.

    Raises:
        InputError: the task has no such count, or the model's folder or a setting does not fit.
    """
    if config.task == "autoencoder":
        raise InputError("--memory counts the tasks subject and text, got task=autoencoder")
    mode = checkpointing_mode(config.model.gradient_checkpointing)
    model = replace(
        config.model, gradient_checkpointing="blocks" if mode == "auto" else mode, compile=False,
        attention_backend="auto",
    )  # fmt: skip
    precision = "fp32" if config.precision == "autocast" else config.precision
    largest = max(config.data.shapes, key=lambda shape: shape.num_frames * shape.height * shape.width)
    data = DataConfig(num_frames=largest.num_frames, height=largest.height, width=largest.width)
    key = TrainConfig(
        task=config.task, precision=precision, micro_batch_size=config.micro_batch_size, data=data, model=model,
        method=config.method,
    )  # fmt: skip
    return Footprint(activation_peak_bytes=_peak(key), **asdict(count_states(config, world_size)))


def count_states(config: TrainConfig, world_size: int = 1) -> States:
    """What lies on the device all the time and what goes to the disk; far quicker than a step's peak."""
    precision = "fp32" if config.precision == "autocast" else config.precision
    sizes = _sizes(TrainConfig(task=config.task, precision=precision, model=config.model, method=config.method))
    return States(
        state_bytes=_state_bytes(config, sizes, world_size),
        checkpoint_bytes=_checkpoint_bytes(config, sizes.trained),
        trained_parameters=sizes.trained,
    )


@dataclass(frozen=True)
class _Sizes:
    """What optimizer and ZeRO do not change: the modules' bytes and the trained parameters."""

    learner_bytes: int
    frozen_bytes: int  # of what lies beside the learner
    trained: int


@lru_cache(maxsize=32)
def _sizes(config: TrainConfig) -> _Sizes:
    learner, pipeline = _on_meta(config)
    frozen_parts = [pipeline.vae] + ([] if config.model.train_text_encoder else [pipeline.text_encoder])
    return _Sizes(
        learner_bytes=module_bytes(learner),
        frozen_bytes=sum(map(module_bytes, frozen_parts)),
        trained=sum(p.numel() for p in learner.parameters() if p.requires_grad),
    )


@lru_cache(maxsize=32)
def _peak(config: TrainConfig) -> int:
    learner, pipeline = _on_meta(config)
    return activation_peak(learner, config, pipeline.vae_scale_factor)


def _on_meta(config: TrainConfig) -> tuple[Denoiser, MetaParts]:
    pipeline = meta_pipeline(config.model, DTYPES[config.precision])
    return prepare_denoiser(pipeline, config).to("meta"), pipeline  # peft makes its layers elsewhere


def activation_peak(learner: Denoiser, config: TrainConfig, vae_scale_factor: int) -> int:
    """Bytes that forward and backward of one micro-batch add to the weights of `learner`, on the meta device."""
    inputs = _inputs(learner, config, vae_scale_factor)
    learner.alphas_cumprod = learner.alphas_cumprod.to("meta")
    with ExitStack() as stack:
        stack.enter_context(patch("videomaker.attention.pisa.pisa_attention", _counted_pisa))
        stack.enter_context(patch("torch.nn.functional.scaled_dot_product_attention", _counted_attention))
        if config.model.offload_activations:
            learner.kept_activations = _KeptElsewhere
        peak = stack.enter_context(PeakMemory())
        learner(*inputs)["loss"].backward()
    for parameter in learner.parameters():
        parameter.grad = None
    return peak.peak


def _inputs(learner: Denoiser, config: TrainConfig, factor: int) -> tuple[Any, ...]:
    unet, data, size = learner.unet.config, config.data, config.micro_batch_size
    shape = (size, unet.in_channels, data.num_frames, data.height // factor, data.width // factor)
    latents = torch.empty(shape, device="meta")
    reference = None if config.task == "text" else torch.empty(*shape[:2], 1, *shape[3:], device="meta")
    flags = torch.empty(size, dtype=torch.bool, device="meta")
    draws = Draws(
        timestep=torch.empty(size, dtype=torch.int64, device="meta"),
        noise=torch.empty_like(latents),
        reference_noise=torch.empty(*shape[:2], 1, *shape[3:], device="meta"),
        drop_text=flags,
        drop_image=flags,
    )
    if config.model.train_text_encoder:
        return latents, reference, torch.empty(size, 77, dtype=torch.int64, device="meta"), draws
    return latents, reference, torch.empty(size, 77, unet.cross_attention_dim, device="meta"), draws


class _FusedAttention(torch.autograd.Function):
    """What a fused attention keeps and makes: no scores, one fp32 number per row and head."""

    @staticmethod
    def forward(ctx, q, k, v, rows: tuple[int, ...]):
        out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
        ctx.save_for_backward(q, k, v, out, torch.empty(rows, dtype=torch.float32, device=q.device))
        return out

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, *_ = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        return *(torch.empty_like(x) if need else None for x, need in zip((q, k, v), needed, strict=True)), None


def _counted_pisa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
    return _FusedAttention.apply(q, k, v, tuple(q.shape[:3]))


def _counted_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return _FusedAttention.apply(query, key, value, tuple(query.shape[:3]))


class _KeptElsewhere(torch.autograd.graph.saved_tensors_hooks):
    """`KeepOnHost` as the device sees it: what is saved is gone until the backward pass wants it."""

    def __init__(self) -> None:
        super().__init__(_forget, _remember)


def _forget(tensor: torch.Tensor) -> torch.Tensor | tuple[torch.Size, tuple[int, ...], torch.dtype]:
    return tensor if stays_on_device(tensor) else (tensor.shape, tensor.stride(), tensor.dtype)


def _remember(packed: Any) -> torch.Tensor:
    if isinstance(packed, torch.Tensor):
        return packed
    shape, stride, dtype = packed
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _state_bytes(config: TrainConfig, sizes: _Sizes, world_size: int) -> int:
    stage, optimizer = config.zero.stage, config.optimizer
    weights = sizes.learner_bytes
    if stage == 3:
        weights = 0 if config.zero.offload_parameters == "cpu" else weights // world_size
    if config.zero.offload == "cpu":
        return sizes.frozen_bytes + weights
    kept = _STATE_COPIES[optimizer.name] + _has_masters(config) + (optimizer.ema_decay > 0)
    return sizes.frozen_bytes + weights + int(4 * sizes.trained * kept) // (world_size if stage else 1)


def _has_masters(config: TrainConfig) -> bool:
    """Whether DeepSpeed keeps fp32 copies of the trained weights: for half precision, and to cut them by ZeRO."""
    return config.zero.stage > 0 or config.precision in ("bf16", "fp16")


def _checkpoint_bytes(config: TrainConfig, trained: int) -> int:
    """The optimizer's state and masters, the model's own copy, and the weights and the average as safetensors."""
    optimizer = config.optimizer
    kept = _STATE_COPIES[optimizer.name] + _has_masters(config) + 1 + (optimizer.ema_decay > 0)
    return int(4 * trained * kept) + trained * DTYPES[config.precision].itemsize * (config.zero.stage < 3)
