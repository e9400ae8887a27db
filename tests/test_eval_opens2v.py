"""OpenS2V-Eval's measures: tiny random networks in their real formats against independent computations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_metrics import moving_video, write_networks, write_suite
from typer.testing import CliRunner

from videomaker import media
from videomaker.cli import app
from videomaker.errors import InputError
from videomaker.evaluation.networks import MissingNetwork
from videomaker.evaluation.opens2v import OPENS2V, UNAVAILABLE, Aesthetic, Farneback, Gme, sampled

FRAMES = moving_video(1, frames=3)


def write_aesthetic(folder: Path) -> Path:
    """CLIP's picture side and a head of LAION's shape, narrower."""
    write_networks(folder)
    torch.manual_seed(1)
    head = torch.nn.Sequential(torch.nn.Linear(12, 6), torch.nn.Dropout(0.2), torch.nn.Linear(6, 1))
    torch.save({f"layers.{name}": value for name, value in head.state_dict().items()}, folder / "clip" / "head.pth")
    (folder / "clip").rename(folder / "aesthetic")
    return folder / "aesthetic"


def write_gme(folder: Path) -> Path:
    """Qwen2-VL of 2 layers as `Qwen2VLForConditionalGeneration` writes it, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(bytes_)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    text = {
        "vocab_size": 262, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 258, "eos_token_id": 257,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "mlp_ratio": 2}
    torch.manual_seed(2)
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=260, vision_start_token_id=259, vision_end_token_id=261
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_aesthetic(folder)
    write_gme(folder / "gme")
    write_networks(folder)
    return folder


def test_frames_are_sampled_as_theirs_are():
    """32 of any number, evenly, the last one included: of 16, each twice, but the first thrice and the last once."""
    assert np.bincount(sampled(16)).tolist() == [3, *[2] * 14, 1]
    assert sampled(32).tolist() == list(range(32))
    assert set(sampled(1)) == {0}


def test_aesthetics_by_hand(models):
    from transformers import CLIPModel

    network = Aesthetic(models / "aesthetic", "cpu")
    clip = CLIPModel.from_pretrained(models / "clip")  # the same weights
    head = torch.load(models / "aesthetic" / "head.pth", weights_only=True)
    values = []
    for frame in FRAMES:
        pixels = network.processor(images=Image.fromarray(frame), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            embedding = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)[0]
        unit = (embedding / embedding.norm()).numpy()
        hidden = head["layers.0.weight"].numpy() @ unit + head["layers.0.bias"].numpy()
        values.append(float((head["layers.2.weight"].numpy() @ hidden + head["layers.2.bias"].numpy())[0]))
    found = network.score(FRAMES, "")
    np.testing.assert_allclose(found.frames, values, atol=1e-6)
    assert found.value == pytest.approx(np.mean([values[i] for i in sampled(3)]), abs=1e-6)


def test_heads_that_do_not_fit(models, tmp_path):
    folder = write_aesthetic(tmp_path)
    torch.save({"layers.0.weight": torch.ones(2, 12), "layers.0.bias": torch.ones(2)}, folder / "head.pth")
    with pytest.raises(InputError, match="no aesthetic predictor for this CLIP"):
        Aesthetic(folder, "cpu")
    (folder / "head.pth").unlink()
    with pytest.raises(MissingNetwork, match=r"holds 0 \.pth files: put openai/clip-vit-large-patch14"):
        Aesthetic(folder, "cpu")


def test_motion_amplitude_is_the_drift_of_the_picture():
    """A smooth picture shifted by whole pixels: half the shift, the mean over both directions; none when still."""
    pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).resize((240, 240), Image.Resampling.BICUBIC)
    picture = np.asarray(noise)
    frames = np.stack([picture[20:212, start : start + 192] for start in (8, 6, 4)])  # what is seen moves right by 2
    network = Farneback()
    found = network.score(frames, "")
    assert len(found.frames) == 2 and found.value == pytest.approx(1, abs=0.15)
    back = network.score(frames[::-1], "")
    assert back.value == pytest.approx(1, abs=0.15) and max(back.frames) < 0 < min(found.frames)
    assert network.score(np.stack([picture] * 3), "").value < 1e-3
    there_and_back = network.score(np.concatenate([frames, frames[1::-1]]), "")
    assert there_and_back.value < 0.1  # signed flows cancel, as in their code
    with pytest.raises(MissingNetwork, match="one frame only"):
        network.score(frames[:1], "")


