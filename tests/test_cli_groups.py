"""Groups of options: on the command line as if each were declared by itself."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from videomaker.cli import app
from videomaker.cli.groups import Model, Sampling, with_groups
from videomaker.errors import InputError
from videomaker.jobs.request import ModelSpec


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option("--width")] = 4
    height: Annotated[int, typer.Option("--height")] = 3


def draw(name: Annotated[str, typer.Argument()], *, size: Size, seed: Annotated[int, typer.Option()] = 0) -> None:
    """Draws."""
    typer.echo(f"{name} {size.width}x{size.height} {seed}")


def test_a_group_becomes_its_options_in_its_place():
    assert list(inspect.signature(with_groups(draw)).parameters) == ["name", "width", "height", "seed"]


def test_options_reach_their_group():
    drawing = typer.Typer()
    drawing.command()(with_groups(draw))
    assert CliRunner().invoke(drawing, ["cat", "--height", "7", "--seed", "2"]).output == "cat 4x7 2\n"
    assert CliRunner().invoke(drawing, ["cat", "--width", "wide"]).exit_code == 2


def _commands(group, path: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize("names", [{"--out", "--output", "-o"}, {"--frames", "--num-frames"}], ids=["output", "frames"])
def test_an_option_has_the_same_names_in_every_command(names):
    found = [
        (" ".join(path), set(option.opts))
        for path, command in _commands(typer.main.get_command(app))
        for option in command.params
        if set(option.opts) & names
    ]
    assert len(found) > 4
    assert [(path, options) for path, options in found if options != names] == []


def test_a_model_that_has_moved_keeps_what_is_not_said():
    old = ModelSpec("here", weights="w.safetensors", dtype="float32", loras=("a",))
    assert Model().moved(old) == old
    assert Model(model="there", lora=["b:0.5"]).moved(old) == ModelSpec(
        "there", weights="w.safetensors", dtype="float32", loras=("b:0.5",)
    )


def test_a_prompt_and_a_preset_of_one_are_refused():
    with pytest.raises(InputError, match="one of the two"):
        Sampling(negative_prompt="blurred", negative_preset="people").settings()
