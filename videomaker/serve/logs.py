"""Structured logs: a line of JSON each for machines, columns for a terminal; the request's id in every one."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

from .config import ServeConfig


def configure_logs(config: ServeConfig) -> None:
    """Sets structlog up for this process, and sends other libraries' logging through it. Everything goes to stderr."""
    level = getattr(logging, config.log_level.upper())
    as_json = config.log_format == "json" or (config.log_format == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks as text: a renderer's own would show the values of variables, keys and prompts among them.
    final: list[Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.StackInfoRenderer(), *final],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # what stderr is then, not what it was
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("videomaker").setLevel(level)
