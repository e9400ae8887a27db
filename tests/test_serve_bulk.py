"""`videomaker submit --jobs`: thousands of videos, bad lines refused first, none twice whatever is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from serving import PICTURE, ServerProcess
from typer.testing import CliRunner

from videomaker.cli import app
from videomaker.errors import InputError
from videomaker.serve.bulk import JOURNAL, Bulk, Journal
from videomaker.serve.bulk_lines import read_lines
from videomaker.serve.client import Client


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server"), fake_seconds=0.02, max_active=6) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def folder(tmp_path):
    shutil.copy(PICTURE, tmp_path / "moss.png")
    return tmp_path


def write(folder, *lines):
    """A file of jobs: dictionaries, or text as it is."""
    base = {"reference": "moss.png", "prompt": "a creature", "steps": 1}
    texts = [line if isinstance(line, str) else json.dumps({**base, **line}) for line in lines]
    (folder / "jobs.jsonl").write_text("\n".join(texts) + "\n")
    return folder / "jobs.jsonl"


def submit(server, file, *options):
    command = ["submit", "--server", server.address, "--jobs", file, "-o", file.parent / "out", *options]
    return CliRunner().invoke(app, list(map(str, command)))


def total(server):
    client, pages = server.client(), [{"has_more": True, "data": [], "last_id": None}]
    while pages[-1]["has_more"]:
        after = {"after": pages[-1]["last_id"]} if pages[-1]["last_id"] else {}
        pages.append(client.get("/v1/videos", params={"limit": 100, **after}).json())
    return sum(len(page["data"]) for page in pages)


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        ({"prmpt": "x"}, "prmpt: unknown; known are reference, prompt"),
        ({"prompt": " "}, "a prompt is empty"),
        ({"steps": "4"}, "steps: "),
        ({"steps": 0}, "steps: "),
        ({"reference": "other.png"}, "other.png"),
        ({"reference": []}, "reference: "),
        ({"width": 64}, "give both"),
        ({"box": [1, 2, 3]}, "box '1,2,3'"),
        ({"name": "../x"}, "without a folder"),
        ({"seed": 1}, "the same video as line 2"),
        ({"seed": 5, "name": "FIRST.mp4"}, "the same video as line 1"),
        ({"fit": "squeeze"}, "fit: "),
    ],
)
def test_bad_lines_are_refused_by_their_number(folder, line, words):
    file = write(folder, {"seed": 3, "name": "first"}, {"seed": 1}, "", line)
    with pytest.raises(InputError) as refused:
        read_lines(file, folder / "out", {"guidance": None})
    assert f"{file} line 4: " in str(refused.value) and words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_line_goes_before_the_command_line(folder):
    file = write(folder, {"steps": 7, "width": 64, "height": 32, "box": [1, 2, 3, 4]}, {"seed": 2, "name": "b"})
    first, second = read_lines(file, folder / "out", {"steps": 5, "guidance": 2.5, "fps": None})
    assert first.fields["num_inference_steps"] == 7 and first.fields["guidance_scale"] == 2.5
    assert first.fields["size"] == "64x32" and first.fields["box"] == "1,2,3,4"
    assert second.path == folder / "out" / "b.mp4" and second.fields["seed"] == 2
    again = read_lines(write(folder, {"seed": 2, "name": "b"}), folder / "out", {"steps": 5, "guidance": 2.5})
    assert again[0].digest == second.digest  # wherever the line stands


def test_all_are_made_past_the_limit_of_a_key_and_only_once(server, folder):
    before = total(server)
    file = write(folder, *({"seed": seed} for seed in range(20)), {"prompt": "FAIL"}, {"steps": 99_99})
    done = submit(server, file, "--at-once", 12)  # 6 may wait at once: the others are told when to come again
    assert done.exit_code == 2, done.stderr
    assert "20 videos made, 0 were there, 2 failed" in done.stderr
    assert "2 of 22 videos failed, the first in line 21: " in done.stderr
    paths = sorted((folder / "out").glob("*.mp4"))
    assert len(paths) == 20 and sorted(done.stdout.split()) == [str(path) for path in paths]
    assert {json.loads(path.with_suffix(".json").read_text())["seed"] for path in paths} == set(range(20))
    assert total(server) == before + 21
    paths[0].unlink()
    again = submit(server, file)
    assert "1 videos made, 19 were there, 2 failed" in again.stderr and paths[0].exists()
    assert total(server) == before + 22  # what failed is tried anew; what was made is fetched, not made


def test_a_killed_run_goes_on_and_doubles_nothing(server, folder):
    before, journal = total(server), folder / "out" / JOURNAL
    file = write(folder, *({"seed": seed, "steps": 10} for seed in range(12)))
    command = [sys.executable, "-P", "-m", "videomaker", "submit", "--server", server.address, "--jobs", str(file)]
    command += ["-o", str(folder / "out"), "--at-once", "4"]
    for _ in range(2):
        known = journal.read_text().count('"id"') if journal.exists() else 0
        run = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not journal.exists() or journal.read_text().count('"id"') < min(known + 3, 12):
            assert time.monotonic() < until and run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
    with journal.open("a") as torn:
        torn.write('{"job": "')
    done = submit(server, file)
    assert done.exit_code == 0, done.stderr
    assert len(list((folder / "out").glob("*.mp4"))) == 12
    assert total(server) == before + 12


class Lossy(httpx2.BaseTransport):
    """Loses the answers to creates, which the server has taken, until told otherwise."""

    def __init__(self):
        self.is_lossy, self._inner, self._lock = True, httpx2.HTTPTransport(), threading.Lock()

    def handle_request(self, request):
        answer = self._inner.handle_request(request)
        if self.is_lossy and request.method == "POST":
            answer.close()
            raise httpx2.ReadError("lost", request=request)
        return answer


def test_answers_that_are_lost_double_nothing(server, folder, monkeypatch):
    before, transport = total(server), Lossy()
    jobs = read_lines(write(folder, *({"seed": seed} for seed in range(3))), folder / "out", {})
    monkeypatch.setattr("videomaker.serve.client.RETRIES", 0)

    def run():
        client = Client(server.address, patient=True, transport=transport)
        journal = Journal(folder / "out" / JOURNAL)
        return Bulk(client, journal, at_once=2, on_made=lambda path: None).run(jobs)

    with pytest.raises(InputError, match="does not answer"):
        run()
    transport.is_lossy = False
    assert run().made == 3
    assert total(server) == before + 3


def test_a_video_that_is_removed_before_it_is_fetched_is_one_lines_fault(server, folder):
    class Removed(httpx2.HTTPTransport):
        def handle_request(self, request):
            if "content" in request.url.path and len(gone) == 0:
                gone.append(request)
                return httpx2.Response(404, json={"error": {"message": "there is no video"}})
            return super().handle_request(request)

    gone: list = []
    jobs = read_lines(write(folder, *({"seed": seed} for seed in range(11, 14))), folder / "out", {})
    client = Client(server.address, patient=True, transport=Removed())
    tally = Bulk(client, Journal(folder / "out" / JOURNAL), at_once=1, on_made=lambda path: None).run(jobs)
    assert tally.made == 2 and "there is no video" in tally.failed[1]


@pytest.mark.parametrize("later", ["0", "Fri, 31 Dec 1999 23:59:59 GMT", "soon"])
def test_a_server_says_when_to_come_again_by_a_number_or_a_date(later, monkeypatch):
    answers = [httpx2.Response(503, headers={"retry-after": later}), httpx2.Response(200, json={"id": "x"})]
    monkeypatch.setattr("videomaker.serve.client.time.sleep", lambda seconds: None)
    client = Client("http://x", transport=httpx2.MockTransport(lambda request: answers.pop(0)))
    assert client.create([PICTURE], {"prompt": "a"}) == {"id": "x"}


def test_what_is_no_journal_is_left_alone(folder):
    (folder / JOURNAL).write_text("my own notes\n")
    with pytest.raises(InputError, match="is no journal of submit"):
        Journal(folder / JOURNAL)
    assert (folder / JOURNAL).read_text() == "my own notes\n"


def test_options_that_belong_in_lines_are_refused(server, folder):
    refused = submit(server, write(folder, {}), "-p", "x")
    assert refused.exit_code == 2 and "its lines hold" in refused.stderr and not (folder / "out").exists()
