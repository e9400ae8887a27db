"""The program itself: its groups of commands, what all of them share, and errors as one line."""

from __future__ import annotations

import logging
from textwrap import shorten
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from videomaker import __version__
from videomaker.errors import InputError

from .terminal import show_messages

# Typer brings a click of its own in some versions, so that the class cannot be imported by one name.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Commands(TyperGroup):
    """Commands whose errors are one line on stderr: exit code 2 for the user's input or files, 1 for our mistakes."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (InputError, OSError) as error:
            typer.echo(f"error: {_one_line(error)}", err=True)
            raise typer.Exit(2) from error
        except (typer.Exit, typer.Abort):
            raise
        except _UsageError as error:
            _show_usage_error(error, ctx)
            raise typer.Exit(2) from error
        except Exception as error:
            if isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
                typer.echo(f"error: {_short(error.object)} is not UTF-8 text: type it again", err=True)
                raise typer.Exit(2) from error
            if logging.getLogger().isEnabledFor(logging.DEBUG):
                raise
            kind = type(error).__name__
            message = f"{kind}: {_one_line(error)}" if str(error) else kind
            typer.echo(f"error: unexpected {message}; videomaker --verbose … shows where", err=True)
            raise typer.Exit(1) from error


def _show_usage_error(error: Any, ctx: Any) -> None:
    """What the parser refused, as one line like any other error; where nothing was asked, the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        raise error
    command = (getattr(error, "ctx", None) or ctx).command_path
    typer.echo(
        f"error: {shorten(error.format_message(), 400, placeholder=' …')} ({command} --help says more)", err=True
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {_short(error.filename)}" if error.filename else error.strerror
    return shorten(str(error), 400, placeholder=" …")


def _short(name: object) -> str:
    """A path on one line, its end kept."""
    text = str(name).encode(errors="backslashreplace").decode()
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) < 300 else f"{text[:60]}…{text[-200:]}"


app = typer.Typer(
    name="videomaker",
    cls=_Commands,
    help="Puts a subject, given as one picture, into a video described by a prompt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
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
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is chosen and why.")] = False,
) -> None:
    show_messages(verbose=verbose)
