"""VideoMakerPipeline: diffusers' AnimateDiffPipeline with a reference image as one more, noise-free frame."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.pipelines.animatediff.pipeline_output import AnimateDiffPipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from videomaker.attention import install_pisa
from videomaker.compiled.graphs import Bucket, CompiledPipeline, CompileReport, compile_pipeline
from videomaker.compiled.processors import prepare_unet
from videomaker.compiled.sampler import Approximations, StaticSampler
from videomaker.compiled.step import decode_pictures, denoising_step
from videomaker.denoising import guided_noise
from videomaker.errors import InputError
from videomaker.weights import CoverageReport, load_into, load_text_encoder, read_state_dict

from .inputs import Generators, Images, check_generators, one_for_each, references_per_prompt
from .memory import frames_at_once
from .posteriors import PosteriorCache

# AnimateDiff's schedule for SD 1.5 (https://arxiv.org/abs/2307.04725), which the paper keeps.
ANIMATEDIFF_SCHEDULE = {
    "clip_sample": False,
    "timestep_spacing": "linspace",
    "beta_schedule": "linear",
    "steps_offset": 1,
}

# (index of the step, latents, text, guidance) -> latents; text and guidance as in `denoising.guided_noise`
Step = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class VideoMakerPipeline(AnimateDiffPipeline):
    """Subject-driven text-to-video without training per subject (https://arxiv.org/abs/2412.19645).

    Constructed like diffusers' `AnimateDiffPipeline`, whose loading, offloading, LoRA, IP-Adapter and VAE methods it
    keeps. Constructing it installs the PISA processors on the spatial `attn1` layers of the UNet.

    Args:
        vae, text_encoder, tokenizer, unet, motion_adapter, scheduler, feature_extractor, image_encoder:
            as in `AnimateDiffPipeline`. The motion adapter's weights move into the UNet; it is not kept twice.
        attention_backend: of `videomaker.kernels.pisa_attention`.
        reference_cross_attention: whether the reference takes part in text cross-attention (a row of Table 3).

    Attributes:
        approximations: opt-in trades of exactness for speed, exact by default.
        compiled: what `compile` made, or None.
    """

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        motion_adapter,
        scheduler,
        feature_extractor=None,
        image_encoder=None,
        attention_backend: str = "auto",
        reference_cross_attention: bool = True,
    ):
        super().__init__(
            vae, text_encoder, tokenizer, unet, motion_adapter, scheduler, feature_extractor, image_encoder
        )
        self.register_modules(motion_adapter=None)
        self.register_to_config(
            attention_backend=attention_backend, reference_cross_attention=reference_cross_attention
        )
        self.reference_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True)
        self.posteriors = PosteriorCache()
        self.approximations = Approximations()
        self.compiled: CompiledPipeline | None = None
        self._install_pisa()

    def _install_pisa(self) -> None:
        install_pisa(
            self.unet,
            backend=self.config.attention_backend,
            reference_cross_attention=self.config.reference_cross_attention,
        )

    @contextmanager
    def _default_processors(self) -> Iterator[None]:
        """For diffusers' code that makes every processor anew from its class, without arguments."""
        self.unet.set_attn_processor(AttnProcessor2_0())
        try:
            yield
        finally:
            self._install_pisa()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> VideoMakerPipeline:
        """Loads a saved VideoMaker folder, or an SD 1.5 base when `motion_adapter` (a folder or a module) is given.

        A base gets AnimateDiff's DDIM schedule unless `scheduler` is given. Other arguments are those of diffusers'
        `DiffusionPipeline.from_pretrained`.

        Raises:
            InputError: the text encoder's file lacks tensors.
        """
        adapter = kwargs.get("motion_adapter")
        dtype = {name: kwargs[name] for name in ("torch_dtype", "dtype") if name in kwargs}
        text_encoder = Path(pretrained_model_name_or_path, "text_encoder")
        if "text_encoder" not in kwargs and text_encoder.is_dir():
            kwargs["text_encoder"] = load_text_encoder(
                text_encoder, dtype=_text_dtype(kwargs), variant=kwargs.get("variant")
            )
        if isinstance(adapter, (str, os.PathLike)):
            kwargs["motion_adapter"] = MotionAdapter.from_pretrained(adapter, **dtype)
        pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if adapter is not None and "scheduler" not in kwargs:
            pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **ANIMATEDIFF_SCHEDULE)
        return pipe

    def load_videomaker_weights(self, path: str | os.PathLike) -> CoverageReport:
        """Loads a published or own checkpoint into the UNet, full or partial, `.safetensors` or `.bin`.

        Returns:
            How many of the expected tensors the checkpoint held.

        Raises:
            InputError: the checkpoint cannot be read, holds none of the trained tensors, or does not fit the UNet.
        """
        return load_into(self.unet, read_state_dict(path))

    def compile(self, buckets: Iterable[Bucket] | None = None, **options: Any) -> CompileReport:
        """Compiles the text encoder, the denoising step and the VAE decoder for declared shapes.

        Args:
            buckets: the shapes; by default one video of 16 frames in the size that the UNet was trained for.
            options: of `videomaker.compiled.compile_pipeline`.

        Raises:
            InputError: this pipeline cannot be compiled; the message says what to undo.
        """
        side = self.unet.config.sample_size * self.vae_scale_factor
        return compile_pipeline(self, buckets or [Bucket(height=side, width=side)], **options)

    def load_ip_adapter(self, *args, **kwargs) -> None:
        """As in diffusers; the PISA layers stay as they are."""
        if not self.config.reference_cross_attention:
            raise InputError("an IP-Adapter needs reference_cross_attention=True, this pipeline was made with False")
        with self._default_processors():
            super().load_ip_adapter(*args, **kwargs)

    def unload_ip_adapter(self) -> None:
        """As in diffusers; the PISA layers stay as they are."""
        with self._default_processors():
            super().unload_ip_adapter()

    def enable_free_noise(self, *args, **kwargs) -> None:
        """Not available: FreeNoise slides a window over the frames, and the reference has no place in it."""
        raise NotImplementedError("FreeNoise does not go with a reference frame; generate at most 31 frames at once")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        reference_image: Images | list[Images] | None = None,
        num_frames: int = 16,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float | list[float] = 8.0,
        negative_prompt: str | list[str] | None = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: torch.Tensor | None = None,
        reference_image_embeds: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        decode_chunk_size: int | None = None,
    ) -> AnimateDiffPipelineOutput | tuple:
        """Makes videos of the subject in `reference_image` as `prompt` describes.

        Args:
            prompt: one prompt or a list of B; or give `prompt_embeds`.
            reference_image: the subject. With one prompt: one picture, or a list of pictures of the same subject. With
                a list of prompts: one picture for all, or a list of B, each a picture or a list of pictures.
                Pictures are resized to `height` × `width`; tensors and arrays are as in diffusers' image processor.
            num_frames: F; frames and references together fit the motion modules (32 positions for SD 1.5).
            height, width: in pixels, multiples of the VAE's factor (8 for SD 1.5); default as the UNet was trained.
            num_inference_steps: steps of the scheduler.
            guidance_scale: w of eq. 6, one for all or a list of B; at 1 and below there is no guidance.
            negative_prompt: what the unconditional half hears; its reference is all zeros.
            num_videos_per_prompt: videos of each prompt.
            eta: of DDIM.
            generator: the only source of randomness: the frames' noise as AnimateDiff draws it, then the sample of
                the reference; or a list, one for each video, which then come out as if made alone.
            latents: initial noise `[B·num_videos, C, F, height/8, width/8]`.
            reference_image_embeds: scaled VAE latents in place of pictures, `[B or 1, C, R, height/8, width/8]`.
            prompt_embeds, negative_prompt_embeds: `[B, L, E]`.
            ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs, clip_skip: as in diffusers.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: whether to return an `AnimateDiffPipelineOutput` rather than a tuple.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in diffusers.
            decode_chunk_size: most frames that the VAE decodes at once; None goes by the free memory.

        Returns:
            The videos: a list of lists of PIL images, or `[B, F, …]` as `output_type` says.

        Raises:
            InputError: an argument cannot be used; the message names the value and the remedy.
        """
        height = height or self.unet.config.sample_size * self.vae_scale_factor
        width = width or self.unet.config.sample_size * self.vae_scale_factor
        tensor_inputs = (
            ["latents"] if callback_on_step_end_tensor_inputs is None else callback_on_step_end_tensor_inputs
        )
        self._check_inputs(prompt, prompt_embeds, height, width, num_frames, num_inference_steps, num_videos_per_prompt)
        self.check_inputs(
            prompt, height, width, None, negative_prompt, prompt_embeds, negative_prompt_embeds,
            ip_adapter_image, ip_adapter_image_embeds, tensor_inputs,
        )  # fmt: skip
        self._cross_attention_kwargs = cross_attention_kwargs
        self._clip_skip = clip_skip
        self._interrupt = False

        num_prompts = self._num_prompts(prompt, prompt_embeds)
        num_videos = num_prompts * num_videos_per_prompt
        guidance = self._prepare_guidance(guidance_scale, num_prompts, num_videos_per_prompt)
        check_generators(generator, num_videos)

        text = self.encode_text(prompt, num_videos_per_prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        # The frames' noise comes first: a seed gives AnimateDiff's own, with any number of references.
        noise = self.prepare_latents(
            num_videos, self.unet.config.in_channels, num_frames, height, width,
            text.dtype, self._execution_device, generator, latents,
        )  # fmt: skip
        reference = self.encode_reference(
            reference_image, reference_image_embeds, prompt, num_prompts, num_videos_per_prompt,
            height, width, generator,
        )  # fmt: skip
        self._check_length(num_frames, reference.shape[2])
        latents = self.denoise(
            noise, reference, text, guidance,
            num_inference_steps=num_inference_steps,
            step_kwargs=self.prepare_extra_step_kwargs(generator, eta),
            added_cond_kwargs=self._ip_adapter_conditioning(ip_adapter_image, ip_adapter_image_embeds, num_videos),
            callback=callback_on_step_end,
            callback_inputs=tensor_inputs,
            generator=generator,
        )  # fmt: skip
        video = self.decode(latents, output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        return AnimateDiffPipelineOutput(frames=video) if return_dict else (video,)

    def encode_text(
        self,
        prompt: str | list[str] | None,
        num_videos_per_prompt: int = 1,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Text embeddings: `[2B, L, E]` under guidance, the negative prompts first; else `[B, L, E]`."""
        text, negative = prompt_embeds, negative_prompt_embeds
        if text is None:
            prompts = prompt if isinstance(prompt, list) else [prompt]
            text = self._encode_prompts(prompts, self.clip_skip)
        if self.do_classifier_free_guidance and negative is None:
            negative = self._encode_prompts(one_for_each(negative_prompt or "", len(text)), clip_skip=None)
        halves = [negative, text] if self.do_classifier_free_guidance else [text]
        dtype = (self.text_encoder or self.unet).dtype
        embeds = [half.to(self._execution_device, dtype) for half in halves]
        return torch.cat([half.repeat_interleave(num_videos_per_prompt, dim=0) for half in embeds])

    def _encode_prompts(self, prompts: list[str], clip_skip: int | None) -> torch.Tensor:
        """Embeddings `[B, L, E]`. Each different prompt is encoded once and alone: the same numbers in any batch."""
        lora_scale = (self.cross_attention_kwargs or {}).get("scale")
        encode = partial(
            self.encode_prompt,
            device=self._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            lora_scale=lora_scale,
            clip_skip=clip_skip,
        )
        # Skipping layers asks the text encoder for other outputs, which is not what was compiled.
        eager = torch.compiler.set_stance("force_eager") if clip_skip else nullcontext()
        with eager:
            embeds = {text: encode(text)[0] for text in dict.fromkeys(prompts)}
        return torch.cat([embeds[text] for text in prompts])

    def encode_reference(
        self,
        reference_image: Images | list[Images] | None,
        reference_image_embeds: torch.Tensor | None,
        prompt: str | list[str] | None,
        num_prompts: int,
        num_videos_per_prompt: int,
        height: int,
        width: int,
        generator: Generators | None,
    ) -> torch.Tensor:
        """The references' scaled VAE latents, `[B, C, R, h, w]`: a sample of the posterior drawn with `generator`."""
        if (reference_image is None) == (reference_image_embeds is None):
            raise InputError("give the subject as reference_image or as reference_image_embeds, one of the two")
        device, dtype = self._execution_device, self.unet.dtype
        if reference_image_embeds is not None:
            self._check_reference_embeds(reference_image_embeds, num_prompts, height, width)
            reference = reference_image_embeds.to(device, dtype).expand(num_prompts, -1, -1, -1, -1)
            return reference.repeat_interleave(num_videos_per_prompt, dim=0)
        references = references_per_prompt(reference_image, isinstance(prompt, list), num_prompts)
        pixels = self.reference_processor.preprocess(list(chain.from_iterable(references)), height, width)
        mean, std = (
            x.unflatten(0, (num_prompts, -1)).transpose(1, 2).repeat_interleave(num_videos_per_prompt, dim=0)
            for x in self.posteriors(self.vae, pixels, device)
        )
        noise = randn_tensor(mean.shape, generator=generator, device=device, dtype=mean.dtype)
        return ((mean + std * noise) * self.vae.config.scaling_factor).to(dtype)

    def denoise(
        self,
        latents: torch.Tensor,
        reference: torch.Tensor,
        text: torch.Tensor,
        guidance: torch.Tensor | None,
        *,
        num_inference_steps: int,
        step_kwargs: dict[str, Any],
        added_cond_kwargs: dict[str, Any] | None = None,
        callback: Callable | None = None,
        callback_inputs: list[str] = (),
        generator: Generators | None = None,
    ) -> torch.Tensor:
        """From noise to the frames' latents `[B, C, F, h, w]`; the reference comes in clean at every step."""
        device = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        rounds = self._free_init_num_iters if self.free_init_enabled else 1
        for iteration in range(rounds):
            if self.free_init_enabled:
                latents, timesteps = self._apply_free_init(
                    latents, iteration, num_inference_steps, device, latents.dtype, generator
                )
            step = self._sampler(timesteps, reference, step_kwargs, added_cond_kwargs)
            latents = self._denoise_once(step, timesteps, latents, text, guidance, callback, callback_inputs)
        return latents

    def _denoise_once(
        self, step: Step, timesteps, latents, text, guidance, callback: Callable | None, callback_inputs: list[str]
    ) -> torch.Tensor:
        self._num_timesteps = len(timesteps)
        guided_steps = math.ceil(self.approximations.guidance_until * len(timesteps))
        for i, t in enumerate(self.progress_bar(timesteps)):
            if self.interrupt:
                break
            if i == guided_steps and guidance is not None:
                text, guidance = text.chunk(2)[1], None
            latents = step(i, latents, text, guidance)
            if callback is not None:
                guided = guidance is not None
                latents, text = self._run_callback(callback, callback_inputs, i, t, latents, text, guided)
        return latents

    def _sampler(
        self,
        timesteps: torch.Tensor,
        reference: torch.Tensor,
        step_kwargs: dict[str, Any],
        added_cond_kwargs: dict[str, Any] | None,
    ) -> Step:
        """What makes one step, static where the pipeline can be."""
        reuse_every = self.approximations.reuse_every
        adapted = added_cond_kwargs is not None or bool(self.cross_attention_kwargs)
        if adapted and self.approximations != Approximations():
            raise InputError("approximations do not go with an IP-Adapter or cross_attention_kwargs; leave one out")
        if (self.compiled is None and reuse_every == 1) or adapted:
            return partial(self._eager_step, timesteps, reference, step_kwargs, added_cond_kwargs)
        prepare_unet(self.unet)
        run = partial(denoising_step, self.unet) if self.compiled is None else self.compiled.step
        return StaticSampler(
            self.unet, self.scheduler, timesteps, reference, step_kwargs, run=run, reuse_every=reuse_every
        )

    def _eager_step(
        self, timesteps, reference, step_kwargs, added_cond_kwargs, index: int, latents, text, guidance
    ) -> torch.Tensor:
        t = timesteps[index]
        noise = guided_noise(
            self.unet, self.scheduler.scale_model_input(latents, t), reference, t, text, guidance,
            cross_attention_kwargs=self.cross_attention_kwargs, added_cond_kwargs=added_cond_kwargs,
        )  # fmt: skip
        return self.scheduler.step(noise, t, latents, **step_kwargs).prev_sample

    def decode(self, latents: torch.Tensor, output_type: str | None = "pil", chunk_size: int | None = None):
        """Frames from latents `[B, C, F, h, w]`, as `output_type` says; `"latent"` gives them back."""
        if output_type == "latent":
            return latents
        video = self.decode_latents(latents.to(self.vae.dtype), chunk_size)
        return self.video_processor.postprocess_video(video=video, output_type=output_type)

    def decode_latents(self, latents: torch.Tensor, decode_chunk_size: int | None = None) -> torch.Tensor:
        """Pictures `[B, 3, F, H, W]` in float32 from latents `[B, C, F, h, w]`, decoded in equal chunks of frames."""
        rows = (latents / self.vae.config.scaling_factor).transpose(1, 2).flatten(0, 1)
        size = decode_chunk_size or frames_at_once(self.vae, rows)
        size = max(n for n in range(1, min(size, len(rows)) + 1) if len(rows) % n == 0)
        decode = partial(decode_pictures, self.vae) if self.compiled is None else self.compiled.decode
        pictures = torch.cat([decode(chunk).float() for chunk in rows.split(size)])
        return pictures.unflatten(0, (latents.shape[0], -1)).transpose(1, 2)

    def _run_callback(self, callback: Callable, names: list[str], step: int, t, latents, text, guided: bool):
        """Runs `callback` as diffusers does: it sees the named tensors and may return others in their place."""
        negative, positive = text.chunk(2) if guided else (None, text)
        tensors = {"latents": latents, "prompt_embeds": positive, "negative_prompt_embeds": negative}
        changed = callback(self, step, t, {name: tensors[name] for name in names})
        if not {"prompt_embeds", "negative_prompt_embeds"} & {*names, *changed}:
            return changed.get("latents", latents), text
        tensors.update({name: changed[name] for name in tensors if name in changed})
        halves = (tensors["negative_prompt_embeds"], tensors["prompt_embeds"])
        return tensors["latents"], torch.cat(halves) if guided else halves[1]

    def _prepare_guidance(self, scale: float | list[float], num_prompts: int, num_videos_per_prompt: int):
        """Guidance scales as `[B, 1, 1, 1, 1]`, or None when no video asks for guidance."""
        scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * num_prompts
        if len(scales) != num_prompts:
            raise InputError(f"{len(scales)} guidance scales for {num_prompts} prompts; give one, or one for each")
        self._guidance_scale = max(scales)
        if not self.do_classifier_free_guidance:
            return None
        guidance = torch.tensor(scales, device=self._execution_device, dtype=self.unet.dtype)
        return guidance.clamp(min=1).repeat_interleave(num_videos_per_prompt).view(-1, 1, 1, 1, 1)

    def _ip_adapter_conditioning(self, image, image_embeds, num_videos: int) -> dict[str, Any] | None:
        if image is None and image_embeds is None:
            return None
        return {
            "image_embeds": self.prepare_ip_adapter_image_embeds(
                image, image_embeds, self._execution_device, num_videos, self.do_classifier_free_guidance
            )
        }

    @staticmethod
    def _num_prompts(prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None) -> int:
        if prompt is None:
            return prompt_embeds.shape[0]
        return len(prompt) if isinstance(prompt, list) else 1

    def _check_inputs(
        self,
        prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        height: int,
        width: int,
        num_frames: int,
        num_inference_steps: int,
        num_videos_per_prompt: int,
    ) -> None:
        if prompt is None and prompt_embeds is None:
            raise InputError("give a prompt or prompt_embeds")
        prompts = prompt if isinstance(prompt, list) else [] if prompt is None else [prompt]
        if isinstance(prompt, list) and not prompts:
            raise InputError("the list of prompts is empty; give at least one")
        if empty := [text for text in prompts if not str(text).strip()]:
            raise InputError(f"prompt {empty[0]!r} is empty; describe the video in a few words")
        counts = {
            "num_frames": num_frames,
            "num_inference_steps": num_inference_steps,
            "num_videos_per_prompt": num_videos_per_prompt,
        }
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        for name, value in (("height", height), ("width", width)):
            if value < 1 or value % self.vae_scale_factor:
                raise InputError(f"{name} is {value}; it must be a positive multiple of {self.vae_scale_factor}")

    def _check_length(self, num_frames: int, num_references: int) -> None:
        limit = self.unet.config.motion_max_seq_length
        if num_frames + num_references > limit:
            raise InputError(
                f"{num_frames} frames and {num_references} references are more than the {limit} positions of the "
                f"motion modules; use at most {limit - num_references} frames"
            )

    def _check_reference_embeds(self, embeds: torch.Tensor, num_prompts: int, height: int, width: int) -> None:
        factor, channels = self.vae_scale_factor, self.unet.config.in_channels
        fits = (
            embeds.ndim == 5
            and embeds.shape[0] in (1, num_prompts)
            and embeds.shape[1] == channels
            and tuple(embeds.shape[3:]) == (height // factor, width // factor)
        )
        if not fits:
            raise InputError(
                f"reference_image_embeds has shape {tuple(embeds.shape)}; it must be "
                f"[1 or {num_prompts}, {channels}, references, {height // factor}, {width // factor}]"
            )


def _text_dtype(options: dict[str, Any]) -> torch.dtype:
    """The dtype that diffusers would load the text encoder in; transformers would take that of the file."""
    asked = options.get("torch_dtype") or options.get("dtype") or torch.float32
    return asked.get("text_encoder", asked.get("default", torch.float32)) if isinstance(asked, dict) else asked
