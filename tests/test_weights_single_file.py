"""Checkpoints and motion modules of one file, as Stable Diffusion's own code wrote them."""

from pathlib import Path

import pytest
import torch
from generating import generate
from ldm import (
    original_checkpoint,
    original_motion_module,
    sd_motion_adapter,
    sd_text_encoder,
    sd_unet,
    sd_vae,
    write_checkpoint,
)
from safetensors.torch import save_file

from videomaker import InputError
from videomaker.jobs.parts import load_adapter
from videomaker.weights.single_file import clip_tokenizer, load_base, load_motion_adapter


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    return {"unet": sd_unet(), "vae": sd_vae(), "text_encoder": sd_text_encoder()}


@pytest.fixture(scope="module")
def single(parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    state = original_checkpoint(**parts)
    write_checkpoint(folder / "base.safetensors", state)
    write_checkpoint(folder / "base.ckpt", state)
    adapter = sd_motion_adapter(use_motion_mid_block=False)
    write_checkpoint(folder / "mm.ckpt", original_motion_module(adapter))
    adapter.save_pretrained(folder / "mm")
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_checkpoint_of_one_file_gives_the_parts_it_was_made_of(parts, single, suffix):
    loaded = load_base(single / f"base{suffix}", torch.float32)
    for name, part in parts.items():
        state, wanted = loaded[name].state_dict(), part.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted), name
    assert loaded["vae"].config.scaling_factor == 0.18215
    assert loaded["scheduler"].config.beta_start == 0.00085


def test_the_tokenizer_is_clips():
    """Ids of OpenAI's CLIP for these texts, the paper's tokenizer."""
    tokenizer = clip_tokenizer()
    assert len(tokenizer.get_vocab()) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A Dog, naïve!").input_ids == [49406, 320, 1929, 267, 1097, 35689, 563, 256, 49407]
    assert tokenizer("", padding="max_length").input_ids == [49406, *[49407] * 76]


def test_a_motion_module_of_one_file_brings_its_shape(single):
    adapter = load_motion_adapter(single / "mm.ckpt", torch.float16)
    assert adapter.dtype == torch.float16
    assert adapter.config.use_motion_mid_block is False
    assert tuple(adapter.config.block_out_channels) == (32, 32, 64, 64)
    wanted = load_adapter(str(single / "mm"), torch.float16).state_dict()
    assert all(torch.equal(value, adapter.state_dict()[name]) for name, value in wanted.items())
    longer = sd_motion_adapter(motion_max_seq_length=24)
    write_checkpoint(single / "v1.safetensors", original_motion_module(longer))
    adapter = load_motion_adapter(single / "v1.safetensors", torch.float32)
    assert (adapter.config.motion_max_seq_length, adapter.config.use_motion_mid_block) == (24, True)


def test_single_files_make_a_video_from_the_command_line(single, tmp_path):
    code, output, record = generate(
        tmp_path, "--model", single / "base.safetensors", "--motion-adapter", single / "mm.ckpt"
    )
    assert code == 0, output
    assert record["model"]["source"] == str(single / "base.safetensors")
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 2


def test_files_of_other_models_are_refused_in_words(single, parts, tmp_path):
    alone = tmp_path / "other.safetensors"
    save_file({"conditioner.embedders.0.x": torch.ones(1)}, alone)
    code, output, _ = generate(tmp_path, "--model", alone, "--motion-adapter", single / "mm.ckpt")
    assert code == 2 and "Stable Diffusion XL" in output
    code, output, _ = generate(tmp_path, "--model", single / "base.safetensors")
    assert code == 2 and "give --motion-adapter" in output
    code, output, _ = generate(
        tmp_path, "--model", single / "base.ckpt", "--motion-adapter", single / "base.safetensors"
    )
    assert code == 2 and "no motion module" in output
    state = original_checkpoint(**parts)
    del state["model.diffusion_model.out.2.weight"]
    with pytest.raises(InputError, match=r"UNet2DConditionModel of Stable Diffusion 1\.5: it lacks tensors"):
        load_base(write_checkpoint(tmp_path / "cut.safetensors", state), torch.float32)


@pytest.mark.parametrize("part", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
def test_damaged_numbers_in_one_file_are_refused(parts, tmp_path, part):
    state = original_checkpoint(**parts)
    name = next(key for key in state if key.startswith(part) and state[key].is_floating_point())
    state[name] = state[name].clone().fill_(1e30)
    with pytest.raises(InputError, match="numbers that are not finite or that no model has"):
        load_base(write_checkpoint(tmp_path / "base.safetensors", state), torch.float32)
