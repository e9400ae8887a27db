"""The page, and the interface's description: files of our own, under a policy that lets in nothing else."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI
from jinja2 import Environment, FileSystemLoader
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ..state import State
from .access import StateOf

router = APIRouter()
PAGE = Path(__file__).parent.parent / "page"
EXAMPLES = Path(str(files("videomaker"))) / "assets"
SWAGGER = Path(str(files("fastapi_offline"))) / "static"  # FastAPI's own page asks a CDN
_TEMPLATES = Environment(loader=FileSystemLoader(PAGE), autoescape=True, trim_blocks=True, lstrip_blocks=True)


class _Fresh(StaticFiles):
    """Files that browsers ask for again each time: a 304 is cheap, a page of two versions is not."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["cache-control"] = "no-cache"
        return answer


def mount_files(app: FastAPI) -> None:
    """Adds the page's files, and the bundled pictures that it offers as examples."""
    app.mount("/page/examples", _Fresh(directory=EXAMPLES), name="examples")
    app.mount("/page/swagger", _Fresh(directory=SWAGGER), name="swagger")
    app.mount("/page", _Fresh(directory=PAGE / "static"), name="page")


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def page(state: StateOf) -> HTMLResponse:
    """The page over the same API."""
    needs_key = await run_in_threadpool(state.keys.exist)
    text = _TEMPLATES.get_template("index.html").render(needs_key=needs_key, examples=examples())
    headers = {"content-security-policy": content_security_policy(state), "cache-control": "no-cache"}
    return HTMLResponse(text, headers=headers)


@router.get("/docs", include_in_schema=False)
def docs(state: StateOf) -> HTMLResponse:
    """The interface's description, to read and to try."""
    policy = content_security_policy(state, pictures="data:")  # Swagger UI's symbols lie in its style sheet
    headers = {"content-security-policy": policy, "cache-control": "no-cache"}
    return HTMLResponse(_TEMPLATES.get_template("docs.html").render(), headers=headers)


def examples() -> list[dict[str, str]]:
    """The bundled creatures, each with its prompt."""
    lines = (EXAMPLES / "prompts.txt").read_text(encoding="utf-8").splitlines()
    prompts = [line for line in lines if line and not line.startswith("#")]
    pictures = sorted(EXAMPLES.glob("*.png"))
    return [
        {"name": picture.stem, "url": f"/page/examples/{picture.name}", "prompt": prompt}
        for picture, prompt in zip(pictures, prompts, strict=True)
    ]


def content_security_policy(state: State, *, pictures: str = "blob:") -> str:
    """Nothing but the page's own files and this server; from an object store, media by the links it signs.

    Args:
        state: tells where the files lie: an object store answers for them from its own origin.
        pictures: where pictures may come from beside.
    """
    media = " ".join(["'self'", *_store_origin(state)])
    policy: dict[str, Any] = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "font-src": "'self'",
        "connect-src": "'self'",
        "img-src": f"{media} {pictures}",
        "media-src": media,
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in policy.items())


def _store_origin(state: State) -> list[str]:
    link = state.link("videos", "GET", 60)
    parts = urlsplit(link) if link else None
    return [f"{parts.scheme}://{parts.netloc}"] if parts else []
