"""VideoMakerPipeline: diffusers' AnimateDiffPipeline with a reference image as one more, noise-free frame."""

# No `from __future__ import annotations` here: diffusers' from_pipe reads the constructor's types as classes.
from collections.abc import Callable, Iterable
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
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from videomaker.compiled.graphs import Bucket, CompileReport, compile_pipeline
from videomaker.compiled.sampler import Approximations
from videomaker.errors import InputError, check_counts, check_number
from videomaker.generation import MAX_FRAMES, GenerationDefaults

from . import checks
from .inputs import TRAINED_FRAMES, Generators, Images, Inputs, Open, callback_names, fill_in
from .latents import LatentsMixin
from .loading import LoadingMixin
from .posteriors import PosteriorCache
from .sampling import SamplingMixin
from .surface import SurfaceMixin
from .text import TextMixin
from .windows import Windows, plan_windows


class VideoMakerPipeline(SurfaceMixin, LoadingMixin, TextMixin, LatentsMixin, SamplingMixin, AnimateDiffPipeline):
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
            no negative prompt. More frames than fit the motion modules beside the references (32 positions for SD 1.5)
            are made in windows; sizes are multiples of the VAE's factor (8 for SD 1.5); guidance is w of eq. 6, one for
            all or a list of B, and none at 1 and below; the unconditional half hears the negative prompt and sees a
            reference of zeros.
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
        window_frames, window_overlap: frames of the overlapping windows in which a long video is made, and how many
            two neighbours share. None makes one window of what the motion modules take, else windows of as many
            frames as the model makes by itself, half of them shared; see `pipeline.windows`.

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
        checks.check_modes(attention_backend, reference_cross_attention=reference_cross_attention, use_pisa=use_pisa)
        self.register_modules(motion_adapter=None)
        self.register_to_config(
            attention_backend=attention_backend,
            reference_cross_attention=reference_cross_attention,
            use_pisa=use_pisa,
        )
        self.reference_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True)
        self.posteriors = PosteriorCache()
        self.approximations = Approximations()
        self.compiled = None
        self.generation_defaults = GenerationDefaults()
        self._guidance_scale, self._clip_skip, self._cross_attention_kwargs = 1.0, None, None
        self._interrupt = False
        self._unet_seen = lambda: None  # a weak reference, once there is a UNet
        self._install_pisa()

    def compile(self, buckets: Iterable[Bucket] | None = None, **options: Any) -> CompileReport:
        """Compiles the text encoder, the denoising step and the VAE decoder for declared shapes.

        Args:
            buckets: the shapes; by default that of a call that leaves everything open, with one picture.
            options: of `videomaker.compiled.compile_pipeline`.

        Raises:
            InputError: this pipeline cannot be compiled; the message says what to undo. It stays as it was.
        """
        self._check_parts("", None, "pil")
        return compile_pipeline(self, buckets or [self._default_bucket()], **options)

    def _default_bucket(self) -> Bucket:
        usual = self._settings(None, None, None, None, None, None, None)
        guided = isinstance(usual.guidance_scale, (int, float)) and usual.guidance_scale > 1
        return Bucket(usual.num_frames, usual.height, usual.width, guidance=guided)

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
        window_frames: int | None = None,
        window_overlap: int | None = None,
    ) -> AnimateDiffPipelineOutput | tuple:
        """Makes videos of a subject as `prompt` describes; the class says what each argument means.

        Returns:
            The videos: a list of lists of PIL images, or `[B, F, …]` as `output_type` says.

        Raises:
            InputError: an argument cannot be used; the message names the value and the remedy.
        """
        embeds, adapter = (prompt_embeds, negative_prompt_embeds), (ip_adapter_image, ip_adapter_image_embeds)
        self._check_parts(prompt, reference_image, output_type)
        checks.check_conditioning(self, cross_attention_kwargs, callback_on_step_end_tensor_inputs, *adapter)
        names = callback_names(callback_on_step_end, callback_on_step_end_tensor_inputs)
        settings = self._settings(
            num_frames, height, width, num_inference_steps, guidance_scale, negative_prompt, negative_prompt_embeds
        )
        checks.check_output(output_type, decode_chunk_size, callback_on_step_end)
        self._check_call(settings, num_videos_per_prompt, eta, prompt, embeds, adapter, names)
        self._cross_attention_kwargs, self._clip_skip, self._interrupt = cross_attention_kwargs, clip_skip, False
        pictures = (reference_image, reference_image_embeds)
        window = (window_frames, window_overlap)
        inputs = self._inputs(settings, prompt, embeds, pictures, num_videos_per_prompt, generator, latents, window)
        latents = self.denoise(
            *inputs,
            num_inference_steps=settings.num_inference_steps,
            step_kwargs=self.prepare_extra_step_kwargs(generator, eta),
            added_cond_kwargs=self._ip_adapter_conditioning(*adapter, len(inputs.noise)),
            callback=callback_on_step_end, callback_inputs=names, generator=generator,
        )  # fmt: skip
        video = self.decode(latents, output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        return AnimateDiffPipelineOutput(frames=video) if return_dict else (video,)

    def _settings(
        self,
        num_frames: int | None,
        height: int | None,
        width: int | None,
        num_inference_steps: int | None,
        guidance_scale: float | list[float] | None,
        negative_prompt: str | list[str] | None,
        negative_prompt_embeds: torch.Tensor | None,
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
        checks.check_processors(self.unet, use_pisa=self.config.use_pisa)
        checks.check_fit(self)
        checks.check_compute_dtypes(self.unet)

    def _check_call(
        self,
        settings: Open,
        num_videos_per_prompt: int,
        eta: float,
        prompt: Any,
        embeds: tuple[torch.Tensor | None, torch.Tensor | None],
        adapter: tuple[Any, Any],
        callback_inputs: list[str],
    ) -> None:
        prompt_embeds, negative_prompt_embeds = embeds
        checks.check_prompts(prompt, prompt_embeds)
        check_counts(
            num_frames=settings.num_frames,
            num_inference_steps=settings.num_inference_steps,
            num_videos_per_prompt=num_videos_per_prompt,
        )
        if settings.num_frames > MAX_FRAMES:  # in windows there is no other end
            raise InputError(f"num_frames is {settings.num_frames:,}; at most {MAX_FRAMES:,} are made at once")
        checks.check_sizes(self.vae_scale_factor, height=settings.height, width=settings.width)
        check_number("eta", eta, low=0)
        checks.check_scheduler(self.scheduler)
        checks.check_timesteps(self.scheduler, settings.num_inference_steps)
        # Ours have been checked; diffusers' own check refuses sizes by 8 alone, and shapes that can be made to fit.
        checks.refused_in_words(
            self.check_inputs, prompt, 8, 8, None, settings.negative_prompt,
            None if prompt is not None else prompt_embeds,
            negative_prompt_embeds if prompt is not None else None,
            *adapter, callback_inputs,
        )  # fmt: skip
        if prompt is not None and prompt_embeds is not None:
            raise InputError("give prompt or prompt_embeds, one of the two")
        if settings.negative_prompt is not None and negative_prompt_embeds is not None:
            raise InputError("give negative_prompt or negative_prompt_embeds, one of the two")

    def _windows(self, num_frames: int, num_references: int, size: int | None, overlap: int | None) -> Windows | None:
        trained = self.generation_defaults.num_frames or TRAINED_FRAMES
        limit = self.unet.config.motion_max_seq_length
        return plan_windows(num_frames, num_references, limit=limit, trained=trained, size=size, overlap=overlap)

    def _inputs(
        self,
        settings: Open,
        prompt: str | list[str] | None,
        embeds: tuple[torch.Tensor | None, torch.Tensor | None],
        pictures: tuple[Images | list[Images] | None, torch.Tensor | None],
        num_videos_per_prompt: int,
        generator: Generators | None,
        latents: torch.Tensor | None,
        window: tuple[int | None, int | None],
    ) -> Inputs:
        """What the denoising starts from; the frames' noise is drawn before the references'."""
        num_prompts = _num_prompts(prompt, embeds[0])
        width_of_text = self.unet.config.cross_attention_dim
        checks.check_negative(settings.negative_prompt, embeds[1], num_prompts, width_of_text)
        num_videos = num_prompts * num_videos_per_prompt
        guidance = self._prepare_guidance(settings.guidance_scale, num_prompts, num_videos_per_prompt)
        checks.check_generators(generator, num_videos)
        text = self.encode_text(prompt, num_videos_per_prompt, settings.negative_prompt, *embeds)
        noise = self._noise(settings, num_videos, generator, latents)
        reference = self.encode_reference(
            *pictures, prompt, num_prompts, num_videos_per_prompt, settings.height, settings.width, generator
        )
        windows = self._windows(settings.num_frames, reference.shape[2], *window)
        if windows is not None and latents is None:
            noise = windows.spread_noise(noise[:, :, : windows.size])
        return Inputs(noise, reference, text, guidance, windows)

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
        assert prompt_embeds is not None  # as `_check_call` made sure
        return prompt_embeds.shape[0]
    return len(prompt) if isinstance(prompt, list) else 1
