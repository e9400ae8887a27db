"""Shards that lie on a server: fetched when they are read, whole or not at all, once."""

import functools
import http.server
import json
import logging
import os
import shutil
import threading
from typing import ClassVar

import pytest
from clips import assert_same_batches, config_of, masked_clips, take, write_lines

from videomaker.data import remote
from videomaker.data.dataset import build_dataset
from videomaker.data.loader import build_loader
from videomaker.data.shards import write_shards
from videomaker.errors import InputError

pytest.importorskip("obstore", reason="obstore is not installed")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, notes what is asked for, and cuts off what it is told to."""

    asked: ClassVar[list[str]] = []
    cut_off: ClassVar[set[str]] = set()
    gone = False

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.asked.append(name)
        if self.gone:
            return self.send_error(404)
        if name not in self.cut_off:
            return super().do_GET()
        content = (self.directory_path / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def do_HEAD(self):
        return self.send_error(404) if self.gone else super().do_HEAD()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("remote")
    write_shards(masked_clips(root / "clips") / "manifest.jsonl", root / "shards", clips_per_shard=5)
    return root / "shards"


@pytest.fixture
def place(shards):
    """The folder that is served."""
    return shards


@pytest.fixture
def server(place, monkeypatch):
    """The URL of the shards' folder, and the handler."""
    handler = type("Served", (Handler,), {"asked": [], "cut_off": set(), "directory_path": place})
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(place)))
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(remote, "_RETRIES", 0)
    remote._answers.cache_clear()
    yield f"http://127.0.0.1:{made.server_port}", handler
    made.shutdown()
    thread.join()


@pytest.fixture
def config(server, tmp_path):
    url, _ = server
    made = config_of(tmp_path, downloads=str(tmp_path / "downloads"))
    return type(made)(**{**vars(made), "manifest": f"{url}/manifest.jsonl"})


def test_a_remote_run_sees_what_a_local_one_sees(shards, config, server):
    local = build_dataset(config_of(shards), seed=0)
    far = build_dataset(config, seed=0)
    assert not [name for name in server[1].asked if name.endswith(".tar")]  # a start fetches no shard
    assert far.fingerprint == local.fingerprint
    loaders = [build_loader(dataset, batch_size=2, num_workers=workers) for dataset, workers in ((local, 0), (far, 2))]
    assert_same_batches(*(take(loader, 6) for loader in loaders))
    fetched = [name for name in server[1].asked if name.endswith(".tar")]
    assert sorted(fetched) == [f"shard-{n:06d}.tar" for n in range(3)]  # once each, by two workers
    assert_same_batches([build_dataset(config, seed=0)[0, 3]], [local[0, 3]])
    assert len([name for name in server[1].asked if name.endswith(".tar")]) == 3


def test_a_transfer_that_is_cut_off_is_no_shard(config, server, tmp_path):
    server[1].cut_off.add("shard-000001.tar")
    dataset = build_dataset(config, seed=0)
    sample = dataset[0, 6]
    assert sample["ids"] != "clip-6"
    name, reason, message = sample["skipped"][0]
    assert (name, reason) == ("clip-6", "missing") and "shard-000001.tar" in message and "\n" not in message
    kept = {path.name for path in (tmp_path / "downloads").rglob("*.tar*")}
    assert "shard-000001.tar" not in kept and all(name.endswith((".tar", ".lock")) for name in kept)
    server[1].cut_off.clear()
    assert dataset[0, 6]["ids"] == "clip-6"


def test_what_is_not_there_is_said_before_the_first_step(config, server, tmp_path, monkeypatch):
    monkeypatch.setattr(server[1], "gone", True)
    with pytest.raises(InputError, match=r"http://127.0.0.1:\d+/manifest.jsonl cannot be read: .*404") as error:
        build_dataset(config, seed=0)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(server[1], "gone", False)
    build_dataset(config, seed=0)
    remote._answers.cache_clear()
    monkeypatch.setattr(server[1], "gone", True)
    with pytest.raises(InputError, match=r"clips cannot be used \(missing: 11\)"):
        build_dataset(config, seed=0)  # the manifest is there from before


