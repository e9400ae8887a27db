"""Negative prompts: presets by name, and such as say nothing."""

import pytest
from generating import generate
from tiny import tiny_pipeline

from videomaker import InputError
from videomaker.jobs.negatives import NEGATIVE_PRESETS, negative_prompt
from videomaker.jobs.request import check_prompt, check_text


def test_negative_prompts_by_name(tmp_path):
    assert negative_prompt("mine", None) == "mine" and negative_prompt(None, None) is None
    with pytest.raises(InputError, match="one of the two"):
        negative_prompt("mine", "people")
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    code, output, record = generate(tmp_path, "--model", model, "--negative-preset", "objects")
    assert code == 0, output
    assert record["settings"]["negative_prompt"] == NEGATIVE_PRESETS["objects"]


def test_a_negative_prompt_may_say_nothing(tmp_path):
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    code, output, record = generate(tmp_path, "--model", model, "--negative-prompt", " ")
    assert code == 0, output
    assert record["settings"]["negative_prompt"] == " "
    for text, words in {"a\x07": "control character", "x" * 10_001: "at most 10,000", "\udcff": "not UTF-8"}.items():
        with pytest.raises(InputError, match=words):
            check_text(text)
    with pytest.raises(InputError, match="a prompt is empty"):
        check_prompt(" ")
