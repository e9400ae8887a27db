"""Work in parts: what the options refuse, and what a task does. On a real cluster: test_scale_ray_tasks.py."""

from __future__ import annotations

import sys

import pytest
import typer
from typer.testing import CliRunner

from videomaker.cli import app, spreading
from videomaker.errors import InputError

MEASURE = ("evaluate", "measure", "videos", "suite")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--ray-tasks", "2"], "--ray-tasks 2 needs --ray ADDRESS"),
        (["--ray", "auto", "--shard", "2/8"], "--shard 2/8 is one part, --ray makes the parts itself"),
        (["--ray", "auto"], "--ray needs Ray: pip install"),
    ],
)
def test_what_cannot_be_spread_is_refused(options, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    result = CliRunner().invoke(app, [*MEASURE, *options])
    assert result.exit_code == 2
    assert words in result.output


def test_a_task_runs_the_command_in_the_folder_and_returns_what_it_prints(tmp_path, monkeypatch):
    def command(**given):
        typer.echo(f"{given} in {spreading.os.getcwd()}")

    monkeypatch.setattr(spreading, "made_up", command, raising=False)
    monkeypatch.chdir(tmp_path.parent)
    printed = spreading.run_part("videomaker.cli.spreading:made_up", {"shard": "1/2"}, str(tmp_path))
    assert printed == f"{{'shard': '1/2'}} in {tmp_path}\n"
    with pytest.raises(InputError, match=r"a machine of the cluster has no .*elsewhere .*: share the folder"):
        spreading.run_part("videomaker.cli.spreading:made_up", {}, str(tmp_path / "elsewhere"))
