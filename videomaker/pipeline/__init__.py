"""VideoMakerPipeline: diffusers' AnimateDiffPipeline with a reference image as one more, noise-free frame."""

from .pipeline import ANIMATEDIFF_SCHEDULE, VideoMakerPipeline

__all__ = ["ANIMATEDIFF_SCHEDULE", "VideoMakerPipeline"]