def test_an_earlier_copy_of_the_manifest_serves_when_the_network_does_not(config, server, monkeypatch, caplog):
    whole = take(build_loader(build_dataset(config, seed=0), batch_size=2), 6)
    monkeypatch.setattr(server[1], "gone", True)
    with caplog.at_level(logging.WARNING):
        again = take(build_loader(build_dataset(config, seed=0), batch_size=2), 6)
    assert "taking the copy of an earlier run" in caplog.text
    assert_same_batches(again, whole)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"video": "a.mp4", "caption": "x"}, "has clips outside of shards, first 'a'"),
        ({"video": "a.mp4", "caption": "x", "shard": "../../outside.tar"}, "which leaves its folder"),
    ],
)
def test_a_remote_manifest_may_not_name_anything_else(tmp_path, line, message):
    write_lines(tmp_path / "manifest.jsonl", [line])
    with pytest.raises(InputError, match=message):
        remote._check_places(tmp_path / "manifest.jsonl", "http://elsewhere/manifest.jsonl")


@pytest.mark.parametrize("url", ["ftp://host/manifest.jsonl", "file:///etc/manifest.jsonl"])
def test_other_kinds_of_urls_are_refused(url, tmp_path):
    with pytest.raises(InputError, match="begins with http, https, s3, gs, az"):
        remote.local_manifest(url, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_its_own_has_no_source(tmp_path):
    remote.ensure_local(tmp_path / "absent.tar")
    assert not remote.is_there(tmp_path / "absent.tar") and not list(tmp_path.iterdir())
    (tmp_path / "source.json").write_text(json.dumps({"url": "http://127.0.0.1:9"}))
    assert remote._source_of(tmp_path / "absent.tar") == (tmp_path, {"url": "http://127.0.0.1:9"})


class TestAnotherManifestAtTheSameUrl:
    """`data shard` gives shards the same names whatever is in them."""

    @pytest.fixture
    def place(self, shards, tmp_path):
        return shutil.copytree(shards, tmp_path / "published")

    @pytest.fixture
    def republish(self, place, tmp_path):
        """Puts other videos and captions under the same names and ids."""

        def put() -> None:
            manifest = masked_clips(tmp_path / "others") / "manifest.jsonl"
            lines = [json.loads(line) for line in manifest.read_text().splitlines()]
            videos = [{"video": line["video"], "num_frames": line["num_frames"]} for line in reversed(lines)]
            captions = {"captions": ["another"]}
            write_lines(manifest, [line | video | captions for line, video in zip(lines, videos, strict=True)])
            write_shards(manifest, tmp_path / "other shards", clips_per_shard=5)
            shutil.copytree(tmp_path / "other shards", place, dirs_exist_ok=True)

        return put

    def test_a_new_run_sees_the_new_clips_whole(self, config, place, republish, tmp_path, caplog):
        before = build_dataset(config, seed=0)
        assert before[0, 3]["caption"] != "another"
        republish()
        with caplog.at_level(logging.WARNING):
            after = build_dataset(config, seed=0)
        assert "is not what it was" in caplog.text
        local = build_dataset(config_of(place), seed=0)
        assert_same_batches([after[0, 3]], [local[0, 3]])
        assert after[0, 3]["caption"] == "another"
        assert len(list((tmp_path / "downloads").rglob("shard-000000.tar"))) == 2

    def test_a_run_under_way_takes_no_shard_of_the_new_ones(self, config, republish):
        dataset = build_dataset(config, seed=0)
        kept = dataset[0, 3]
        republish()
        sample = dataset[0, 6]  # of a shard that is not here yet
        assert sample["skipped"][0][:2] == ("clip-6", "changed") and sample["caption"] != "another"
        assert_same_batches([dataset[0, 3]], [kept])

    def test_the_same_bytes_written_again_change_nothing(self, config, place, caplog):
        dataset = build_dataset(config, seed=0)
        for file in place.iterdir():
            os.utime(file, (0, 0))
        assert not dataset[0, 6]["skipped"]
        with caplog.at_level(logging.WARNING):
            assert build_dataset(config, seed=0).samples[0].root == dataset.samples[0].root
        assert not caplog.text
