"""Health, models, metrics."""

from __future__ import annotations

import time
from collections import Counter

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from videomaker import __version__

from ..metrics import CONTENT_TYPE, exposition
from ..models import ModelFacts
from ..schema import Model, ModelList, choose_model
from ..state import State
from .access import StateOf, get_owner

router = APIRouter()
STARTED = int(time.time())


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", tags=["system"])
def health() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok", "version": __version__}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", tags=["system"])
def ready(state: StateOf) -> JSONResponse:
    """Whether it can make videos: database, store, a warm worker of any model; 503 with what is missing otherwise."""
    checks = {
        "accepting": not state.draining,
        "database": state.database.answers(),
        "store": state.store.answers(),
    }
    checks["worker"] = checks["database"] and bool(_warm(state))
    return JSONResponse({"ready": all(checks.values()), **checks}, 200 if all(checks.values()) else 503)


@router.get("/metrics", tags=["system"], dependencies=[Depends(get_owner)], response_class=Response)
def metrics(state: StateOf) -> Response:
    """For Prometheus."""
    return Response(exposition(state), media_type=CONTENT_TYPE)


@router.get("/v1/models", tags=["models"], dependencies=[Depends(get_owner)])
def models(state: StateOf) -> ModelList:
    """What is served here."""
    warm = _warm(state)
    return ModelList(data=[_describe(state, facts, warm) for facts in state.models.values()])


@router.get("/v1/models/{id:path}", tags=["models"], dependencies=[Depends(get_owner)])
def model(state: StateOf, id: str) -> Model:
    """One of the models."""
    return _describe(state, choose_model(id, state.models), _warm(state))


def _warm(state: State) -> dict[str, int]:
    """Warm workers of each of the models that have any."""
    served = {facts.workers for facts in state.models.values()}
    return Counter(row.model for row in state.registry.alive() if row.ready and row.model in served)


def _describe(state: State, facts: ModelFacts, warm: dict[str, int]) -> Model:
    config = state.config
    return Model(
        id=facts.name,
        created=STARTED,
        parent=facts.base or None,
        ready=warm.get(facts.workers, 0) > 0,
        workers=warm.get(facts.workers, 0),
        defaults=facts.defaults,
        limits={
            "size_multiple": facts.factor,
            "max_side": config.max_side,
            "max_frames_and_references": facts.max_positions,
            "max_references": config.max_references,
            "max_steps": facts.max_steps,
            "max_body_bytes": int(config.max_body_mib * 2**20),
            "require_consent": config.require_consent,
            "highlight_by_word": config.highlight_models is not None,
        },
        shapes=[shape.model_dump() for shape in facts.shapes],
        note=facts.note,
    )
