"""One denoising step as a pure function of tensors with static shapes: what `videomaker.compiled` compiles.

The maths is that of `denoising.guided_noise` and DDIM. What does not change over the steps is computed once for all of
them (the text's keys and values), what does not differ between rows once for all rows (the time embedding), and numbers
come in as tensors, so that no prompt, guidance scale or number of steps asks for another graph.

Letters: B videos, C channels, F frames, R references, H heads of size D, N tokens of a frame, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL, DDIMScheduler, SchedulerMixin, UNetMotionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from .attention import fuse_pisa_projections, fused_projections, is_spatial_self_attention
from .denoising import apply_guidance
from .errors import InputError

TextStates = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Approximations:
    """Less work for other numbers; every default is exact.

    Args:
        guidance_until: the fraction of the steps that are guided; the rest run without the unconditional half.
        reuse_every: the inner blocks of the UNet run at every k-th step only, the steps between them take the inner
            blocks' last output (DeepCache, https://arxiv.org/abs/2312.00858). 1 runs them always.
    """

    guidance_until: float = 1.0
    reuse_every: int = 1

    def __post_init__(self):
        if not 0 <= self.guidance_until <= 1:
            raise InputError(f"guidance_until is {self.guidance_until}; it is a fraction of the steps, 0 to 1")
        if self.reuse_every < 1:
            raise InputError(f"reuse_every is {self.reuse_every}; it must be at least 1")


class TextAttnProcessor(AttnProcessor2_0):
    """Text cross-attention of all frames of a video as one sequence: they share the text, so nothing is repeated.

    Given text embeddings in place of keys and values, it does what the processor that it replaced does.
    """

    def __init__(self, name: str, replaced: AttnProcessor2_0):
        super().__init__()
        self.name = name
        self.replaced = replaced

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | TextStates | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Maps hidden states `[B·(F+R), N, C]` to the same shape; the text is that of `project_text`."""
        if not isinstance(encoder_hidden_states, dict):
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask=attention_mask, **kwargs)
        key, value = encoder_hidden_states[self.name]  # [B, H, L, D] each
        rows = hidden_states.unflatten(0, (key.shape[0], -1))
        layout = getattr(self.replaced, "layout", None)  # of FramesOnlyCrossAttnProcessor
        frames = rows if layout is None else rows[:, : layout.num_frames]
        query = attn.to_q(frames.flatten(1, 2)).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        attended = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2))).view_as(frames)
        if layout is not None:
            attended = torch.cat([attended, rows[:, layout.num_frames :]], dim=1)
        return attended.flatten(0, 1)


class FusedSelfAttnProcessor(AttnProcessor2_0):
    """Self-attention of the motion modules over the frames of one pixel, with one product for query, key and value."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Maps hidden states `[B·N, F+R, C]` to the same shape."""
        if encoder_hidden_states is not None or attention_mask is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        query, key, value = (x.transpose(1, 2) for x in fused_projections(attn, hidden_states))
        attended = functional.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))


def prepare_unet(unet: UNetMotionModel) -> None:
    """Gives `unet` the processors of the static step; eager passes keep their numbers. Safe to call again.

    Raises:
        InputError: the UNet has other attention than ours and diffusers' own, such as an IP-Adapter's.
    """
    fuse_pisa_projections(unet)
    for name, attn in _attention_layers(unet):
        ready = isinstance(attn.processor, (TextAttnProcessor, FusedSelfAttnProcessor))
        if ready or is_spatial_self_attention(name):
            continue
        if not isinstance(attn.processor, AttnProcessor2_0):
            kind = type(attn.processor).__name__
            raise InputError(f"{kind} cannot be compiled; unload adapters before compiling")
        in_motion = "motion_modules" in name.split(".")
        attn.set_processor(FusedSelfAttnProcessor() if in_motion else TextAttnProcessor(name, attn.processor))


def project_text(unet: UNetMotionModel, text: torch.Tensor) -> TextStates:
    """Keys and values of all text cross-attentions, `[2, B, H, L, D]` each, from embeddings `[B, L, E]`."""
    return {
        name: torch.stack([attn.to_k(text), attn.to_v(text)]).unflatten(-1, (attn.heads, -1)).transpose(2, 3)
        for name, attn in _attention_layers(unet)
        if isinstance(attn.processor, TextAttnProcessor)
    }


