"""`videomaker submit` against a server process: files fetched, kept, refused in words."""

from __future__ import annotations

import json

import pytest
from serving import PICTURE, ServerProcess
from typer.testing import CliRunner

from videomaker.cli import app


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server")) as server:
        server.wait_ready()
        yield server


def submit(server, *options):
    where = ["submit", "--server", server if isinstance(server, str) else server.address]
    return CliRunner().invoke(app, [*where, "-r", str(PICTURE), *map(str, options)])


def test_videos_and_records_are_fetched_and_kept(server, tmp_path):
    options = ("-p", "a creature", "-p", "another", "--seed", "1,2", "--steps", "2", "-o", tmp_path)
    done = submit(server, *options)
    assert done.exit_code == 0, done.stderr
    paths = sorted(tmp_path.glob("*.mp4"))
    assert sorted(done.stdout.split()) == [str(path) for path in paths] and len(paths) == 4
    assert all(b"ftyp" in path.read_bytes() for path in paths)
    assert {json.loads(path.with_suffix(".json").read_text())["seed"] for path in paths} == {1, 2}
    again = submit(server, *options)
    assert again.exit_code == 0 and "4 of 4" in again.stderr and not again.stdout
    assert submit(server, *options[:2], "--steps", "2", "-o", paths[0], "--overwrite").exit_code == 0


def test_a_users_file_is_not_replaced_by_a_record(server, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    refused = submit(server, "-p", "a creature", "-o", tmp_path / "config.mp4")
    assert refused.exit_code == 2 and "it is no record" in " ".join(refused.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_refusals_and_failures_are_one_line(server, tmp_path, monkeypatch):
    cases = {
        ("-p", "a", "--frames", "99"): "99 frames",
        ("-p", "FAIL"): "1 of 1 videos failed",
        ("-p", "a", "--width", "32"): "--height",
        ("-p", "a", "-o", tmp_path / "x.gif"): ".gif",
    }
    for options, word in cases.items():
        refused = submit(server, "-o", tmp_path, *options)
        assert refused.exit_code == 2 and word in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    monkeypatch.setattr("videomaker.serve.client.RETRIES", 0)
    away = submit("http://127.0.0.1:1", "-p", "a", "-o", tmp_path)
    assert away.exit_code == 2 and "does not answer" in away.stderr
    assert not list(tmp_path.glob("*.mp4"))
