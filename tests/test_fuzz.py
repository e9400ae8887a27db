"""A small deterministic fuzz of what people hand over: every input is read, or refused as an InputError.

`VIDEOMAKER_FUZZ=4000 pytest tests/test_fuzz.py` tries as many of each kind; `python bench/fuzz_inputs.py` is the large
fuzz, each of whose cases is a command or a call in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from videomaker.errors import InputError
from videomaker.generation import read_generation_defaults
from videomaker.jobs.record import read_record
from videomaker.jobs.request import parse_seeds, read_prompts
from videomaker.pictures import load_labels, load_reference

COUNT = int(os.environ.get("VIDEOMAKER_FUZZ", "200"))
ODD = (None, True, -1, 0, 1, 1e9, 10**30, float("nan"), "", "x" * 10_000, "\ud800", [], {}, [[]], "../x", "\0")
RECORD = {
    "record_version": 2, "video": "x.mp4", "prompt": "a fox", "seed": 0,
    "references": [{"path": "x.png", "sha256": "0" * 64}],
    "model": {
        "source": "default", "motion_adapter": None, "weights": None, "dtype": "float32", "device": "cpu",
        "attention_backend": "auto", "offload": False, "compile": False,
    },
    "settings": {
        "steps": 2, "guidance": 2.0, "negative_prompt": "", "width": 32, "height": 32, "frames": 4, "fps": 8,
        "fit": "stretch",
    },
    "output": {"format": "mp4", "upscale": 8}, "components_sha256": {"unet": "0" * 64}, "batch": None,
    "machine": {"threads": 1}, "video_sha256": "0" * 64,
}  # fmt: skip


def changed(document: dict, rng: np.random.Generator) -> dict:
    """One value anywhere in a JSON document replaced by an odd one, or taken away."""
    document = json.loads(json.dumps(document))
    part, key = document, None
    while True:
        key = list(part)[rng.integers(len(part))]
        if not isinstance(part[key], dict) or rng.random() < 0.3:
            break
        part = part[key]
    if rng.random() < 0.2:
        del part[key]
    else:
        part[key] = ODD[rng.integers(len(ODD))]
    return document


def read_or_refuse(read, *arguments) -> None:
    try:
        read(*arguments)
    except InputError as error:
        assert str(error) and "\n" not in str(error)


def test_a_whole_record_is_read(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(RECORD))
    assert read_record(tmp_path / "x.json")["video"] == "x.mp4"
    (tmp_path / "x.json").write_text(json.dumps({**RECORD, "machine": {"threads": 100_000}}))
    with pytest.raises(InputError, match="threads"):
        read_record(tmp_path / "x.json")


def test_records_and_defaults(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(COUNT):
        (tmp_path / "x.json").write_text(json.dumps(changed(RECORD, rng)))
        read_or_refuse(read_record, tmp_path / "x.json")
        defaults = {"num_frames": 8, "width": 32, "guidance_scale": 2.0, "note": "a"}
        (tmp_path / "generation.json").write_text(json.dumps(changed(defaults, rng)))
        read_or_refuse(read_generation_defaults, tmp_path)


def test_bytes_as_anything(tmp_path):
    rng = np.random.default_rng(1)
    for index in range(COUNT):
        content = rng.integers(0, 256, int(rng.integers(0, 300)), np.uint8).tobytes()
        (tmp_path / "x.txt").write_bytes(content)
        for read in (load_reference, load_labels):
            read_or_refuse(read, content)
        for read in (read_record, lambda path: read_prompts([str(path)])):
            read_or_refuse(read, tmp_path / "x.txt")
        read_or_refuse(parse_seeds, content.decode("latin-1"))
        read_or_refuse(read_prompts, [str(ODD[index % len(ODD)])])


def test_the_first_cases_of_the_large_fuzz(tmp_path):
    """Two of each of its nineteen kinds, in children with limits."""
    script = Path(__file__).parents[1] / "bench" / "fuzz_inputs.py"
    words = ["--count", "38", "--seed", "12", "--jobs", "1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-P", str(script), *words], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["cases"] == 38


def test_a_lost_process_of_the_large_fuzz_is_told(tmp_path):
    """Its cases did not run, and what is left of the others must not pass for all."""
    code = """
import os, sys
from pathlib import Path
import fuzz_inputs
Outcome = fuzz_inputs.zygote.Outcome
fuzz_inputs.zygote.run_case = lambda name, make: os._exit(9) if name == "prompts:0:1" else Outcome(name)
names, results = ["prompts:0:0", "prompts:0:1"], Path(sys.argv[1])
assert fuzz_inputs._run_all(names, None, results, 2, 100) == 1
fuzz_inputs._report(fuzz_inputs._outcomes(results), names)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "bench")}
    command = [sys.executable, "-c", code, str(tmp_path / "results.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    told, summary = done.stdout.splitlines()
    assert told.startswith("1 of 2 processes ended before their cases did")
    assert {**json.loads(summary), "kinds": None} == {"cases": 1, "left": 1, "failed": 0, "why": {}, "kinds": None}
