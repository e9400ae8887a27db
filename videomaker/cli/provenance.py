"""`videomaker provenance verify`: what a signed video says about itself, and whether that holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videomaker.errors import InputError

from .app import app

provenance_app = typer.Typer(help="Content Credentials (C2PA) of videos.", no_args_is_help=True)
app.add_typer(provenance_app, name="provenance")


@provenance_app.callback()
def _group() -> None:
    """Content Credentials (C2PA) of videos."""


@provenance_app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A video.")],
    trust: Annotated[
        Path | None, typer.Option(help="PEM of authorities that you trust; without it only changes are found.")
    ] = None,
) -> None:
    """Check a video's signature: exit code 0 when it holds, 1 when it is missing or does not.

    With --trust the signer must also be vouched for by one of those.
    """
    try:
        from videomaker.serve.provenance import verify as read
    except ModuleNotFoundError as error:
        raise InputError(f"provenance needs {error.name}: pip install 'videomaker[serve]'") from error

    verdict = read(file, trust)
    if verdict is None:
        typer.echo(f"{file}: not signed")
        raise typer.Exit(1)
    words = {
        "Trusted": "trusted: unchanged since it was signed, by a signer that an authority of yours vouches for",
        "Valid": "valid: unchanged since it was signed",
    }
    typer.echo(f"{file}: {words.get(verdict.state, 'INVALID: not what was signed')}")
    typer.echo(f"signed by   {verdict.signer or 'nobody named'}{'' if trust else '  (not checked: no --trust)'}")
    typer.echo(f"generated   {'yes, by a trained model' if verdict.generated else 'not said'}")
    for name, value in verdict.told.items():
        typer.echo(f"{name:11} {value}")
    for problem in verdict.problems:
        typer.echo(f"problem     {problem}")
    good = ("Trusted",) if trust else ("Trusted", "Valid")
    raise typer.Exit(0 if verdict.state in good else 1)
