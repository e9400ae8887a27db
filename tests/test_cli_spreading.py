"""Work in parts: what the options refuse, and what a task does. On a real cluster: test_scale_ray_tasks.py."""

from __future__ import annotations

import socket
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


@pytest.mark.parametrize(
    "address, words",
    [
        ("127.0.0.1:1", "refused"),
        ("ray://127.0.0.1:1", "refused"),
        ("[::1]:1", "nothing answers there"),
        ("no-such-host.invalid:6379", "nothing answers there"),
        ("127.0.0.1:99999", "nothing answers there"),
    ],
)
def test_an_address_where_nothing_listens_is_refused_at_once(address, words):
    """Ray would ask it for minutes."""
    with pytest.raises(InputError, match=words) as error:
        spreading._check_reachable(address)
    assert str(error.value).startswith(f"--ray {address}: nothing answers there (")


def test_what_listens_or_names_no_port_is_left_to_ray():
    with socket.create_server(("127.0.0.1", 0)) as server:
        spreading._check_reachable(f"127.0.0.1:{server.getsockname()[1]}")
    spreading._check_reachable("auto")


def test_a_task_runs_the_command_in_the_folder_and_returns_what_it_prints(tmp_path, monkeypatch):
    def command(**given):
        typer.echo(f"{given} in {spreading.os.getcwd()}")

    monkeypatch.setattr(spreading, "made_up", command, raising=False)
    monkeypatch.chdir(tmp_path.parent)
    printed = spreading.run_part("videomaker.cli.spreading:made_up", {"shard": "1/2"}, str(tmp_path))
    assert printed == f"{{'shard': '1/2'}} in {tmp_path}\n"
    with pytest.raises(InputError, match=r"a machine of the cluster has no .*elsewhere .*: share the folder"):
        spreading.run_part("videomaker.cli.spreading:made_up", {}, str(tmp_path / "elsewhere"))
