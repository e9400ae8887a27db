"""Libraries that talk too much, kept quiet."""

from __future__ import annotations

import logging
import os
import warnings

# bitsandbytes, which diffusers imports where it is there, looks for a kernel that nothing here calls (4-bit weights on
# a CPU) in a package that few have; the rest of what it says is heard.
_OPTIONAL_KERNEL = "Failed to load CPU gemm_4bit_forward from kernels-community"


def quiet_libraries() -> None:
    """Keeps loading bars and advice for programmers off the screen, unless the environment asks for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_told)
    import diffusers.utils.logging
    import transformers.utils.logging

    for library, name in ((diffusers, "DIFFUSERS_VERBOSITY"), (transformers, "TRANSFORMERS_VERBOSITY")):
        if os.environ[name] == "error":  # which a library reads when it is imported, and may have been before
            library.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _is_told(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_OPTIONAL_KERNEL)
