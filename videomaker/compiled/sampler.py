"""The steps of one pass over a schedule, each one call of the static step.

Letters: B videos, C channels, F frames, R references, H heads of size D, N tokens of a frame, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin, UNetMotionModel

from videomaker.errors import InputError, check_counts, check_number

from .processors import TextStates, project_text


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
        check_number("guidance_until", self.guidance_until, low=0)
        check_counts(reuse_every=self.reuse_every)
        if self.guidance_until > 1:
            raise InputError(f"guidance_until is {self.guidance_until}; it is a fraction of the steps, 0 to 1")


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
        self._prediction = torch.tensor([0.0, 1.0], device=reference.device)
        if self._linear:
            self._weights = ddim_weights(scheduler, timesteps).to(reference.device)
        self._text: torch.Tensor | None = None
        self._states: TextStates | None = None
        self._inner: torch.Tensor | None = None

    def __call__(
        self, index: int, latents: torch.Tensor, text: torch.Tensor, guidance: torch.Tensor | None
    ) -> torch.Tensor:
        """Latents `[B, C, F, h, w]` after step `index`, for text and guidance as in `denoising.guided_noise`."""
        if self._linear:
            return self._advance(index, latents, self._weights[index], text, guidance)
        output = self.predict(index, latents, text, guidance)
        return self._scheduler.step(output, self._timesteps[index], latents, **self._step_kwargs).prev_sample

    def predict(
        self, index: int, latents: torch.Tensor, text: torch.Tensor, guidance: torch.Tensor | None
    ) -> torch.Tensor:
        """The guided prediction of step `index`; the scheduler's update is left to the caller."""
        scaled = self._scheduler.scale_model_input(latents, self._timesteps[index])
        return self._advance(index, scaled, self._prediction, text, guidance)

    def _advance(
        self,
        index: int,
        latents: torch.Tensor,
        weights: torch.Tensor,
        text: torch.Tensor,
        guidance: torch.Tensor | None,
    ) -> torch.Tensor:
        if text is not self._text:
            self._text, self._states, self._inner = text, project_text(self._unet, text), None
        output, self._inner = self._run(
            latents,
            self._reference,
            self._timesteps[index].float().reshape(1).to(latents.device),
            weights,
            guidance,
            self._states,
            self._inner if index % self._reuse_every else None,
            self._reuse_every > 1,
        )
        return output


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