def test_gme_by_hand(models):
    """Against the whole model's hidden states, put together from its parts: picture tokens in the text's places."""
    from transformers import Qwen2VLForConditionalGeneration

    network, text = Gme(models / "gme", "cpu"), "a red fox"
    whole = Qwen2VLForConditionalGeneration.from_pretrained(models / "gme").eval().model

    def last(message, image=None):
        if image is not None:
            found = network.processor(images=image, return_tensors="pt")
            tokens = whole.visual(found["pixel_values"], grid_thw=found["image_grid_thw"]).pooler_output
            message = message.replace("<|image_pad|>", "<|image_pad|>" * len(tokens))
        ids = network.tokenizer(message, return_tensors="pt").input_ids
        embeds = whole.language_model.embed_tokens(ids)
        if image is not None:
            embeds[0, ids[0] == 260] = tokens
        line = torch.arange(ids.shape[1])[None]
        hidden = whole.language_model(inputs_embeds=embeds, position_ids=line).last_hidden_state[0, -1]
        return (hidden / hidden.norm()).numpy()

    frame = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    image = Image.fromarray(FRAMES[0]).resize((56, 56))  # the nearest of 28s with at least 4 cells
    with torch.no_grad():
        query = last(frame.format("Find an image that matches the given text.", text))
        seen = last(frame.format("You are a helpful assistant.", "<|vision_start|><|image_pad|><|vision_end|>"), image)
    found = network.score(FRAMES[:2], text)
    assert found.frames[0] == pytest.approx(float(query @ seen), abs=1e-5)
    assert found.value == pytest.approx((17 * found.frames[0] + 15 * found.frames[1]) / 32, abs=0.02)
    assert network.score(FRAMES[1:], text).frames[0] == found.frames[1]  # alone or after another


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("place")
    suite = write_suite(folder / "suite", subjects=2, prompts=1, seeds=(1,))
    for subject in ("s0", "s1"):
        (folder / "videos" / subject).mkdir(parents=True)
        media.write_mp4(folder / "videos" / subject / "0-1.mp4", moving_video(int(subject[1]), frames=3), fps=8)
    return folder / "videos", suite


def test_the_command_measures_them_beside_the_papers(models, place, tmp_path):
    pytest.importorskip("cv2")
    command = ["evaluate", "measure", *place, "--models", models, "-o", tmp_path / "out"]

    def run(*options):
        result = CliRunner().invoke(app, [*map(str, command), *options])
        assert result.exit_code == 0, result.output
        return result.output, json.loads((tmp_path / "out" / "report.json").read_text())

    _, first = run()
    assert first["opens2v"] is None
    output, second = run("--opens2v")
    assert second["metrics"] == first["metrics"]
    assert tuple(second["opens2v"]) == OPENS2V
    for name, value in second["opens2v"].items():
        assert (value["mean"] is None) == (name in UNAVAILABLE)
        assert value["count"] == (0 if name in UNAVAILABLE else 2)
    assert "GPT-4o, a closed model" in output.replace("\n", " ")
    _, third = run()  # not asked for: what was measured stays
    assert third["opens2v"] == second["opens2v"]
    values = json.loads((tmp_path / "out" / "measures" / "s0" / "0-1.json").read_text())["metrics"]
    assert len(values["gme_score"]["frames"]) == 3
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## OpenS2V-Eval's measures" in text and "- NexusScore: NexusScore needs YOLO-World" in text
    assert (
        (tmp_path / "out" / "videos.csv").read_text().splitlines()[0].endswith("aes_score,motion_amplitude,gme_score")
    )
