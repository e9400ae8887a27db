"""Libraries that talk too much, kept quiet."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Keeps loading bars and advice for programmers off the screen, unless the environment asks for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    import diffusers.utils.logging
    import transformers.utils.logging

    for library, name in ((diffusers, "DIFFUSERS_VERBOSITY"), (transformers, "TRANSFORMERS_VERBOSITY")):
        if os.environ[name] == "error":  # which a library reads when it is imported, and may have been before
            library.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
