"""The server's commands that end: settings shown, keys made, what cannot be served."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from videomaker.cli import app


def run(*arguments: object, env: dict[str, str] | None = None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env or {})


def test_settings_come_from_flags_then_variables_then_the_file(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text("port = 1\nbatch = 2\nmax_wait = 3\n[[shapes]]\nnum_frames = 8\nheight = 32\nwidth = 32\n")
    variables = {"VIDEOMAKER_BATCH": "5", "VIDEOMAKER_DEVICES": "cuda:0,cuda:1"}
    shown = run("serve", "--config", file, "--port", "7", "--show-config", env=variables)
    settings = json.loads(shown.stdout)
    assert (settings["port"], settings["batch"], settings["max_wait"]) == (7, 5, 3)
    assert settings["devices"] == ["cuda:0", "cuda:1"]
    assert settings["shapes"][0]["batch"] == 1


@pytest.mark.parametrize(
    "text, word",
    [
        ("port = 'x'", "port"),
        ("colour = 1", "colour"),
        ("port = ", "serve.toml"),
        ("lease_seconds = 0", "lease_seconds"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(tmp_path, text, word):
    file = tmp_path / "serve.toml"
    file.write_text(text)
    refused = run("serve", "--config", file)
    assert refused.exit_code == 2 and word in refused.stderr and refused.stderr.count("\n") == 1


def test_what_does_not_exist_is_told_before_anything_starts(tmp_path):
    data = ("--data", tmp_path)
    for option in ("--model", "--weights", "--config", "--artifacts"):
        refused = run("serve", *data, option, tmp_path / "none")
        assert refused.exit_code == 2 and "none" in refused.stderr


def test_keys(tmp_path):
    data = ("--data", tmp_path)
    key = run("keys", "create", "ann", "--max-active", "3", *data).stdout.strip()
    assert key.startswith("vm_") and len(key) > 40
    assert run("keys", "create", "ann", *data).exit_code == 2
    listed = run("keys", "list", *data).stdout
    assert "ann" in listed and "max_active=3" in listed and key not in listed
    assert run("keys", "revoke", "ann", *data).exit_code == 0
    assert "revoked" in run("keys", "list", *data).stdout
    assert run("keys", "revoke", "ann", *data).exit_code == 2
    for command in ("create", "revoke"):
        refused = run("keys", command, "ann\udcff", *data)
        assert refused.exit_code == 2 and r"ann\udcff is not UTF-8 text" in refused.stderr
