"""VideoMaker: a subject, given as one picture, in a video described by a prompt (arXiv 2412.19645).

Importing this package loads nothing heavy: names resolve on first use.
"""

from __future__ import annotations

from importlib import import_module, resources
from pathlib import Path

__version__ = "0.1.0"

_EXPORTS = {
    "Approximations": "videomaker.compiled",
    "Bucket": "videomaker.compiled",
    "InputError": "videomaker.errors",
    "ReferenceAttnProcessor": "videomaker.attention",
    "ReferenceBank": "videomaker.attention",
    "SharedStyle": "videomaker.attention",
    "VideoMakerPipeline": "videomaker.pipeline",
    "install_attention": "videomaker.attention",
    "install_pisa": "videomaker.attention",
    "install_reference_attention": "videomaker.attention",
    "install_style_aligned": "videomaker.attention",
    "pisa_attention": "videomaker.kernels",
    "predict_noise": "videomaker.denoising",
    "reference_attention": "videomaker.kernels",
}
__all__ = ["__version__", "default_model_path", *_EXPORTS]


def default_model_path() -> Path:
    """The folder of the embedded default model, in the diffusers format."""
    return Path(str(resources.files(__name__))) / "default_model"


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
