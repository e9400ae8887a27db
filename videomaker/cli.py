"""The command line: thin commands over the library. Heavy modules load inside the commands, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from videomaker import __version__
from videomaker.errors import InputError


class _Commands(TyperGroup):
    """Commands whose errors about the user's input or files are one line on stderr and exit code 2."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (InputError, OSError) as error:
            typer.echo(f"error: {_one_line(error)}", err=True)
            raise typer.Exit(2) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split())


app = typer.Typer(
    name="videomaker",
    cls=_Commands,
    help="Puts a subject, given as one picture, into a video described by a prompt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make, index and prepare data for training.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def generate() -> None:
    """Make videos of a subject from its picture and a prompt."""
    raise InputError("not yet available")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A published checkpoint (.bin), or one of this project.")],
    output: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Turn a published checkpoint into safetensors and report what it covers."""
    raise InputError("not yet available")


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show versions, devices and which attention backend would run, and why."""
    raise InputError("not yet available")


def main() -> None:
    """The console script `videomaker`."""
    app()


if __name__ == "__main__":
    main()
