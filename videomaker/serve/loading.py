"""Which renderer a worker loads."""

from __future__ import annotations

from .config import ServeConfig
from .renderer import Renderer


def load_renderer(config: ServeConfig, device: str) -> Renderer:
    """The renderer of the settings, loaded on a device.

    Raises:
        InputError: the model or the device cannot be used.
    """
    # Late: the real one imports torch, which the fake one and the API do without.
    if config.renderer == "fake":
        from .fake import FakeRenderer

        return FakeRenderer(config, device)
    load_libraries()
    from .model_renderer import ModelRenderer

    return ModelRenderer(config, device)


def load_libraries() -> None:
    """Imports what the real renderer needs, which takes seconds."""
    from videomaker.jobs.quiet import quiet_libraries

    quiet_libraries()  # before they are imported, or their advice stands between the lines of the log
    from . import model_renderer  # noqa: F401
