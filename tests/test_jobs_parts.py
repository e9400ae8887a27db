"""Parts that a model is given: another VAE, a motion adapter, LoRAs."""

import json
from pathlib import Path

import pytest
import torch
from ldm import original_vae, sd_vae
from safetensors.torch import load_file, save_file
from tiny import tiny_motion_adapter, tiny_pipeline

from videomaker import InputError
from videomaker.jobs.parts import fuse_loras, load_adapter, load_vae, split_lora
from videomaker.jobs.prepare import load_pipeline, resolve_model
from videomaker.jobs.request import ModelSpec


def test_another_vae_from_a_folder_and_from_one_file(tmp_path):
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    other = tiny_pipeline(seed=7).vae
    other.save_pretrained(tmp_path / "vae")
    spec = ModelSpec(source=str(model), dtype="float32", device="cpu", vae=str(tmp_path / "vae"))
    loaded = load_pipeline(spec).vae.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in other.state_dict().items())
    plain = sd_vae()
    for prefix in ("", "first_stage_model."):
        state = {prefix + name: value for name, value in original_vae(plain).items()}
        save_file(state, tmp_path / "vae.safetensors")
        found = load_vae(str(tmp_path / "vae.safetensors"), torch.float32).state_dict()
        assert all(torch.equal(found[name], value) for name, value in plain.state_dict().items())
    with pytest.raises(InputError, match=r"no folder with config\.json"):
        load_vae(str(model / "tokenizer"), torch.float32)
    with pytest.raises(InputError, match="nor a single file"):
        load_adapter(str(tmp_path), torch.float32)


def test_a_part_of_a_size_that_no_model_has_is_refused_before_it_is_built(tmp_path):
    tiny_pipeline().vae.save_pretrained(tmp_path / "vae")
    tiny_motion_adapter().save_pretrained(tmp_path / "adapter")
    for load, part, name in (
        (load_vae, "vae", "layers_per_block"),
        (load_adapter, "adapter", "motion_transformer_layers_per_mid_block"),
    ):
        file = tmp_path / part / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), name: 10**9}))
        with pytest.raises(InputError, match=f"{name} is 1000000000, which no model has"):
            load(str(tmp_path / part), torch.float32)


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


def test_a_device_that_is_not_there_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    for device, reason in (("cuda:0", "is built without CUDA"), ("mps", "no GPU of Apple's"), ("gpu", "device")):
        with pytest.raises(InputError, match=rf"{device}' cannot be used here, .*{reason}.*: choose auto, cpu$"):
            resolve_model(ModelSpec(device=device))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(InputError, match=r"torch finds no GPU: choose auto, cpu$"):
        resolve_model(ModelSpec(device="cuda"))
