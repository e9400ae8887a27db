"""What deploy/ holds fits the server: its metrics, its settings, its drain; names and paths that it shows exist."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from serving import client_of, make_state, make_worker, submit

from videomaker.serve.config import load_config
from videomaker.serve.supervisor import KILL_MARGIN

DEPLOY = Path(__file__).parent.parent / "deploy"
METRIC = re.compile(r"videomaker_\w+")


def exposed(folder):
    """The names that /metrics answers, of a server that made one video and failed with another."""
    state = make_state(folder)
    with client_of(state) as client:
        worker = make_worker(state)
        for prompt in ("a creature", "FAIL"):
            submit(client, prompt)
            assert worker.work_once()
        worker._beat()
        text = client.get("/metrics").text
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    parts = ("_bucket", "_sum", "_count")
    return {name + part for name, kind in kinds.items() for part in (parts if kind == "histogram" else ("",))}


def dashboard_queries():
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]] + [
        variable["query"] for variable in dashboard["templating"]["list"]
    ]


def alert_queries():
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def test_every_metric_that_is_drawn_or_watched_is_exposed(tmp_path):
    names = exposed(tmp_path)
    queries = dashboard_queries() + alert_queries()
    asked = {name for query in queries for name in METRIC.findall(query)}
    assert len(asked) >= 12 and asked - names == set()
    drawn = {name for query in dashboard_queries() for name in METRIC.findall(query)}
    own = {name for name in names if not name.endswith(("_bucket", "_sum", "_count", "_created"))}
    assert own - drawn == set()  # nothing is measured that nobody sees
    assert all(query.count(bracket) == query.count(other) for query in queries for bracket, other in ("()", "{}", "[]"))


def test_panels_have_their_own_places():
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    taken = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken and all(x < 24 for x, _ in cells)
        taken |= cells


def test_the_settings_that_are_shown_are_settings(tmp_path):
    file = tmp_path / "serve.toml"
    text = (DEPLOY / "serve.toml").read_text()
    file.write_text(text)
    assert load_config(file).allowed_hosts == ("video.example.org",)
    file.write_text(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))  # also what is commented out
    assert str(load_config(file).certificate) == "/etc/videomaker/signing.pem"


def test_the_unit_waits_for_the_drain_and_the_proxy_lets_every_body_in():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string((DEPLOY / "videomaker.service").read_text())
    config = load_config(DEPLOY / "serve.toml")
    assert int(unit["Service"]["TimeoutStopSec"]) > config.drain_seconds + KILL_MARGIN
    assert unit["Service"]["KillMode"] == "mixed"
    (limit,) = re.findall(r"max_size (\d+)MiB", (DEPLOY / "Caddyfile").read_text())
    assert int(limit) >= config.max_body_mib


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_reads_the_unit(tmp_path):
    unit = tmp_path / "videomaker.service"
    text = (DEPLOY / "videomaker.service").read_text()
    unit.write_text(text.replace("/opt/videomaker/.venv/bin/videomaker", shutil.which("true")))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert [line for line in checked.stderr.splitlines() if unit.name in line] == []


def test_the_container_installs_what_exists_and_serves():
    text = (DEPLOY / "Containerfile").read_text()
    root = DEPLOY.parent
    for source in re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE):
        assert (root / source).exists()
    extras = re.search(r"'\.\[([\w,]+)\]'", text)[1].split(",")
    declared = (root / "setup.py").read_text()
    assert all(f'"{extra}": [' in declared for extra in extras)
    names = set(re.findall(r"VIDEOMAKER_(\w+)=", text))
    assert names and all(hasattr(load_config(), name.lower()) for name in names)
    ignored = (root / ".containerignore").read_text().split()
    assert not {"kernels", "train", "videomaker", "setup.py", "README.md", "LICENSE"} & set(ignored)
