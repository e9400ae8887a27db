"""VideoMakerPipeline: diffusers' AnimateDiffPipeline with a reference image as one more, noise-free frame."""

from .loading import ANIMATEDIFF_SCHEDULE
from .pipeline import VideoMakerPipeline

__all__ = ["ANIMATEDIFF_SCHEDULE", "VideoMakerPipeline"]
