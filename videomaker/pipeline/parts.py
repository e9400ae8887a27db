"""What every side of the pipeline stands on: diffusers' pipeline, and what ours keeps beside its parts."""

import weakref
from collections.abc import Callable
from typing import Any

from diffusers import AnimateDiffPipeline, UNetMotionModel
from diffusers.image_processor import VaeImageProcessor

from videomaker.compiled.graphs import CompiledPipeline
from videomaker.compiled.sampler import Approximations
from videomaker.generation import GenerationDefaults

from .posteriors import PosteriorCache


class Parts(AnimateDiffPipeline):
    """The attributes that `VideoMakerPipeline`'s constructor sets."""

    unet: UNetMotionModel
    reference_processor: VaeImageProcessor
    posteriors: PosteriorCache
    approximations: Approximations
    compiled: CompiledPipeline | None
    generation_defaults: GenerationDefaults
    _guidance_scale: float
    _clip_skip: int | None
    _cross_attention_kwargs: dict[str, Any] | None
    _interrupt: bool
    _unet_seen: weakref.ref[Any] | Callable[[], None]
