"""From noise to latents: the loop over the schedule, and the callbacks that may change it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from videomaker.compiled.processors import prepare_unet
from videomaker.compiled.sampler import Approximations, StaticSampler
from videomaker.compiled.step import denoising_step
from videomaker.denoising import guided_noise
from videomaker.errors import InputError, check_number

from .checks import check_tensor
from .inputs import Generators
from .parts import Parts
from .windows import Windows

# (index of the step, latents, text, guidance) -> latents; text and guidance as in `denoising.guided_noise`
Step = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class State(NamedTuple):
    """What goes from step to step: latents `[B, C, F, h, w]`, text `[2B or B, L, E]`, guidance `[B, 1, 1, 1, 1]`."""

    latents: torch.Tensor
    text: torch.Tensor
    guidance: torch.Tensor | None

    def unguided(self) -> "State":
        """Without the unconditional half."""
        return self if self.guidance is None else State(self.latents, self.text.chunk(2)[1], None)


class SamplingMixin(Parts):
    """The denoising loop: eager, or through static steps where the pipeline can be."""

    def denoise(
        self,
        latents: torch.Tensor,
        reference: torch.Tensor,
        text: torch.Tensor,
        guidance: torch.Tensor | None,
        windows: Windows | None = None,
        *,
        num_inference_steps: int,
        step_kwargs: dict[str, Any],
        added_cond_kwargs: dict[str, Any] | None = None,
        callback: Callable | None = None,
        callback_inputs: Sequence[str] = (),
        generator: Generators | None = None,
    ) -> torch.Tensor:
        """From noise to the frames' latents `[B, C, F, h, w]`; the reference comes in clean at every step."""
        device = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        rounds = self._free_init_num_iters if self.free_init_enabled else 1
        scale: float = self.guidance_scale
        for iteration in range(rounds):
            self._guidance_scale = scale  # which a callback of the round before may have changed
            if self.free_init_enabled:
                latents, timesteps = self._apply_free_init(
                    latents, iteration, num_inference_steps, device, latents.dtype, generator
                )
            sampler = self._sampler(timesteps, reference, step_kwargs, added_cond_kwargs)
            step = sampler if windows is None else self._windowed(windows, sampler, timesteps, step_kwargs)
            state = State(latents, text, guidance)
            latents = self._denoise_once(step, timesteps, state, callback, callback_inputs)
        return latents

    def _denoise_once(
        self, step: Step, timesteps: torch.Tensor, state: State, callback: Callable | None, names: Sequence[str]
    ) -> torch.Tensor:
        self._num_timesteps = len(timesteps)
        guided_steps = math.ceil(self.approximations.guidance_until * len(timesteps))
        for i, t in enumerate(self.progress_bar(timesteps)):
            if self.interrupt:
                break
            if i == guided_steps:
                state = state.unguided()
            state = state._replace(latents=step(i, *state))
            if callback is not None:
                state = self._run_callback(callback, names, i, t, state)
        return state.latents

    def _sampler(
        self,
        timesteps: torch.Tensor,
        reference: torch.Tensor,
        step_kwargs: dict[str, Any],
        added_cond_kwargs: dict[str, Any] | None,
    ) -> "StaticSampler | EagerSampler":
        """What makes one step, static where the pipeline can be."""
        reuse_every = self.approximations.reuse_every
        adapted = added_cond_kwargs is not None or bool(self.cross_attention_kwargs)
        if adapted and self.approximations != Approximations():
            raise InputError("approximations do not go with an IP-Adapter or cross_attention_kwargs; leave one out")
        if (self.compiled is None and reuse_every == 1) or adapted:
            return EagerSampler(self, timesteps, reference, step_kwargs, added_cond_kwargs)
        prepare_unet(self.unet)
        run = partial(denoising_step, self.unet) if self.compiled is None else self.compiled.step
        return StaticSampler(
            self.unet, self.scheduler, timesteps, reference, step_kwargs, run=run, reuse_every=reuse_every
        )

    def _windowed(
        self,
        windows: Windows,
        sampler: "StaticSampler | EagerSampler",
        timesteps: torch.Tensor,
        step_kwargs: dict[str, Any],
    ) -> Step:
        """What makes one step of a video in windows: their predictions fused, then the scheduler's update."""
        if self.approximations.reuse_every > 1:
            raise InputError(
                "approximations.reuse_every keeps the features of one window: leave it at 1 for a long video"
            )
        predict = windows.fuse(sampler.predict)

        def step(index: int, latents: torch.Tensor, text: torch.Tensor, guidance: torch.Tensor | None) -> torch.Tensor:
            output = predict(index, latents, text, guidance)
            return self.scheduler.step(output, timesteps[index], latents, **step_kwargs).prev_sample

        return step

    def _run_callback(
        self, callback: Callable, names: Sequence[str], step: int, t: torch.Tensor, state: State
    ) -> State:
        """Runs `callback` as diffusers does: it sees the named tensors and may return others in their place.

        Under guidance `prompt_embeds` are both halves, the negative first, as in diffusers. A callback that sets the
        pipeline's `_guidance_scale` changes the guidance from the next step on; at 1 and below it ends.
        """
        scale = self._guidance_scale
        negative = state.text.chunk(2)[0] if state.guidance is not None else None
        seen = {"latents": state.latents, "prompt_embeds": state.text, "negative_prompt_embeds": negative}
        changed = callback(self, step, t, {name: seen[name] for name in names})
        if not isinstance(changed, dict):
            raise InputError(
                f"callback_on_step_end returned a {type(changed).__name__}; return the tensors it was given"
            )
        new = {name: value for name, value in changed.items() if name in seen and value is not seen[name]}
        if "latents" in new:
            state = state._replace(latents=_returned("latents", new["latents"], state.latents))
        if self._guidance_scale != scale:
            check_number("guidance_scale, as the callback set it,", self._guidance_scale)
            state = self._with_scale(state)
        if "prompt_embeds" in new:
            state = state._replace(text=_new_text(_returned("prompt_embeds", new["prompt_embeds"], state.text), state))
        if new.get("negative_prompt_embeds") is not None and state.guidance is not None:
            text = state.text.chunk(2)[1]
            negative = _returned("negative_prompt_embeds", new["negative_prompt_embeds"], text)
            state = state._replace(text=torch.cat([negative.expand(len(text), -1, -1), text]))
        return state

    def _with_scale(self, state: State) -> State:
        if self._guidance_scale <= 1:
            return state.unguided()
        if state.guidance is None:
            raise InputError("a callback cannot begin guidance once it has ended: start with guidance_scale above 1")
        return state._replace(guidance=torch.full_like(state.guidance, self._guidance_scale))

    def _prepare_guidance(
        self, scale: float | list[float], num_prompts: int, num_videos_per_prompt: int
    ) -> torch.Tensor | None:
        """Guidance scales as `[B, 1, 1, 1, 1]`, or None when no video asks for guidance."""
        scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * num_prompts
        if len(scales) != num_prompts:
            raise InputError(f"{len(scales)} guidance scales for {num_prompts} prompts; give one, or one for each")
        for one in scales:
            check_number("guidance_scale", one)
        self._guidance_scale = max(scales)
        if not self.do_classifier_free_guidance:
            return None
        dtype = torch.promote_types(self.unet.dtype, torch.float32)  # bfloat16 would make 8.125 of 8.1
        guidance = torch.tensor(scales, device=self._execution_device, dtype=dtype)
        return guidance.clamp(min=1).repeat_interleave(num_videos_per_prompt).view(-1, 1, 1, 1, 1)


