"""Models as diffusers users have them: single files, variants alone, hub names, other VAEs, LoRAs, presets."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from ldm import (
    original_checkpoint,
    original_motion_module,
    original_vae,
    sd_motion_adapter,
    sd_text_encoder,
    sd_unet,
    sd_vae,
    write_checkpoint,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_motion_adapter, tiny_pipeline, tiny_unet2d
from typer.testing import CliRunner

from videomaker import InputError
from videomaker.cli import app
from videomaker.jobs.negatives import NEGATIVE_PRESETS, negative_prompt
from videomaker.jobs.parts import fuse_loras, load_adapter, load_vae, split_lora
from videomaker.jobs.prepare import load_pipeline
from videomaker.jobs.request import ModelSpec, check_prompt, check_text
from videomaker.weights import load_into
from videomaker.weights.single_file import clip_tokenizer, load_base, load_motion_adapter
from videomaker.weights.sources import pin, variant_of

QUICK = ["--steps", "1", "--frames", "2", "--width", "64", "--height", "64", "--guidance", "2", "--format", "frames"]


def generate(folder: Path, *arguments) -> tuple[int, str, dict]:
    picture = folder / "subject.png"
    Image.new("RGB", (64, 64), "white").save(picture)
    command = ["generate", "-r", picture, "-p", "a thing", "-o", folder / "out", *QUICK, "--overwrite", *arguments]
    result = CliRunner().invoke(app, list(map(str, command)))
    records = list((folder / "out").glob("*.json")) if (folder / "out").exists() else []
    return result.exit_code, result.output, json.loads(records[0].read_text()) if records else {}


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


def test_a_folder_with_half_precision_files_alone_is_taken(tmp_path):
    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(folder / "unet")
    tiny_unet2d().half().save_pretrained(folder / "unet", variant="fp16")
    for part in ("vae", "text_encoder"):
        shutil.rmtree(folder / part)
        getattr(pipe, part).half().save_pretrained(folder / part, variant="fp16")
    tiny_motion_adapter().half().save_pretrained(adapter, variant="fp16")
    assert variant_of(folder / "unet") == variant_of(adapter) == "fp16"
    code, output, _ = generate(tmp_path, "--model", folder, "--motion-adapter", adapter)
    assert code == 0, output
    pipe.vae.save_pretrained(folder / "vae")
    assert variant_of(folder / "vae") is None  # a plain file beside it comes first
    code, output, _ = generate(tmp_path, "--model", folder, "--motion-adapter", adapter)
    assert code == 0, output


def test_a_hub_name_is_found_in_the_cache_and_pinned(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--someone--thing" / "snapshots" / commit
    tiny_pipeline().save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert pin("someone/thing") == f"someone/thing@{commit}"
    code, output, record = generate(tmp_path, "--model", "someone/thing")
    assert code == 0, output
    assert record["model"]["source"] == f"someone/thing@{commit}"
    (file,) = (tmp_path / "out").glob("*.json")
    again = CliRunner().invoke(app, ["generate", "--from-json", str(file), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0 and "the same bytes" in again.output
    code, output, _ = generate(tmp_path, "--model", "someone/else")
    assert code == 2 and "not in the hub's cache" in output.replace("\n", " ")


def test_another_vae_from_a_folder_and_from_one_file(tmp_path, parts):
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    other = tiny_pipeline(seed=7).vae
    other.save_pretrained(tmp_path / "vae")
    spec = ModelSpec(source=str(model), dtype="float32", device="cpu", vae=str(tmp_path / "vae"))
    loaded = load_pipeline(spec).vae.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in other.state_dict().items())
    for prefix in ("", "first_stage_model."):
        state = {prefix + name: value for name, value in original_vae(parts["vae"]).items()}
        save_file(state, tmp_path / "vae.safetensors")
        found = load_vae(str(tmp_path / "vae.safetensors"), torch.float32).state_dict()
        assert all(torch.equal(found[name], value) for name, value in parts["vae"].state_dict().items())
    with pytest.raises(InputError, match=r"no folder with config\.json"):
        load_vae(str(model / "tokenizer"), torch.float32)
    with pytest.raises(InputError, match="nor a single file"):
        load_adapter(str(tmp_path), torch.float32)


def lora_file(path: Path, unet) -> tuple[str, torch.Tensor]:
    """A LoRA of one layer; returns the layer's name and the change at scale 1."""
    name = next(n for n, _ in unet.named_modules() if n.endswith("attn1.to_q") and "motion" not in n)
    width = unet.get_submodule(name).in_features
    down, up = torch.randn(2, width), torch.randn(width, 2)
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, path)
    return name, up @ down


def test_loras_are_added_into_the_weights(tmp_path):
    pytest.importorskip("peft")
    pipe = tiny_pipeline()
    name, change = lora_file(tmp_path / "l.safetensors", pipe.unet)
    before = pipe.unet.get_submodule(name).weight.clone()
    names = set(pipe.unet.state_dict())
    fuse_loras(pipe, (f"{tmp_path / 'l.safetensors'}:0.5",))
    assert set(pipe.unet.state_dict()) == names
    torch.testing.assert_close(pipe.unet.get_submodule(name).weight, before + 0.5 * change)
    fuse_loras(pipe, (str(tmp_path / "l.safetensors"),))
    torch.testing.assert_close(pipe.unet.get_submodule(name).weight, before + 1.5 * change)
    save_file({"another.lora_A.weight": torch.ones(2, 2)}, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="cannot be used"):
        fuse_loras(pipe, (str(tmp_path / "bad.safetensors"),))
    broken = {key: value / 0 for key, value in load_file(tmp_path / "l.safetensors").items()}
    save_file(broken, tmp_path / "inf.safetensors")
    with pytest.raises(InputError, match="2 of its tensors hold numbers that no LoRA has"):
        fuse_loras(pipe, (str(tmp_path / "inf.safetensors"),))


def test_a_loras_scale_follows_a_colon(tmp_path):
    (tmp_path / "a:b.safetensors").touch()
    assert split_lora(f"{tmp_path}/a:b.safetensors") == (tmp_path / "a:b.safetensors", 1.0)
    assert split_lora(f"{tmp_path}/a:b.safetensors:0.3") == (tmp_path / "a:b.safetensors", 0.3)
    with pytest.raises(InputError, match=r"no .safetensors or .bin file"):
        split_lora(f"{tmp_path}/none.safetensors:2")
    for scale in ("nan", "inf", "-1e30"):
        with pytest.raises(InputError, match="has the scale"):
            split_lora(f"{tmp_path}/a:b.safetensors:{scale}")


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


def test_one_unknown_tensor_is_a_warning_with_its_name(caplog):
    unet = tiny_pipeline().unet
    state = {**tiny_pipeline(seed=3).unet.state_dict(), "some.counter": torch.ones(1)}
    report = load_into(unet, state)
    assert report.complete
    assert "some.counter" in caplog.text
    strangers = {f"some.{number}": torch.ones(1) for number in range(50)}
    with pytest.raises(InputError, match="51 tensors that this UNet has not"):
        load_into(unet, state | strangers)
