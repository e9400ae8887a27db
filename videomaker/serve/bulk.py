"""Thousands of videos sent to a server: a bounded number at a time, none of them twice, fetched as they are made.

The folder of results holds a journal, `submitted.jsonl`. A run that was killed goes on where it was: what was sent is
followed, and what may have been sent is sent again under the same idempotency key.
"""

from __future__ import annotations

import json
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videomaker.errors import InputError
from videomaker.files import read_text, to_json

from .bulk_lines import MAX_BYTES, BulkJob
from .client import Client, Refusal

JOURNAL = "submitted.jsonl"
GONE = 404
OF_THE_JOB = (400, GONE, 413, 422)  # refusals that are one line's fault; others are everyone's


class Journal:
    """What became of each job, in lines that are only ever added.

    Args:
        path: of the file.
        anew: whether what it tells of earlier runs is done with.

    Raises:
        InputError: it is there and is none.
    """

    def __init__(self, path: Path, *, anew: bool = False):
        self._lock, self._run = threading.Lock(), ""
        self._ids: dict[str, str] = {}
        self._failures: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = read_text(path, max_bytes=MAX_BYTES) if path.exists() else ""
        for entry in _entries(text):
            self._take(entry)
        if text and not self._run:
            raise InputError(f"{path} is no journal of submit: give another --output")
        self._file = path.open("a", encoding="utf-8")
        if text and not text.endswith("\n"):  # the line that a kill cut off
            self._file.write("\n")
        if anew or not self._run:
            self._write({"run": uuid.uuid4().hex})

    def _take(self, entry: dict[str, Any]) -> None:
        if "run" in entry:
            self._run = entry["run"]
            self._ids.clear()
            self._failures.clear()
        elif "id" in entry:
            self._ids[entry["job"]] = entry["id"]
        elif "failed" in entry:
            self._ids.pop(entry["job"], None)
            self._failures[entry["job"]] = self._failures.get(entry["job"], 0) + 1

    def _write(self, entry: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(to_json(entry) + "\n")
            self._file.flush()  # a killed process loses nothing; after a power cut the idempotency key answers
            self._take(entry)

    def id(self, job: BulkJob) -> str | None:
        """Of its video, if it was sent and did not fail."""
        return self._ids.get(job.digest)

    def key(self, job: BulkJob) -> str:
        """The idempotency key of its present try."""
        return f"{self._run}-{job.digest}-{self._failures.get(job.digest, 0)}"

    def sent(self, job: BulkJob, id: str) -> None:
        """The server has it."""
        self._write({"job": job.digest, "line": job.line, "id": id})

    def failed(self, job: BulkJob, reason: str) -> None:
        """It is to be sent anew, if at all."""
        self._write({"job": job.digest, "line": job.line, "failed": reason})

    def close(self) -> None:
        """Ends."""
        self._file.close()


def _entries(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry


@dataclass
class Tally:
    """How far it is: numbers of jobs `sent` and not ended, `made`, and the reasons of those that `failed`."""

    total: int
    sent: int = 0
    made: int = 0
    failed: dict[int, str] = field(default_factory=dict)


class Bulk:
    """A run over jobs.

    Args:
        client: of the server; patient, or a full queue ends the run.
        journal: of the folder.
        at_once: jobs that are sent and not yet fetched.
        on_made: sees a video's path once it is there.
    """

    def __init__(self, client: Client, journal: Journal, *, at_once: int, on_made: Callable[[Path], None]):
        self._client, self._journal, self._at_once, self._on_made = client, journal, at_once, on_made
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[BulkJob] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()

    def run(self, jobs: Sequence[BulkJob], on_change: Callable[[Tally], None] = lambda _: None) -> Tally:
        """Has all made and fetched; jobs that fail are told in the tally, and are sent anew by the next run.

        Raises:
            InputError: the server cannot be reached, or lets us in no more. What was sent goes on there.
        """
        self.tally = Tally(len(jobs))
        self._on_change = on_change
        for job in jobs:
            self._jobs.put(job)
        threads = [
            # They die with the process: nobody waits for a server after Ctrl-C.
            threading.Thread(target=self._work, name=f"bulk-{index}", daemon=True)
            for index in range(min(self._at_once, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                if error := self._ended.get():
                    raise error
        finally:
            self._stop.set()
        return self.tally

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._make(self._jobs.get_nowait())
            self._ended.put(None)
        except queue.Empty:
            self._ended.put(None)
        except BaseException as error:  # told to whoever waits
            self._ended.put(error)

    def _make(self, job: BulkJob) -> None:
        self._count(sent=1)
        try:
            video = self._made(job)
            reason = video["error"]["message"] if video["status"] == "failed" else None
            if reason is None:
                self._client.download(video["id"], "record", job.path.with_suffix(".json"))
                self._client.download(video["id"], "video", job.path)
        except Refusal as error:
            if error.status not in OF_THE_JOB:
                raise
            reason = str(error)
        if reason is None:
            self._on_made(job.path)
            self._count(sent=-1, made=1)
        else:
            self._journal.failed(job, reason)
            self._count(sent=-1, failed={job.line: reason})

    def _made(self, job: BulkJob) -> dict[str, Any]:
        """The job's video, once it has ended."""
        if (id := self._journal.id(job)) is not None:
            try:
                return self._client.follow(id, lambda _: None)
            except Refusal as error:
                if error.status != GONE:
                    raise
                self._journal.failed(job, "the server has it no more")
        video = self._client.create(list(job.references), job.fields, job.mask, key=self._journal.key(job))
        self._journal.sent(job, video["id"])
        return self._client.follow(video["id"], lambda _: None)

    def _count(self, *, sent: int = 0, made: int = 0, failed: dict[int, str] | None = None) -> None:
        with self._lock:
            self.tally.sent += sent
            self.tally.made += made
            self.tally.failed.update(failed or {})
            self._on_change(self.tally)
