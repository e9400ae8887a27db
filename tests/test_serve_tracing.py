"""Traces: nothing by default; when on, a request and the batch that makes its video are one trace."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import client_of, make_state, make_worker, submit

from videomaker.serve import tracing


@pytest.fixture
def exporter():
    exporter = InMemorySpanExporter()
    tracing.configure_tracing(True, processor=SimpleSpanProcessor(exporter))
    yield exporter
    tracing.configure_tracing(False)


def test_off_there_is_no_span(tmp_path):
    state = make_state(tmp_path)
    with client_of(state) as client:
        id = submit(client).json()["id"]
    assert state.listing.get(id).traceparent is None


def test_a_request_and_its_batch_are_one_trace(tmp_path, exporter):
    state = make_state(tmp_path, batch=2, batch_wait=0)
    sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with client_of(state) as client:
        submit(client, headers={"traceparent": sent})
        submit(client, seed="2")
    make_worker(state).work_once()
    spans = exporter.get_finished_spans()
    request = next(span for span in spans if span.name == "POST /v1/videos")
    trace = request.context.trace_id
    assert f"{trace:032x}" == sent.split("-")[1]
    for name in ("make videos", "publish videos"):
        (batch,) = (span for span in spans if span.name == name)
        assert (batch.context.trace_id, batch.parent.span_id) == (trace, request.context.span_id)
        assert len(batch.links) == 1 and batch.attributes["videos"] == 2