@dataclass(frozen=True)
class EagerSampler:
    """The steps of one pass over a schedule, for everything that a pipeline can be asked.

    Args:
        pipe: its UNet and its scheduler, after `set_timesteps`.
        timesteps: `[S]`.
        reference: `[B, C, R, h, w]`.
        step_kwargs: further arguments of the scheduler's `step`.
        added_cond_kwargs: as in diffusers, such as IP-Adapter's `image_embeds`.
    """

    pipe: Any
    timesteps: torch.Tensor
    reference: torch.Tensor
    step_kwargs: dict[str, Any]
    added_cond_kwargs: dict[str, Any] | None

    def __call__(
        self, index: int, latents: torch.Tensor, text: torch.Tensor, guidance: torch.Tensor | None
    ) -> torch.Tensor:
        """Latents `[B, C, F, h, w]` after step `index`, for text and guidance as in `denoising.guided_noise`."""
        output = self.predict(index, latents, text, guidance)
        return self.pipe.scheduler.step(output, self.timesteps[index], latents, **self.step_kwargs).prev_sample

    def predict(
        self, index: int, latents: torch.Tensor, text: torch.Tensor, guidance: torch.Tensor | None
    ) -> torch.Tensor:
        """The guided prediction of step `index`; the scheduler's update is left to the caller."""
        t, added = self.timesteps[index], self.added_cond_kwargs
        if added is not None and guidance is None:
            added = _conditional_half(added, len(latents))
        return guided_noise(
            self.pipe.unet, self.pipe.scheduler.scale_model_input(latents, t), self.reference, t, text, guidance,
            cross_attention_kwargs=self.pipe.cross_attention_kwargs, added_cond_kwargs=added,
        )  # fmt: skip


def _returned(name: str, value: Any, before: torch.Tensor) -> torch.Tensor:
    """What a callback put in place of `before`, in its dtype; prompts may be for other rows, see `_new_text`."""
    rows = {"latents": len(before), "negative_prompt_embeds": (1, len(before))}.get(name)
    check_tensor(f"{name} that callback_on_step_end returned", value, (rows, *before.shape[1:]))
    return value.to(before)


def _new_text(text: torch.Tensor, state: State) -> torch.Tensor:
    """Embeddings that a callback returned, for both halves under guidance, else for the prompts alone."""
    rows, videos = len(text), len(state.latents)
    if state.guidance is None:
        if rows == 1:  # diffusers' cut-off callbacks keep the last row alone, which is right for one video
            return state.text if torch.equal(text, state.text[-1:]) else text.expand(videos, -1, -1)
        if rows in (videos, 2 * videos):
            return text[-videos:]
    elif rows == 2 * videos:
        return text
    elif rows == videos:
        return torch.cat([state.text.chunk(2)[0], text])
    raise InputError(f"callback_on_step_end returned prompt_embeds for {rows} videos, there are {videos}")


def _conditional_half(added_cond_kwargs: dict[str, Any], num_videos: int) -> dict[str, Any]:
    """An IP-Adapter's embeddings after guidance has ended."""
    embeds = [x if len(x) == num_videos else x.chunk(2)[1] for x in added_cond_kwargs["image_embeds"]]
    return {**added_cond_kwargs, "image_embeds": embeds}
