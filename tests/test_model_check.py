"""Models looked over before anything loads: files, sizes, names of devices and backends; and without the libraries."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_motion_adapter, tiny_pipeline
from videomaker.kernels.pisa.api import BACKENDS

from videomaker import VideoMakerPipeline
from videomaker.attention import PisaAttnProcessor
from videomaker.errors import InputError
from videomaker.jobs import model_check
from videomaker.jobs.defaults import settings_without_model
from videomaker.jobs.parts import load_adapter
from videomaker.jobs.prepare import load_pipeline, resolve_model
from videomaker.jobs.request import ModelSpec, Settings
from videomaker.model_files import check_numbers, check_sizes, safetensors_header


def write(path, tensors: dict, size: int):
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return path


def test_the_header_of_a_file_is_read_and_damage_told(tmp_path):
    about = {"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    whole = write(tmp_path / "whole.safetensors", about, 8)
    assert safetensors_header(whole) == about
    with pytest.raises(InputError, match="cut short, 4 bytes"):
        safetensors_header(write(tmp_path / "cut.safetensors", about, 4))
    for content in (b"", b"\x00", b"\xff" * 20, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"xx"):
        whole.write_bytes(content)
        with pytest.raises(InputError, match="no safetensors file"):
            safetensors_header(whole)


@pytest.mark.parametrize("kind", ["BOOL", "I8", "U8", "C64", None])
def test_weights_that_are_no_floating_numbers(tmp_path, kind):
    about = {"dtype": kind, "shape": [1], "data_offsets": [0, 4]}
    with pytest.raises(InputError, match=r"holds a\.weight as"):
        check_numbers(tmp_path / "model.safetensors", {"a.weight": about})
    check_numbers(tmp_path / "model.safetensors", {"text_model.position_ids": {**about, "dtype": "I64"}})


def test_sizes_that_no_model_has(tmp_path):
    check_sizes(tmp_path / "config.json", {"layers_per_block": 2, "block_out_channels": [320, 640]})
    for config in ({"layers_per_block": 10**9}, {"block_out_channels": [320, 10**9]}, {"num_hidden_layers": 1000}):
        with pytest.raises(InputError, match="which no model has"):
            check_sizes(tmp_path / "config.json", config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "gpu"}, "device 'gpu' is unknown"),
        ({"device": ""}, "is unknown"),
        ({"device": "cpu; rm"}, "is unknown"),
        ({"attention_backend": "flash"}, "unknown attention backend 'flash'"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"weights": "missing.bin"}, "checkpoint missing.bin does not exist"),
        ({"loras": ("missing.safetensors:0.5",)}, "is no .safetensors or .bin file"),
        ({"vae": "missing"}, "VAE 'missing' is not here"),
        ({"motion_adapter": "x" * 5000}, "motion adapter"),
    ],
)
def test_what_a_model_is_asked_to_be(changes, words):
    with pytest.raises(InputError, match=words) as caught:
        model_check.check_model(ModelSpec(**changes))
    assert len(str(caught.value)) < 400


def test_names_are_those_of_the_libraries():
    assert set(model_check.BACKENDS) == {"auto", *BACKENDS}


LIGHT = """
import sys
from typer.testing import CliRunner
from videomaker.cli import app
for words in {commands!r}:
    code = CliRunner().invoke(app, words).exit_code
    assert code == (0 if "--help" in words else 2), (words, code)
    assert "torch" not in sys.modules, words
