"""The server's commands that end: settings shown, keys made, what cannot be served."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from serving import client_of, make_state, submit
from typer.testing import CliRunner

from videomaker.cli import app
from videomaker.serve.config import load_config
from videomaker.serve.supervisor import worker_orders


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


def test_settings_are_shown_without_what_opens_a_store(tmp_path):
    file = tmp_path / "serve.toml"
    secret = {name: "S3CRET" for name in ("account_key", "sas_key", "secret_access_key", "azure_connection_string")}
    lines = "".join(f"{name} = '{value}'\n" for name, value in {**secret, "region": "eu"}.items())
    file.write_text(f"database = 'postgresql+psycopg://me:S3CRET@db/x'\n[files_options]\n{lines}")
    shown = run("serve", "--config", file, "--show-config").stdout
    assert "S3CRET" not in shown and json.loads(shown)["files_options"]["region"] == "eu"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_is_logged_as_text_without_the_values_of_variables(log_format):
    """Keys and prompts are among them; other libraries' errors come the same way."""
    program = (
        "import logging, sys\n"
        "from videomaker.serve.config import load_config\n"
        "from videomaker.serve.logs import configure_logs\n"
        f"configure_logs(load_config(log_format={log_format!r}))\n"
        "headers = {'authorization': 'Bearer ' + 'x'.join(['vm_', 'SECRET'])}\n"
        "try:\n    1 / 0\n"
        "except ZeroDivisionError:\n    logging.getLogger('uvicorn.error').exception('answer failed')\n"
    )
    told = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True).stderr
    assert "answer failed" in told and "ZeroDivisionError: division by zero" in told and "vm_xSECRET" not in told
    if log_format == "json":
        assert "Traceback" in json.loads(told)["exception"]


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


def test_a_key_is_made_again_under_its_name_and_takes_over_what_had_none(tmp_path):
    state = make_state(tmp_path)
    with client_of(state) as client:
        before = submit(client).json()["id"]
    data = ("--data", tmp_path)
    first = run("keys", "create", "ann", *data)
    assert "1 videos made before" in first.stderr and run("keys", "create", "ann", *data).exit_code == 2
    assert run("keys", "create", "", *data).exit_code == 2
    assert run("keys", "revoke", "ann", *data).exit_code == 0
    again = run("keys", "create", "ann", "--adopt", "--max-active", 3, *data)
    assert again.exit_code == 0 and not again.stderr
    with client_of(make_state(tmp_path)) as client:
        ask = lambda key: client.get("/v1/videos", headers={"authorization": f"Bearer {key.stdout.strip()}"})
        assert ask(first).status_code == 401
        assert [video["id"] for video in ask(again).json()["data"]] == [before]


def test_the_database_and_the_files_are_their_owners_alone(tmp_path):
    data = tmp_path / "data"
    state = make_state(data)
    state.store.put("videos/x/reference-0.ppm", b"x")
    assert [path.stat().st_mode & 0o077 for path in (data, data / "videomaker.db", data / "files")] == [0, 0, 0]


def test_what_is_no_database_and_no_folder_is_told_in_a_line(tmp_path):
    (tmp_path / "videomaker.db").write_bytes(b"no database at all" * 100)
    for data, word in ((tmp_path, "cannot be used"), (tmp_path / "videomaker.db", "is no folder")):
        refused = run("serve", "--renderer", "fake", "--data", data)
        assert refused.exit_code == 2 and word in refused.stderr and refused.stderr.count("\n") == 1
    files = ("--data", tmp_path / "data", "--files", tmp_path / "videomaker.db")
    refused = run("serve", "--renderer", "fake", *files)
    assert refused.exit_code == 2 and "videomaker.db cannot be kept" in refused.stderr


def test_a_declared_shape_that_the_model_cannot_make_ends_the_start(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text("[[shapes]]\nnum_frames = 8\nheight = 33\nwidth = 32\n")
    refused = run("serve", "--renderer", "fake", "--config", file, "--data", tmp_path)
    assert refused.exit_code == 2 and "32x33" in refused.stderr and "multiples of" in refused.stderr


def test_workers_of_their_own_ignore_that_a_server_has_none():
    config = load_config(renderer="fake", workers=0)
    assert worker_orders(config) == [] and [order.config.workers for order in worker_orders(config, least=1)] == [None]
