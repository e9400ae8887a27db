"""The configuration of a training run: frozen dataclasses with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from videomaker.data.dataset import DataConfig
from videomaker.data.ranges import AboveZero, Count, Decay, FrameRate, NonNegative, NoTruth, Positive, Share, Timestep
from videomaker.errors import InputError

COMPONENTS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class ModelConfig:
    """Where the model comes from and how it computes."""

    path: str = ""  # diffusers pipeline folder
    motion_adapter: str = ""  # diffusers MotionAdapter folder, for a base whose UNet is 2D
    vae: str = ""  # VAE folder that replaces the one in `path`
    from_scratch: tuple[str, ...] = ()  # components drawn at random from their config.json
    train_text_encoder: bool = False  # task `text` only
    # Recomputed in the backward pass: none | blocks (true) | all: motion modules too | auto: blocks, or all if need be
    gradient_checkpointing: Literal["auto", "none", "blocks", "all"] | bool = "auto"
    offload_activations: bool = False  # what is kept for the backward pass lies in the CPU's memory
    attention_backend: str = "auto"  # of videomaker.kernels.pisa_attention
    compile: bool = False  # the UNet through torch.compile: a minute or more before the first step, faster ones after


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters that are trained in place of the weights themselves (task `subject`)."""

    rank: Count = 0  # 0: off
    alpha: NonNegative = 0.0  # the adapters count alpha / rank; 0: as the rank, so once
    targets: tuple[Literal["attn1", "motion"], ...] = ("attn1", "motion")  # spatial self-attention, motion modules


@dataclass(frozen=True)
class MethodConfig:
    """The training recipe. The first five are the rows of the paper's Table 3 (the fifth is `data.highlight`)."""

    pisa: bool = True
    girl_weight: NonNegative = 0.1  # β of L = L_video + β·L_reg
    reference_cross_attention: bool = True
    update_motion: bool = True
    lora: LoraSettings = field(default_factory=LoraSettings)
    train_all: bool = False  # every parameter of the UNet: where no trained base is at hand
    girl_alpha: Share = 0.01  # the reference is noised at t' = int(α·t)
    reference_noise: Literal["own", "mean"] = "own"  # "mean": of the frames' noise
    min_snr_gamma: NonNegative = 0.0  # 0: off (arXiv 2303.09556)
    offset_noise: Share = 0.0  # strength of noise that a channel has alike in all pixels and frames; 0: off
    # Which noise levels are drawn: late (much noise) and early by a cubic, logit_normal the middle (arXiv 2403.03206)
    timesteps: Literal["uniform", "early", "late", "logit_normal"] = "uniform"
    drop_text: Share = 0.0  # rates; a dropped image is the zero latent
    drop_image: Share = 0.05
    drop_both: Share = 0.0
    dropped_text: Literal["zeros", "empty"] = "zeros"  # the zero embedding, or that of ""
    kl_weight: NonNegative = 1e-6  # task `autoencoder` only, as is the next
    anchor_weight: NonNegative = 0.0  # pull of the latent to the frames' blocks of pixels: model.blocks_of_pixels


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, its schedule, and the moving average of the weights."""

    learning_rate: AboveZero = 1e-5
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: AboveZero = 1e-8
    weight_decay: NonNegative = 1e-2
    warmup_steps: Count = 0
    schedule: Literal["constant", "cosine"] = "constant"
    clip: NonNegative = 1.0  # norm of the gradient; 0: off
    ema_decay: Decay = 0.0  # 0: off
    # adamw8bit: bitsandbytes or torchao; prodigy: prodigyopt, with learning_rate=1; adafactor: zero.stage=0
    name: Literal["adamw", "adamw8bit", "adafactor", "prodigy"] = "adamw"
    attn1_learning_rate: NonNegative = 0.0  # of the spatial self-attention; 0: learning_rate
    motion_learning_rate: NonNegative = 0.0  # of the motion modules; 0: learning_rate


@dataclass(frozen=True)
class ZeroConfig:
    """How DeepSpeed spreads optimizer state (1), gradients (2) and parameters (3) over the devices."""

    stage: Annotated[Literal[0, 1, 2, 3], NoTruth] = 2
    offload: Literal["none", "cpu"] = "none"  # of the optimizer
    offload_parameters: Literal["none", "cpu"] = "none"  # stage 3


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: Count = 1000  # steps; 0: only at the end
    keep_last: Positive = 3
    keep_every: Count = 0  # steps; these are never removed. 0: none
    best: str = ""  # a loss of held_out.csv, such as video_500: best/ keeps the weights where it is lowest. "": off
    resume: str = "auto"  # auto: the newest complete checkpoint of the run | none | a checkpoint folder


@dataclass(frozen=True)
class ValidationConfig:
    """Losses on held-out clips, per noise level."""

    every: Count = 1000  # steps; 0: off
    clips: Positive = 8
    batch_size: Positive = 2  # per device; two or more also give the reference gain
    levels: Annotated[tuple[Timestep, ...], Field(min_length=1)] = (100, 300, 500, 700, 900)  # timesteps
    split: str = "val"
    weights: Literal["auto", "raw", "ema"] = "auto"  # judged, also by samples; auto: the moving average if there is one


@dataclass(frozen=True)
class SamplingConfig:
    """Sample videos from fixed prompts and references."""

    every: Count = 1000  # steps; 0: off
    prompts: tuple[str, ...] = ()
    references: tuple[str, ...] = ()  # images, one per prompt or one for all
    num_inference_steps: Annotated[Positive, Field(le=1000)] = 30
    guidance_scale: NonNegative = 8.0
    fps: FrameRate = 8


@dataclass(frozen=True)
class GuardConfig:
    """When a step is refused and when a run is given up."""

    spike_factor: NonNegative = 3.0  # a loss above this many times the largest of the window is skipped; 0: off
    spike_window: Positive = 100  # steps
    max_skipped: Positive = 20  # in a row
    watchdog: NonNegative = 1800.0  # seconds without a step; 0: off


@dataclass(frozen=True)
class LogConfig:
    """Where progress goes besides the terminal, metrics.csv and TensorBoard."""

    every: Positive = 10
    wandb: str = ""  # project name; "": off
    profile: Count = 0  # steps after the first two that torch's profiler records into profile/; 0: off


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on."""

    preset: str = ""
    output: str = ""  # the run's folder
    task: Literal["subject", "text", "autoencoder"] = "subject"
    seed: Count = 0
    steps: Positive = 150_000
    batch_size: Positive = 4  # clips per optimizer step, over all devices
    micro_batch_size: Positive = 1  # clips per device and pass; the rest of batch_size is accumulated
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