"""


def test_slips_are_told_before_the_libraries_load(tmp_path):
    """One process for all, since what it has not loaded by the last command it never has."""
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "bad.json").write_text("{}")
    make = ["generate", "-r", str(tmp_path / "a.png"), "-p", "a fox", "-o", str(tmp_path / "out.mp4")]
    commands = [
        ["--help"], ["generate", "--help"], ["evaluate", "run", "--help"],
        ["generate", "--from-json", str(tmp_path / "bad.json")], ["generate", "--from-json", "missing.json"],
        [*make, "--model", "missing"], [*make, "--width", "33"], [*make, "--device", "gpu"],
        [*make, "--attention-backend", "flash"], [*make, "--weights", "missing.bin"], [*make, "--vae", "missing"],
        [*make, "--lora", "missing"], [*make, "--models", "x"], [*make, "--artifacts", "x"],
        ["export", str(tmp_path / "missing")], ["convert", "missing.bin", str(tmp_path / "x.safetensors")],
        ["evaluate", "run", str(tmp_path / "missing")],
        ["warmup", "--save", str(tmp_path / "w"), "--width", "33"],
    ]  # fmt: skip
    script = LIGHT.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(place)
    return place


def says(file: str, **values):
    """Damage: a configuration that says something else."""

    def change(folder):
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**config, **values}))

    return change


def zeros(file: str):
    """Damage: weights as a download leaves them that reserved its place and never came."""
    return lambda folder: save_file({name: 0 * x for name, x in load_file(folder / file).items()}, folder / file)


def number(file: str, name: str, value: float):
    """Damage: one number of a tensor is another, as a changed byte may make it."""

    def change(folder):
        tensors = load_file(folder / file)
        tensors[next(key for key in tensors if name in key)].view(-1)[-1] = value
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return change


def fewer_tokens(folder):
    """Damage: the tokenizer of another model, whose tokens are all known to the text encoder."""
    file = folder / "tokenizer" / "tokenizer.json"
    document = json.loads(file.read_text())
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {token: i for token, i in vocabulary.items() if not 400 <= i < 500}
    file.write_text(json.dumps(document))


UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text("{}"), "_class_name"),
        (says("scheduler/scheduler_config.json", timestep_spacing="x"), "cannot be used: ValueError"),
        (says("unet/config.json", sample_size="x"), "sample_size 'x'"),
        (says("unet/config.json", sample_size=0), "sample_size '0'"),
        (says("unet/config.json", motion_max_seq_length="x"), "cannot be loaded"),
        (says("unet/config.json", norm_eps=[]), "cannot be used: TypeError"),
        (says("vae/config.json", scaling_factor="x"), "scaling_factor 'x'"),
        (says("vae/config.json", scaling_factor=float("nan")), "scaling_factor 'nan'"),
        (says("vae/config.json", shift_factor=0.1), "of another family"),
        (zeros("text_encoder/model.safetensors"), "only zeros in its text_encoder"),
        (zeros(UNET), "only zeros in its unet"),
        (says("text_encoder/config.json", num_hidden_layers=1), "16 of 36 tensors have no place"),
        (says("unet/config.json", use_motion_mid_block=False), "have no place in what its config.json says"),
        (says("vae/config.json", mid_block_add_attention=False), "have no place in what its config.json says"),
        (fewer_tokens, "tokenizer of 414 tokens for a text encoder of 514"),
        (number(UNET, "attn1.to_q", 1e30), "or that no model has"),
        (number(UNET, "pos_embed.pe", float("nan")), "are not finite"),
        (number(VAE, "encoder.conv_in.weight", -1e20), "or that no model has"),
        (number("text_encoder/model.safetensors", "fc1.bias", float("inf")), "are not finite"),
    ],
)
def test_damage_is_told_before_the_work(folder, tmp_path, damage, words):
    shutil.copytree(folder, tmp_path / "model")
    damage(tmp_path / "model")
    spec = ModelSpec(source=str(tmp_path / "model"))
    with suppress(InputError):
        settings_without_model(spec, Settings())  # as `generate` does first: it refuses, or leaves it to the loading
    with pytest.raises(InputError, match=words):
        load_pipeline(resolve_model(spec))


@pytest.mark.parametrize("value", [float("nan"), 1e30])
@pytest.mark.parametrize("file", [UNET, VAE, "text_encoder/model.safetensors"])
def test_damaged_numbers_are_refused_in_python_too(folder, tmp_path, file, value):
    shutil.copytree(folder, tmp_path / "model")
    number(file, "weight", value)(tmp_path / "model")
    with pytest.raises(InputError, match=f"{file.split('/')[0]} has 1 tensors with numbers .* no model has, such as"):
        VideoMakerPipeline.from_pretrained(tmp_path / "model")


def test_a_whole_model_is_tried_and_keeps_its_kernels(folder):
    pipe = load_pipeline(resolve_model(ModelSpec(source=str(folder))))
    processors = [kind for kind in pipe.unet.attn_processors.values() if isinstance(kind, PisaAttnProcessor)]
    assert processors and {kind.backend for kind in processors} == {"auto"}


@pytest.mark.parametrize(
    ("part", "layer"),
    [
        ("UNet", lambda pipe: pipe.unet.conv_out),
        ("VAE", lambda pipe: pipe.vae.decoder.conv_out),
        ("VAE's encoder", lambda pipe: pipe.vae.encoder.conv_out),
        ("text encoder", lambda pipe: getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm),
    ],
)
def test_numbers_that_overflow_together_are_found_by_trying(part, layer):
    pipe = tiny_pipeline()
    layer(pipe).weight.data.fill_(3e38)
    with pytest.raises(InputError, match=f"numbers of its {part} overflow in torch.float32"):
        model_check.try_out(pipe, "m")
    assert any(isinstance(kind, PisaAttnProcessor) for kind in pipe.unet.attn_processors.values())


def test_one_tensor_without_a_place_is_a_warning_with_its_name(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "model")
    files = (UNET, VAE, "text_encoder/model.safetensors")
    for file in files:
        path = tmp_path / "model" / file
        save_file({**load_file(path), "some.counter": torch.ones(1)}, path, metadata={"format": "pt"})
    VideoMakerPipeline.from_pretrained(tmp_path / "model")
    told = [record.message for record in caplog.records if "some.counter" in record.message]
    assert len([x for x in told if "config.json has no place" in x]) == len(files)


def test_names_of_an_old_vae_have_their_place(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / "model" / VAE)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, tmp_path / "model" / VAE, metadata={"format": "pt"})
    load_pipeline(resolve_model(ModelSpec(source=str(tmp_path / "model"))))


@pytest.mark.parametrize("safe", [True, False])
def test_a_motion_adapter_configured_with_less_than_its_file_holds(tmp_path, safe):
    tiny_motion_adapter().save_pretrained(tmp_path, safe_serialization=safe)
    load_adapter(str(tmp_path), torch.float32)
    says("config.json", use_motion_mid_block=False)(tmp_path)
    with pytest.raises(InputError, match=r"26 of 189 tensors have no place .* such as mid_block\.motion_modules"):
        load_adapter(str(tmp_path), torch.float32)
