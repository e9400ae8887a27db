"""Pictures to latents and back: the frames' noise, the references' encoding, the decoding."""

import logging
from functools import partial
from itertools import chain
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from videomaker.compiled.step import decode_pictures
from videomaker.errors import InputError

from . import checks
from .inputs import Generators, Images, Open
from .memory import frames_at_once
from .parts import Parts
from .references import preprocess, references_per_prompt

logger = logging.getLogger(__name__)


class LatentsMixin(Parts):
    """What stands on the VAE."""

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
            shape = ((1, num_prompts), self.unet.config.in_channels, ..., height // factor, width // factor)
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
            if not latents.isfinite().all():
                logger.warning("the latents hold numbers that are not finite: use a wider dtype than %s", latents.dtype)
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
        if self.compiled is not None and not decode_chunk_size:  # whatever is free now, the graphs have their shapes
            size = self.compiled.chunks.setdefault(rows.shape, size)
        size = max(n for n in range(1, min(size, len(rows)) + 1) if len(rows) % n == 0)
        decode = partial(decode_pictures, self.vae) if self.compiled is None else self.compiled.decode
        pictures = torch.cat([decode(chunk).float() for chunk in rows.split(size)])
        return pictures.unflatten(0, (latents.shape[0], -1)).transpose(1, 2)
