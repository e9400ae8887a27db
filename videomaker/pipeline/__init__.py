"""VideoMakerPipeline: diffusers' AnimateDiffPipeline with a reference image as one more, noise-free frame."""

from .pipeline import VideoMakerPipeline
from .surface import ANIMATEDIFF_SCHEDULE

__all__ = ["ANIMATEDIFF_SCHEDULE", "VideoMakerPipeline"]
