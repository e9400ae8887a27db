"""What one training step computes: the random draws, the noised inputs and the losses. Pure functions.

Letters: B clips, C latent channels, F frames, R references, H×W latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from videomaker.data.encode import generator

from .config import MethodConfig


@dataclass(frozen=True)
class Draws:
    """The randomness of a micro-batch. Every clip's part depends only on (seed, its place in the run)."""

    timestep: torch.Tensor  # [B], int64
    noise: torch.Tensor  # [B, C, F, H, W]
    reference_noise: torch.Tensor  # [B, C, R, H, W]
    drop_text: torch.Tensor  # [B], bool
    drop_image: torch.Tensor  # [B], bool


def draw(
    method: MethodConfig,
    latent_shape: Sequence[int],
    reference_shape: Sequence[int],
    *,
    keys: Sequence[tuple[int, ...]],
    num_train_timesteps: int,
    device: torch.device,
) -> Draws:
    """The draws of the clips `keys` = (seed, position in the run), in fp32.

    Args:
        method: the drop rates and the kind of reference noise.
        latent_shape: `(C, F, H, W)` of one clip.
        reference_shape: `(C, R, H, W)` of its references.
        keys: one per clip.
        num_train_timesteps: of the noise schedule; t lies below it.
        device: where the draws live. A GPU's stream differs from the CPU's.
    """
    clips = [_draw_one(method, latent_shape, reference_shape, key, num_train_timesteps, device) for key in keys]
    return Draws(*(torch.stack(parts) for parts in zip(*clips, strict=True)))


def _draw_one(method, latent_shape, reference_shape, key, num_train_timesteps, device) -> tuple[torch.Tensor, ...]:
    source = generator(device, "draw", *key)
    timestep = _draw_timestep(method.timesteps, num_train_timesteps, source, device)
    noise = torch.randn(*latent_shape, generator=source, device=device)
    reference_noise = torch.randn(*reference_shape, generator=source, device=device)
    if method.reference_noise == "mean":
        reference_noise = noise.mean(dim=1, keepdim=True).expand(*reference_shape)
    chance = torch.rand((), generator=source, device=device)
    text_end = method.drop_text
    image_end = text_end + method.drop_image
    both_end = image_end + method.drop_both
    drop_both = (image_end <= chance) & (chance < both_end)
    drop_text = (chance < text_end) | drop_both
    drop_image = ((text_end <= chance) & (chance < image_end)) | drop_both
    if method.offset_noise:
        noise = noise + method.offset_noise * torch.randn(latent_shape[0], 1, 1, 1, generator=source, device=device)
    return timestep, noise, reference_noise, drop_text, drop_image


def _draw_timestep(kind: str, num_train_timesteps: int, source: torch.Generator, device: torch.device) -> torch.Tensor:
    """One timestep; the cubic is that of T2I-Adapter (arXiv 2302.08453)."""
    if kind == "uniform":
        return torch.randint(num_train_timesteps, (), generator=source, device=device)
    if kind == "logit_normal":
        share = torch.randn((), generator=source, device=device).sigmoid()
    else:
        share = torch.rand((), generator=source, device=device) ** 3
        share = 1 - share if kind == "late" else share
    return (share * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


def add_noise(
    clean: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """`λ_t·clean + sqrt(1 − λ_t²)·noise`, `λ_t² = ᾱ_t`, per clip; `clean` and `noise` `[B, …]`, `timestep` `[B]`."""
    signal = alphas_cumprod[timestep].view(-1, *(1,) * (clean.ndim - 1))
    return signal.sqrt() * clean + (1 - signal).sqrt() * noise


def girl_timestep(timestep: torch.Tensor, alpha: float) -> torch.Tensor:
    """The reference's own, far smaller timestep `t' = int(α·t)` (arXiv 2412.19645, section 4.3), per clip."""
    return (timestep.double() * alpha).long()  # double: as Python's int(α·t)


def target(
    prediction_type: str,
    clean: torch.Tensor,
    noise: torch.Tensor,
    timestep: torch.Tensor,
    alphas_cumprod: torch.Tensor,
) -> torch.Tensor:
    """What the model predicts: the noise, the clean sample, or the velocity `λ_t·noise − sqrt(1 − λ_t²)·clean`.

    The velocity is that of arXiv 2202.00512.
    """
    if prediction_type != "v_prediction":
        return {"epsilon": noise, "sample": clean}[prediction_type]
    signal = alphas_cumprod[timestep].view(-1, *(1,) * (clean.ndim - 1))
    return signal.sqrt() * noise - (1 - signal).sqrt() * clean


def min_snr_weight(
    prediction_type: str, timestep: torch.Tensor, gamma: float, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """Weights `[B]` of the video loss: min(SNR, γ) on the clean sample (arXiv 2303.09556); γ = 0 leaves it as it is."""
    if gamma == 0:
        return torch.ones_like(timestep, dtype=alphas_cumprod.dtype)
    snr = alphas_cumprod[timestep] / (1 - alphas_cumprod[timestep])
    # What a squared error of the clean sample becomes in the prediction.
    factors = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}
    return snr.clamp(max=gamma) / factors[prediction_type]


def losses(
    method: MethodConfig,
    *,
    video: tuple[torch.Tensor, torch.Tensor],
    reference: tuple[torch.Tensor, torch.Tensor] | None,
    weight: torch.Tensor,
    drop_image: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """`L = L_video + β·L_reg` (eq. 3-5) as "loss", and its parts, in the targets' dtype.

    A clip whose reference was dropped has none to predict: it adds zero to `L_reg`, and still counts in the mean, so
    that the split of a batch over devices changes nothing.

    Args:
        method: β.
        video: prediction and target, `[B, C, F, H, W]`.
        reference: prediction and target, `[B, C, R, H, W]`; `None` without references.
        weight: of each clip's video loss, `[B]`.
        drop_image: clips whose reference was dropped, `[B]`.
    """
    video_loss = (_per_clip_mse(*video) * weight).mean()
    if reference is None:
        return {"loss": video_loss, "video": video_loss}
    reference_loss = (_per_clip_mse(*reference) * ~drop_image).mean()
    return {
        "loss": video_loss + method.girl_weight * reference_loss,
        "video": video_loss,
        "reference": reference_loss,
    }


def _per_clip_mse(prediction: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(prediction.to(wanted.dtype), wanted, reduction="none").flatten(1).mean(dim=1)