def _attention_layers(unet: UNetMotionModel) -> list[tuple[str, Attention]]:
    return [(name, module) for name, module in unet.named_modules() if isinstance(module, Attention)]


def unet_forward(
    unet: UNetMotionModel,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    text: TextStates,
    inner: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`UNetMotionModel.forward` for one timestep of all rows.

    Args:
        unet: with the processors of `prepare_unet`.
        sample: `[B, C, F+R, h, w]`.
        timestep: `[1]`.
        text: of `project_text`.
        inner: what the inner blocks gave at an earlier step; they do not run again then.

    Returns:
        The prediction `[B, C, F+R, h, w]`, and the inner blocks' output.
    """
    rows_per_video = sample.shape[2]
    shared = {"temb": unet.time_embedding(unet.time_proj(timestep).to(sample.dtype)), "num_frames": rows_per_video}
    hidden = unet.conv_in(sample.transpose(1, 2).flatten(0, 1))
    skips = [hidden]
    for block in unet.down_blocks if inner is None else unet.down_blocks[:1]:
        hidden, outputs = block(hidden, **shared, **_text_argument(block, text))
        skips += outputs
    if inner is None:
        inner = _inner_half(unet, hidden, skips, shared, text)
    block = unet.up_blocks[-1]
    outer_skips = tuple(skips[: len(block.resnets)])
    hidden = block(inner, res_hidden_states_tuple=outer_skips, **shared, **_text_argument(block, text))
    hidden = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    return hidden.unflatten(0, (-1, rows_per_video)).transpose(1, 2), inner


def _inner_half(
    unet: UNetMotionModel, hidden: torch.Tensor, skips: list[torch.Tensor], shared: dict[str, Any], text: TextStates
) -> torch.Tensor:
    """The middle and all but the last of the upward blocks."""
    if unet.mid_block is not None:
        motion = shared if hasattr(unet.mid_block, "motion_modules") else {"temb": shared["temb"]}
        hidden = unet.mid_block(hidden, encoder_hidden_states=text, **motion)
    end = len(skips)
    for block in unet.up_blocks[:-1]:
        start = end - len(block.resnets)
        hidden = block(
            hidden,
            res_hidden_states_tuple=tuple(skips[start:end]),
            upsample_size=skips[start - 1].shape[2:],
            **shared,
            **_text_argument(block, text),
        )
        end = start
    return hidden


def _text_argument(block: torch.nn.Module, text: TextStates) -> dict[str, TextStates]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


def denoising_step(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    reference: torch.Tensor,
    timestep: torch.Tensor,
    weights: torch.Tensor,
    guidance: torch.Tensor | None,
    text: TextStates,
    inner: torch.Tensor | None = None,
    keep_inner: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The guided prediction (eq. 6) and the scheduler's update, `weights[0]·latents + weights[1]·prediction`.

    Args:
        unet: as in `unet_forward`.
        latents: `[B, C, F, h, w]`.
        reference: `[B, C, R, h, w]`, clean.
        timestep: `[1]`.
        weights: `[2]` in float32; `(0, 1)` gives the prediction itself.
        guidance: `[B, 1, 1, 1, 1]`, or None for no guidance, which costs half.
        text: of `project_text`; with guidance for 2B videos, the negative prompts first.
        inner: as in `unet_forward`.
        keep_inner: whether to return the inner blocks' output, which is large, rather than None.

    Returns:
        The updated latents, contiguous, and the inner blocks' output.
    """
    num_frames = latents.shape[2]
    sample = torch.cat([latents, reference], dim=2)
    if guidance is not None:
        sample = torch.cat([torch.cat([latents, torch.zeros_like(reference)], dim=2), sample])
    unet.pisa_layout.announce(num_frames, reference.shape[2])
    noise, inner = unet_forward(unet, sample, timestep, text, inner)
    unet.pisa_layout.announce(0, 0)
    noise = noise[:, :, :num_frames].float()
    if guidance is not None:
        noise = apply_guidance(noise, guidance)
    updated = (weights[0] * latents.float() + weights[1] * noise).to(latents.dtype)
    return updated.contiguous(), inner if keep_inner else None


class StaticSampler:
    """The steps of one pass over a schedule: keeps what stays the same from step to step.

    Args:
        unet: of `prepare_unet`.
        scheduler: after `set_timesteps`. DDIM's update runs inside the step, any other scheduler's after it.
        timesteps: `[S]`.
        reference: `[B, C, R, h, w]`.
        step_kwargs: further arguments of the scheduler's `step`.
        run: `denoising_step` with the UNet bound, compiled or not.
        reuse_every: of `Approximations`.
    """

    def __init__(
        self,
        unet: UNetMotionModel,
        scheduler: SchedulerMixin,
        timesteps: torch.Tensor,
        reference: torch.Tensor,
        step_kwargs: dict[str, Any],
        *,
        run: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
        reuse_every: int = 1,
    ):
        self._unet, self._scheduler, self._run = unet, scheduler, run
        self._timesteps, self._reference, self._step_kwargs = timesteps, reference, step_kwargs
        self._reuse_every = reuse_every
        self._linear = _is_linear_ddim(scheduler, step_kwargs)
        weights = ddim_weights(scheduler, timesteps) if self._linear else torch.tensor([[0.0, 1.0]] * len(timesteps))
        self._weights = weights.to(reference.device)
        self._text = self._states = self._inner = None

    def __call__(
        self, index: int, latents: torch.Tensor, text: torch.Tensor, guidance: torch.Tensor | None
    ) -> torch.Tensor:
        """Latents `[B, C, F, h, w]` after step `index`, for text and guidance as in `denoising.guided_noise`."""
        if text is not self._text:
            self._text, self._states, self._inner = text, project_text(self._unet, text), None
        t = self._timesteps[index]
        output, self._inner = self._run(
            latents if self._linear else self._scheduler.scale_model_input(latents, t),
            self._reference,
            t.float().reshape(1).to(latents.device),
            self._weights[index],
            guidance,
            self._states,
            self._inner if index % self._reuse_every else None,
            self._reuse_every > 1,
        )
        if self._linear:
            return output
        return self._scheduler.step(output, t, latents, **self._step_kwargs).prev_sample


def _is_linear_ddim(scheduler: SchedulerMixin, step_kwargs: dict[str, Any]) -> bool:
    """Whether the scheduler's update is DDIM's without noise or clipping, linear in the latents and the prediction."""
    config = scheduler.config
    nonlinear = config.get("clip_sample") or config.get("thresholding")
    return isinstance(scheduler, DDIMScheduler) and not (nonlinear or step_kwargs.get("eta"))


def ddim_weights(scheduler: DDIMScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """Weights `[S, 2]` of `x_t` and the prediction in `x_{t-1}`, one row a step (arXiv 2010.02502, eq. 12)."""
    timesteps = timesteps.cpu()
    previous = timesteps - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alphas = scheduler.alphas_cumprod.double().cpu()
    last = scheduler.final_alpha_cumprod.double()
    signal = alphas[timesteps].sqrt()
    signal_before = torch.where(previous >= 0, alphas[previous.clamp(min=0)], last).sqrt()
    noise, noise_before = (1 - signal**2).sqrt(), (1 - signal_before**2).sqrt()
    zero, one = torch.zeros_like(signal), torch.ones_like(signal)
    clean_part, noise_part = {  # x_0 and ε, each as weights of x_t and the prediction
        "epsilon": ((1 / signal, -noise / signal), (zero, one)),
        "sample": ((zero, one), (1 / noise, -signal / noise)),
        "v_prediction": ((signal, -noise), (noise, signal)),
    }[scheduler.config.prediction_type]
    weights = [signal_before * x + noise_before * e for x, e in zip(clean_part, noise_part, strict=True)]
    return torch.stack(weights, dim=1).float()


def decode_pictures(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Pictures `[B·F, 3, H, W]` from unscaled latents `[B·F, C, h, w]`."""
    return vae.decode(latents, return_dict=False)[0]
