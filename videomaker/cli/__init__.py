"""The command line: thin commands over the library. Heavy modules load inside them, so that help is quick."""

from . import generate, models, evaluate, evaluate_sprites, serving, working, provenance, data  # noqa: F401, I001  each adds its commands, in the order of the help
from .app import app

__all__ = ["app", "main"]


def main() -> None:
    """The console script `videomaker`."""
    app()
