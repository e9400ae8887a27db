"""VideoMakerPipeline: diffusers' AnimateDiffPipeline with a reference image as one more, noise-free frame."""

# No `from __future__ import annotations` here: diffusers' from_pipe reads the constructor's types as classes.
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    MotionAdapter,
    PNDMScheduler,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.pipelines.animatediff.pipeline_output import AnimateDiffPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from videomaker.compiled.graphs import Bucket, CompiledPipeline, CompileReport, compile_pipeline
from videomaker.compiled.sampler import Approximations
from videomaker.compiled.step import decode_pictures
from videomaker.errors import InputError
from videomaker.generation import FILE, GenerationDefaults, read_generation_defaults
from videomaker.model_files import check_model_files
from videomaker.weights import CoverageReport, load_into, load_text_encoder, read_state_dict

from . import checks
from .inputs import Generators, Images, Open, callback_names, fill_in
from .memory import frames_at_once
from .posteriors import PosteriorCache
from .references import preprocess, references_per_prompt
from .sampling import SamplingMixin
from .surface import SurfaceMixin, load_adapter, set_schedule
from .text import TextMixin

logger = logging.getLogger(__name__)


class VideoMakerPipeline(SurfaceMixin, TextMixin, SamplingMixin, AnimateDiffPipeline):
    """Subject-driven text-to-video without training per subject (https://arxiv.org/abs/2412.19645).

    Constructed like diffusers' `AnimateDiffPipeline`, whose loading, offloading, LoRA, IP-Adapter and VAE methods it
    keeps; `docs/surface.md` lists every method and argument. Constructing it installs the PISA processors on the
    spatial `attn1` layers of the UNet.

    Args:
        vae, text_encoder, tokenizer, unet, motion_adapter, scheduler, feature_extractor, image_encoder:
            as in `AnimateDiffPipeline`. The motion adapter's weights move into the UNet; it is not kept twice.
        attention_backend: of `videomaker.kernels.pisa_attention`.
        reference_cross_attention: whether the reference takes part in text cross-attention (a row of Table 3).
        use_pisa: False leaves the UNet's own self-attention, which does not see the reference (a row of Table 3).

    Call arguments, all but the first two optional:
        prompt: one prompt or a list of B; or give `prompt_embeds`.
        reference_image: the subject. With one prompt: one picture, or several of the same subject. With a list of
            prompts: one picture for all, or a list of B, each a picture or a list of pictures. A picture is a path, a
            PIL image (turned as its EXIF says, transparency over white), an array `[H, W, C]` or a tensor
            `[C, H, W]`, of uint8 in 0..255 or floating in 0..1; a batch of those, `[P, …]`, is the list of them.
            Pictures are resized to `height` × `width`.
        num_frames, height, width, num_inference_steps, guidance_scale, negative_prompt: None is what the model's
            `generation.json` says, else 16 frames in the size that the UNet was trained for, 30 steps, guidance 8 and
            no negative prompt. F frames and their references fit the motion modules (32 positions for SD 1.5); sizes
            are multiples of the VAE's factor (8 for SD 1.5); guidance is w of eq. 6, one for all or a list of B, and
            none at 1 and below; the unconditional half hears the negative prompt and sees a reference of zeros.
        num_videos_per_prompt: videos of each prompt.
        eta: of DDIM.
        generator: the only source of randomness: the frames' noise as AnimateDiff draws it, then the sample of the
            reference; or a list, one for each video, which then come out as if made alone.
        latents: initial noise `[B·num_videos, C, F, height/8, width/8]`.
        reference_image_embeds: scaled VAE latents in place of pictures, `[B or 1, C, R, height/8, width/8]`.
        prompt_embeds, negative_prompt_embeds: `[B, L, E]`; the negative may have one row for all.
        ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs, clip_skip: as in diffusers.
        output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
        return_dict: whether to return an `AnimateDiffPipelineOutput` rather than a tuple.
        callback_on_step_end, callback_on_step_end_tensor_inputs: as in diffusers; see `SamplingMixin._run_callback`.
        decode_chunk_size: most frames that the VAE decodes at once; None goes by the free memory.

    Attributes:
        approximations: opt-in trades of exactness for speed, exact by default.
        compiled: what `compile` made, or None.
        generation_defaults: what the model's `generation.json` says; a call takes what it leaves open from there.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel | UNetMotionModel,
        motion_adapter: MotionAdapter,
        scheduler: (
            DDIMScheduler
            | PNDMScheduler
            | LMSDiscreteScheduler
            | EulerDiscreteScheduler
            | EulerAncestralDiscreteScheduler
            | DPMSolverMultistepScheduler
        ),
        feature_extractor: CLIPImageProcessor = None,
        image_encoder: CLIPVisionModelWithProjection = None,
        attention_backend: str = "auto",
        reference_cross_attention: bool = True,
        use_pisa: bool = True,
    ):
        super().__init__(
            vae, text_encoder, tokenizer, unet, motion_adapter, scheduler, feature_extractor, image_encoder
        )
        self.register_modules(motion_adapter=None)
        self.register_to_config(
            attention_backend=attention_backend,
            reference_cross_attention=reference_cross_attention,
            use_pisa=use_pisa,
        )
        self.reference_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True)
        self.posteriors = PosteriorCache()
        self.approximations = Approximations()
        self.compiled: CompiledPipeline | None = None
        self.generation_defaults = GenerationDefaults()
        self._guidance_scale, self._clip_skip, self._cross_attention_kwargs = 1.0, None, None
        self._interrupt = False
        self._unet_seen = lambda: None  # a weak reference, once there is a UNet
        self._install_pisa()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "VideoMakerPipeline":
        """Loads a saved VideoMaker folder, or an SD 1.5 base when `motion_adapter` (a folder or a module) is given.

        A base gets AnimateDiff's DDIM schedule unless `scheduler` is given. Other arguments are those of diffusers'
        `DiffusionPipeline.from_pretrained`.

        Raises:
            InputError: a part of the folder is absent, was not fetched, or lacks tensors.
        """
        folder = Path(pretrained_model_name_or_path)
        if (folder / "model_index.json").is_file():
            check_model_files(folder, given=kwargs.keys())
        if "text_encoder" not in kwargs and (folder / "text_encoder").is_dir():
            kwargs["text_encoder"] = load_text_encoder(
                folder / "text_encoder", dtype=_text_dtype(kwargs), variant=kwargs.get("variant")
            )
        load_adapter(kwargs, kwargs.get("torch_dtype", kwargs.get("dtype")))
        pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        set_schedule(pipe, kwargs)
        pipe.generation_defaults = read_generation_defaults(folder)
        return pipe

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, with the model's `generation.json`."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.generation_defaults.given():
            Path(save_directory, FILE).write_text(self.generation_defaults.model_dump_json(exclude_none=True, indent=2))

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
        checks.check_components(self, dict.fromkeys(("unet", "vae", "text_encoder", "tokenizer"), True))
        side = self.unet.config.sample_size * self.vae_scale_factor
        return compile_pipeline(self, buckets or [Bucket(height=side, width=side)], **options)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        reference_image: Images | list[Images] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | list[float] | None = None,
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
        """Makes videos of a subject as `prompt` describes; the class says what each argument means.

        Returns:
            The videos: a list of lists of PIL images, or `[B, F, …]` as `output_type` says.

        Raises:
            InputError: an argument cannot be used; the message names the value and the remedy.
        """
        self._check_parts(prompt, reference_image, output_type)
        extras = (cross_attention_kwargs, callback_on_step_end_tensor_inputs, ip_adapter_image, ip_adapter_image_embeds)
        checks.check_conditioning(self, *extras)
        names = callback_names(callback_on_step_end, callback_on_step_end_tensor_inputs)
        settings = self._settings(
            num_frames, height, width, num_inference_steps, guidance_scale, negative_prompt, negative_prompt_embeds
        )
        checks.check_output(output_type, decode_chunk_size, callback_on_step_end)
        self._check_call(
            settings, num_videos_per_prompt, eta, prompt, prompt_embeds, negative_prompt_embeds,
            ip_adapter_image, ip_adapter_image_embeds, names,
        )  # fmt: skip
        self._cross_attention_kwargs, self._clip_skip, self._interrupt = cross_attention_kwargs, clip_skip, False
        num_prompts = _num_prompts(prompt, prompt_embeds)
        width_of_text = self.unet.config.cross_attention_dim
        checks.check_negative(settings.negative_prompt, negative_prompt_embeds, num_prompts, width_of_text)
        num_videos = num_prompts * num_videos_per_prompt
        guidance = self._prepare_guidance(settings.guidance_scale, num_prompts, num_videos_per_prompt)
        checks.check_generators(generator, num_videos)
        texts = (settings.negative_prompt, prompt_embeds, negative_prompt_embeds)
        text = self.encode_text(prompt, num_videos_per_prompt, *texts)
        noise = self._noise(settings, num_videos, generator, latents)
        pictures = (reference_image, reference_image_embeds, prompt, num_prompts, num_videos_per_prompt)
        reference = self.encode_reference(*pictures, settings.height, settings.width, generator)
        self._check_length(settings.num_frames, reference.shape[2])
        latents = self.denoise(
            noise, reference, text, guidance,
            num_inference_steps=settings.num_inference_steps,
            step_kwargs=self.prepare_extra_step_kwargs(generator, eta),
            added_cond_kwargs=self._ip_adapter_conditioning(ip_adapter_image, ip_adapter_image_embeds, num_videos),
            callback=callback_on_step_end, callback_inputs=names, generator=generator,
        )  # fmt: skip
        video = self.decode(latents, output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        return AnimateDiffPipelineOutput(frames=video) if return_dict else (video,)

    def _settings(
        self, num_frames, height, width, num_inference_steps, guidance_scale, negative_prompt, negative_prompt_embeds
    ) -> Open:
        asked = {
            "num_frames": num_frames, "height": height, "width": width, "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale, "negative_prompt": negative_prompt,
        }  # fmt: skip
        defaults = self.generation_defaults.given()
        if negative_prompt_embeds is not None:
            defaults.pop("negative_prompt", None)
        return fill_in(self.unet.config.sample_size * self.vae_scale_factor, defaults, asked)

    def _check_parts(self, prompt: Any, reference_image: Any, output_type: str | None) -> None:
        text = prompt is not None
        pixels = reference_image is not None or output_type != "latent"
        checks.check_components(
            self, {"unet": True, "scheduler": True, "vae": pixels, "text_encoder": text, "tokenizer": text}
        )
        if self.config.use_pisa:
            self._adopt_unet()
            checks.check_processors(self.unet)
        checks.check_compute_dtypes(self.unet)

    def _check_call(
        self, settings, num_videos_per_prompt, eta, prompt, prompt_embeds, negative_prompt_embeds,
        ip_adapter_image, ip_adapter_image_embeds, callback_inputs,
    ) -> None:  # fmt: skip
        checks.check_prompts(prompt, prompt_embeds)
        checks.check_counts(
            num_frames=settings.num_frames,
            num_inference_steps=settings.num_inference_steps,
            num_videos_per_prompt=num_videos_per_prompt,
        )
        checks.check_sizes(self.vae_scale_factor, height=settings.height, width=settings.width)
        checks.check_number("eta", eta, low=0)
        # Ours have been checked; diffusers' own check refuses sizes by 8 alone, and shapes that can be made to fit.
        checks.refused_in_words(
            self.check_inputs, prompt, 8, 8, None, settings.negative_prompt,
            None if prompt is not None else prompt_embeds,
            negative_prompt_embeds if prompt is not None else None,
            ip_adapter_image, ip_adapter_image_embeds, callback_inputs,
        )  # fmt: skip
        if prompt is not None and prompt_embeds is not None:
            raise InputError("give prompt or prompt_embeds, one of the two")
        if settings.negative_prompt is not None and negative_prompt_embeds is not None:
            raise InputError("give negative_prompt or negative_prompt_embeds, one of the two")

    def _check_length(self, num_frames: int, num_references: int) -> None:
        limit = self.unet.config.motion_max_seq_length
        if num_frames + num_references > limit:
            raise InputError(
                f"{num_frames} frames and {num_references} references are more than the {limit} positions of the "
                f"motion modules; use at most {limit - num_references} frames"
            )

    def _noise(
        self, settings: Open, num_videos: int, generator: Generators | None, latents: torch.Tensor | None
    ) -> torch.Tensor:
        """The frames' noise, drawn before the reference's: a seed gives AnimateDiff's own, with any references."""
        channels, frames, factor = self.unet.config.in_channels, settings.num_frames, self.vae_scale_factor
        size = (settings.height // factor, settings.width // factor)
        if latents is not None:
            checks.check_tensor("latents", latents, (num_videos, channels, frames, *size))
            latents = latents.to(self.unet.dtype)
        return self.prepare_latents(
            num_videos, channels, frames, settings.height, settings.width, self.unet.dtype,
            self._execution_device, generator, latents,
        )  # fmt: skip

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
        device, dtype, factor = self._execution_device, self.unet.dtype, self.vae_scale_factor
        if reference_image_embeds is not None:
            shape = ((1, num_prompts), self.unet.config.in_channels, None, height // factor, width // factor)
            checks.check_tensor("reference_image_embeds", reference_image_embeds, shape)
            reference = reference_image_embeds.to(device, dtype).expand(num_prompts, -1, -1, -1, -1)
            return reference.repeat_interleave(num_videos_per_prompt, dim=0)
        batched = isinstance(prompt, list) or (prompt is None and num_prompts > 1)
        references = references_per_prompt(reference_image, batched, num_prompts)
        pixels = preprocess(self.reference_processor, list(chain.from_iterable(references)), height, width)
        mean, std = (
            x.unflatten(0, (num_prompts, -1)).transpose(1, 2).repeat_interleave(num_videos_per_prompt, dim=0)
            for x in self.posteriors(self.vae, pixels, device)
        )
        noise = randn_tensor(mean.shape, generator=generator, device=device, dtype=mean.dtype)
        return ((mean + std * noise) * self.vae.config.scaling_factor).to(dtype)

    def decode(self, latents: torch.Tensor, output_type: str | None = "pil", chunk_size: int | None = None) -> Any:
        """Frames from latents `[B, C, F, h, w]`, as `output_type` says; `"latent"` gives them back.

        Raises:
            InputError: the numbers overflowed and would be black pictures; arrays and tensors are given with a warning.
        """
        if output_type == "latent":
            return latents
        video = self.decode_latents(latents.to(self.vae.dtype), chunk_size)
        if not video.isfinite().all():
            message = (
                f"the model's numbers overflow in {self.unet.dtype} or the VAE's {self.vae.dtype}: use a wider dtype"
            )
            if output_type == "pil":
                raise InputError(message)
            logger.warning(message)
        return self.video_processor.postprocess_video(video=video, output_type=output_type)

    def decode_latents(self, latents: torch.Tensor, decode_chunk_size: int | None = None) -> torch.Tensor:
        """Pictures `[B, 3, F, H, W]` in float32 from latents `[B, C, F, h, w]`, decoded in equal chunks of frames."""
        rows = (latents / self.vae.config.scaling_factor).transpose(1, 2).flatten(0, 1)
        size = decode_chunk_size or frames_at_once(self.vae, rows)
        size = max(n for n in range(1, min(size, len(rows)) + 1) if len(rows) % n == 0)
        decode = partial(decode_pictures, self.vae) if self.compiled is None else self.compiled.decode
        pictures = torch.cat([decode(chunk).float() for chunk in rows.split(size)])
        return pictures.unflatten(0, (latents.shape[0], -1)).transpose(1, 2)

    def _ip_adapter_conditioning(self, image: Any, image_embeds: Any, num_videos: int) -> dict[str, Any] | None:
        if image is None and image_embeds is None:
            return None
        return {
            "image_embeds": self.prepare_ip_adapter_image_embeds(
                image, image_embeds, self._execution_device, num_videos, self.do_classifier_free_guidance
            )
        }


def _num_prompts(prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None) -> int:
    if prompt is None:
        return prompt_embeds.shape[0]
    return len(prompt) if isinstance(prompt, list) else 1


def _text_dtype(options: dict[str, Any]) -> torch.dtype:
    """The dtype that diffusers would load the text encoder in; transformers would take that of the file."""
    asked = options.get("torch_dtype") or options.get("dtype") or torch.float32
    return asked.get("text_encoder", asked.get("default", torch.float32)) if isinstance(asked, dict) else asked
