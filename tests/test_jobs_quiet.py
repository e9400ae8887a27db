"""What libraries say to programmers stays off the screen, and a model's note comes when it is of use."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from videomaker.train import main as training

from videomaker.environment import dtype_option
from videomaker.jobs.defaults import model_folder
from videomaker.jobs.prepare import warn_of_cut_prompts
from videomaker.jobs.quiet import quiet_libraries
from videomaker.pipeline import VideoMakerPipeline


def test_an_optional_kernel_is_not_told_and_the_rest_is(caplog):
    quiet_libraries()
    speaker = logging.getLogger("bitsandbytes.backends.cpu.ops")
    speaker.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please …", "no module")
    speaker.warning("Failed to load the library")
    assert [record.getMessage() for record in caplog.records] == ["Failed to load the library"]


def test_memory_is_counted_without_a_word_of_libraries():
    small = ["data.height=16", "data.width=16", "data.num_frames=2", f"model.path={model_folder('default')}"]
    command = [sys.executable, "-P", training.__file__, "--config", "smoke", "--dry-run", "--memory", *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize(
    ("prompt", "told"),
    [("a big creature hopping to the left over a green meadow", False), ("a dog over a green meadow", True)],
)
def test_the_note_comes_with_words_that_a_model_was_not_trained_on(caplog, prompt, told):
    pipe = VideoMakerPipeline.from_pretrained(model_folder("default"))
    with caplog.at_level("INFO"):
        warn_of_cut_prompts(pipe, [prompt])
    assert [record.levelname for record in caplog.records] == ["INFO"] * told
    assert ("knows one small world" in caplog.text) == told


def test_a_dtype_is_called_as_the_installed_diffusers_calls_it(monkeypatch):
    for version, name in {"0.36.0": "torch_dtype", "0.40.0": "dtype", "1.0.0.dev0": "dtype"}.items():
        monkeypatch.setattr("importlib.metadata.version", lambda package, version=version: version)
        assert dtype_option(5) == {name: 5} and dtype_option(None) == {}
