"""The modules of a run: which are loaded, which start at random, which parameters train, and what a pass computes.

Letters: B clips, C latent channels, F frames, R references, H×W latent size, L text tokens of width E.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from videomaker.attention import PisaAttnProcessor, drop_layout, install_pisa, trainable_names
from videomaker.denoising import PREDICTION_TYPES, predict_noise
from videomaker.environment import dtype_option
from videomaker.errors import InputError
from videomaker.pipeline import VideoMakerPipeline

from .checks import check_folder
from .config import MethodConfig, ModelConfig, TrainConfig
from .engine import computes_bf16
from .lora import add_lora
from .recompute import KeepOnHost, checkpointing_mode, enable_checkpointing
from .step import Draws, add_noise, girl_timestep, losses, min_snr_weight, target

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "autocast": torch.float32}


class Denoiser(nn.Module):
    """The UNet and, when it is trained, the text encoder: maps clean latents and draws to the losses."""

    def __init__(
        self,
        unet: UNetMotionModel,
        text_encoder: CLIPTextModel | None,
        scheduler: DDIMScheduler,
        method: MethodConfig,
        *,
        autocast: bool = False,
        offload_activations: bool = False,
    ):
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        # Not a buffer: it stays fp32 when the module is cast.
        self.alphas_cumprod: torch.Tensor = scheduler.alphas_cumprod.float()
        self.prediction_type = scheduler.config.prediction_type
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f"the model's scheduler has the prediction_type {str(self.prediction_type)[:40]!r}: training knows "
                + ", ".join(PREDICTION_TYPES)
            )
        self.method = method
        self.autocast = autocast
        self.kept_activations: Callable[[], AbstractContextManager] = KeepOnHost if offload_activations else nullcontext

    def forward(
        self,
        latents: torch.Tensor,
        reference_latents: torch.Tensor | None,
        text: torch.Tensor,
        draws: Draws,
    ) -> dict[str, torch.Tensor]:
        """The losses of one micro-batch.

        Args:
            latents: clean frames `[B, C, F, H, W]`.
            reference_latents: clean references `[B, C, R, H, W]`, or `None` for text to video.
            text: embeddings `[B, L, E]`, or token ids `[B, L]` when the text encoder is trained.
            draws: the randomness of the micro-batch.
        """
        alphas, method = self.alphas_cumprod, self.method
        noised = add_noise(latents, draws.noise, draws.timestep, alphas)
        noised_reference = wanted_reference = None
        if reference_latents is not None:
            low = girl_timestep(draws.timestep, method.girl_alpha)
            noised_reference = add_noise(reference_latents, draws.reference_noise, low, alphas)
            noised_reference.masked_fill_(draws.drop_image.view(-1, 1, 1, 1, 1), 0)  # as guidance shows none: all zeros
            wanted_reference = target(self.prediction_type, reference_latents, draws.reference_noise, low, alphas)
        video, reference = self._predict(noised, noised_reference, draws, text)
        return losses(
            method,
            video=(video, target(self.prediction_type, latents, draws.noise, draws.timestep, alphas)),
            reference=None if wanted_reference is None else (reference, wanted_reference),
            weight=min_snr_weight(self.prediction_type, draws.timestep, method.min_snr_gamma, alphas),
            drop_image=draws.drop_image,
        )

    def _predict(self, noised, noised_reference, draws: Draws, text) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = self.unet.dtype
        with mixed_precision(self.autocast, noised.device), self.kept_activations():
            prompt_embeds = text if self.text_encoder is None else self.text_encoder(text)[0]
            if self.method.dropped_text == "zeros":
                prompt_embeds = prompt_embeds.masked_fill(draws.drop_text.view(-1, 1, 1), 0)
            return predict_noise(
                self.unet,
                noised.to(dtype),
                None if noised_reference is None else noised_reference.to(dtype),
                draws.timestep,
                prompt_embeds.to(dtype),
            )


def mixed_precision(enabled: bool, device: torch.device) -> AbstractContextManager:
    """bf16 where it is safe, when `enabled` and when the device computes in bf16 itself."""
    return torch.autocast(device.type, torch.bfloat16) if enabled and computes_bf16(device) else nullcontext()


class Autoencoder(nn.Module):
    """The VAE as its own learner: maps frames and noise to the losses of reconstruction."""

    def __init__(self, vae: AutoencoderKL, method: MethodConfig, *, autocast: bool = False):
        super().__init__()
        self.vae = vae
        self.method = method
        self.autocast = autocast

    def forward(self, frames: torch.Tensor, source: torch.Generator) -> dict[str, torch.Tensor]:
        """Losses of frames `[N, 3, H, W]` in [-1, 1]; `source` draws the latent."""
        with mixed_precision(self.autocast, frames.device):
            posterior = self.vae.encode(frames.to(self.vae.dtype)).latent_dist
            decoded = self.vae.decode(posterior.sample(source)).sample
        reconstruction = F.l1_loss(decoded.float(), frames.float())
        kl = posterior.kl().float().mean() / frames[0].numel()
        loss = reconstruction + self.method.kl_weight * kl
        parts = {
            "reconstruction": reconstruction,
            "kl": kl,
            "latent_std": posterior.mean.float().std(),  # the scaling factor of the finished VAE is its inverse
        }
        if self.method.anchor_weight:
            parts["anchor"] = F.mse_loss(posterior.mean.float(), blocks_of_pixels(frames, posterior.mean.shape))
            loss = loss + self.method.anchor_weight * parts["anchor"]
        return {"loss": loss, **parts}


def blocks_of_pixels(frames: torch.Tensor, latent_shape: Sequence[int]) -> torch.Tensor:
    """Frames `[N, 3, H, W]` as latents `[N, C, h, w]`: C/3 block averages under every latent pixel (space to depth).

    A latent that is pulled there looks the same wherever its patch of the picture stands and whatever is around it,
    so a small model can copy a subject by copying latents; a free latent takes far longer to become like that.
    """
    _, channels, height, width = latent_shape
    per_side = math.isqrt(channels // 3)
    if channels != 3 * per_side**2:
        raise InputError(f"method.anchor_weight needs 3, 12, 27, … latent channels, this VAE has {channels}")
    blocks = F.adaptive_avg_pool2d(frames.float(), (height * per_side, width * per_side))
    return F.pixel_unshuffle(blocks, per_side)


def load_pipeline(
    model: ModelConfig, *, dtype: torch.dtype, seed: int, reference_cross_attention: bool = True, use_pisa: bool = True
) -> VideoMakerPipeline:
    """The pipeline of `model.path`, with the components of `model.from_scratch` at random from `seed`.

    Raises:
        InputError: a folder is missing or does not hold a diffusers pipeline.
    """
    check_folder(model)
    arguments: dict[str, Any] = {"motion_adapter": model.motion_adapter} if model.motion_adapter else {}
    torch.manual_seed(seed)
    for name in model.from_scratch:
        arguments[name] = _from_config(name, Path(model.path)).to(dtype)
    if model.vae:
        arguments["vae"] = AutoencoderKL.from_pretrained(model.vae, **dtype_option(dtype))
    return VideoMakerPipeline.from_pretrained(
        model.path,
        dtype=dtype,
        attention_backend=model.attention_backend,
        reference_cross_attention=reference_cross_attention,
        use_pisa=use_pisa,
        **arguments,
    )


def load_vae(model: ModelConfig, *, seed: int) -> AutoencoderKL:
    """The VAE alone, in fp32: of `model.vae`, or of `model.path`."""
    torch.manual_seed(seed)
    if "vae" in model.from_scratch:
        return _from_config("vae", Path(model.path))
    return AutoencoderKL.from_pretrained(model.vae or Path(model.path) / "vae")


def _from_config(component: str, path: Path) -> nn.Module:
    folder = path / component
    if not (folder / "config.json").is_file():
        raise InputError(f"model.from_scratch={component} needs {folder / 'config.json'}, which does not exist")
    if component == "text_encoder":
        return CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    model_class = {"unet": UNetMotionModel, "vae": AutoencoderKL}[component]
    return model_class.from_config(model_class.load_config(folder))


class HasParts(Protocol):
    """A pipeline, or the parts of one whose memory is counted."""

    unet: UNetMotionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    scheduler: DDIMScheduler


def prepare_denoiser(pipeline: HasParts, config: TrainConfig) -> Denoiser:
    """Installs the recipe's attention, freezes what it does not train, and wraps the rest as one module."""
    unet, model, method = pipeline.unet, config.model, config.method
    for module in (pipeline.vae, pipeline.text_encoder, unet):
        module.requires_grad_(False).eval()
    if config.data.height * config.data.width > 256**2:
        pipeline.vae.enable_slicing()  # encodes frame by frame: 16 frames of 512×512 at once take gigabytes
    install_pisa(unet, backend=model.attention_backend, reference_cross_attention=method.reference_cross_attention)
    if not method.pisa:
        _remove_pisa(unet)
    if method.lora.rank:
        add_lora(unet, method.lora, seed=config.seed)
    else:
        _choose_trained(unet, config)
    pipeline.text_encoder.requires_grad_(model.train_text_encoder)
    mode = checkpointing_mode(model.gradient_checkpointing)
    enable_checkpointing(unet, "blocks" if mode == "auto" else mode)
    if model.compile:
        unet.compile(dynamic=False)  # a run has few shapes and keeps them
    return Denoiser(
        unet,
        pipeline.text_encoder if model.train_text_encoder else None,
        pipeline.scheduler,
        method,
        autocast=config.precision == "autocast",
        offload_activations=model.offload_activations,
    )


def _choose_trained(unet: UNetMotionModel, config: TrainConfig) -> None:
    everything = config.task == "text" or config.method.train_all
    trained = None if everything else set(trainable_names(unet, config.method.update_motion))
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(trained is None or name in trained)


def _remove_pisa(unet: UNetMotionModel) -> None:
    """Table 3 without PISA: the reference meets the frames in temporal attention only."""
    for module in unet.modules():
        if isinstance(getattr(module, "processor", None), PisaAttnProcessor):
            module.set_processor(AttnProcessor2_0())
    drop_layout(unet)
