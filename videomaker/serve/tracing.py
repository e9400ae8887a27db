"""OpenTelemetry traces: off by default, and nothing of it is imported then.

A request's span is the parent of the batch that makes its video, on whatever machine: the job's row carries it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from videomaker.errors import InputError

_tracer: Any = None


def configure_tracing(enabled: bool, *, processor: Any = None) -> None:
    """Starts sending spans, by OTLP over HTTP, to where the `OTEL_…` variables say.

    Args:
        enabled: whether to.
        processor: of spans, in place of that.

    Raises:
        InputError: the packages are not installed.
    """
    global _tracer
    _tracer = None
    if not enabled:
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        if processor is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            processor = BatchSpanProcessor(OTLPSpanExporter())
    except ModuleNotFoundError as error:
        raise InputError("telemetry needs OpenTelemetry: pip install 'videomaker[telemetry]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "videomaker"}))
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("videomaker")


@contextmanager
def span(name: str, parents: Sequence[str | None] = (), **attributes: str | int | float) -> Iterator[None]:
    """A span around what happens within; the first of `parents` (W3C traceparents) is its parent, others are links."""
    if _tracer is None:
        yield
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    contexts = [TraceContextTextMapPropagator().extract({"traceparent": parent}) for parent in parents if parent]
    links = [trace.Link(trace.get_current_span(context).get_span_context()) for context in contexts[1:]]
    context = contexts[0] if contexts else None
    with _tracer.start_as_current_span(name, context=context, links=links, attributes=attributes):
        yield


def current_traceparent() -> str | None:
    """The trace that is going on, as W3C writes it, to be carried to a worker; None without one."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")
