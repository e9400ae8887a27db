"""Changes of a pipeline after `compile()`: they act, or are refused in words; never are they ignored.

The graphs themselves are those of test_compiled; here the functions that they are made of run eagerly, in seconds.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from ip_adapters import ip_adapter_state
from PIL import Image
from tiny import tiny_pipeline, tiny_unet, tiny_vae

from videomaker import InputError
from videomaker.compiled import Approximations, Bucket, CompiledPipeline
from videomaker.compiled.graphs import CapturedGraph
from videomaker.denoising import apply_guidance
from videomaker.generation import GenerationDefaults

SIZE = 16
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def _run_eagerly():
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def pipe():
    pipe = tiny_pipeline()
    pipe.compiled = CompiledPipeline(pipe)
    return pipe


def run(pipe, **changes) -> torch.Tensor:
    settings = {"height": SIZE, "width": SIZE, "num_frames": 3, "num_inference_steps": 2, "output_type": "pt"}
    generator = torch.Generator().manual_seed(0)
    return pipe("a fox", PICTURE, **{**settings, "generator": generator, **changes}).frames


def lora(pipe, *, of_text: bool = False) -> dict[str, torch.Tensor]:
    prefix, model = ("text_encoder", pipe.text_encoder) if of_text else ("unet", pipe.unet)
    names = ("q_proj", "v_proj") if of_text else ("attn1.to_q", "attn1.to_v", "attn2.to_k")
    state = {}
    for name, module in model.named_modules():
        if name.endswith(names) and isinstance(module, torch.nn.Linear):
            state[f"{prefix}.{name}.lora_A.weight"] = torch.randn(2, module.in_features)
            state[f"{prefix}.{name}.lora_B.weight"] = torch.randn(module.out_features, 2)
    assert state
    return state


REFUSED = {
    "a LoRA": lambda pipe: pipe.load_lora_weights(lora(pipe)),
    "a LoRA of the text encoder": lambda pipe: pipe.load_lora_weights(lora(pipe, of_text=True)),
    "FreeU": lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "an IP-Adapter": lambda pipe: pipe.load_ip_adapter(
        [ip_adapter_state(pipe.unet)], subfolder=None, weight_name=None, image_encoder_folder=None
    ),
    "another UNet": lambda pipe: setattr(pipe, "unet", tiny_unet().eval()),
    "another VAE": lambda pipe: setattr(pipe, "vae", tiny_vae().eval()),
    "the VAE's slices": lambda pipe: pipe.vae.enable_slicing(),
    "the VAE's tiles": lambda pipe: pipe.vae.enable_tiling(),
    "the VAE fused": lambda pipe: pipe.fuse_qkv_projections(),
    "the VAE's processors": lambda pipe: pipe.vae.set_attn_processor(AttnProcessor()),
    "all of the UNet's processors": lambda pipe: pipe.unet.set_attn_processor(AttnProcessor2_0()),
    "one of the UNet's processors": lambda pipe: next(
        module for name, module in pipe.unet.named_modules() if name.endswith("attn2") and "motion" not in name
    ).set_processor(AttnProcessor()),
    "the UNet cast": lambda pipe: pipe.unet.to(torch.float64),
    "the VAE cast": lambda pipe: pipe.vae.to(torch.float64),
    "weights in another place": lambda pipe: pipe.vae.load_state_dict(
        {name: value.clone() for name, value in pipe.vae.state_dict().items()}, assign=True
    ),
    "a text encoder in another place": lambda pipe: pipe.text_encoder.load_state_dict(
        {name: value.clone() for name, value in pipe.text_encoder.state_dict().items()}, assign=True
    ),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_what_a_graph_does_not_hold_is_refused(pipe, change):
    run(pipe)
    change(pipe)
    with pytest.raises(
        InputError, match=r"compile\(\) again|lost their PISA|cannot be compiled|several precisions|UNet has weights"
    ):
        run(pipe)


def test_what_was_there_when_compiling_cannot_change_either():
    pipe = tiny_pipeline()
    pipe.load_lora_weights(lora(pipe), adapter_name="one")
    pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
    wanted = run(pipe)
    changes = {
        "scale": lambda: pipe.set_adapters(["one"], [0.3]),
        "off": lambda: pipe.disable_lora(),
        "fused": lambda: pipe.fuse_lora(),
        "unloaded": lambda: pipe.unload_lora_weights(),
        "FreeU off": lambda: pipe.disable_freeu(),
    }
    for name, change in changes.items():
        pipe.compiled = CompiledPipeline(pipe)
        if name == "scale":
            assert torch.allclose(run(pipe), wanted, atol=1e-4)
        change()
        with pytest.raises(InputError, match=r"call compile\(\) again"):
            run(pipe)


ACTING = {
    "another scheduler": lambda pipe: setattr(
        pipe, "scheduler", EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    ),
    "FreeInit": lambda pipe: pipe.enable_free_init(num_iters=2),
    "weights in their place": lambda pipe: pipe.unet.load_state_dict(
        {name: value * 0.9 for name, value in pipe.unet.state_dict().items()}
    ),
    "the UNet fused": lambda pipe: pipe.fuse_qkv_projections(vae=False),
    "the UNet unfused": lambda pipe: pipe.unfuse_qkv_projections(),
    "attention in slices": lambda pipe: pipe.enable_attention_slicing(),
}


@pytest.mark.parametrize("change", ACTING.values(), ids=ACTING)
def test_what_a_graph_takes_as_it_comes_acts(pipe, change):
    plain = tiny_pipeline()
    for one in (pipe, plain):
        change(one)
    assert torch.allclose(run(pipe), run(plain), atol=1e-4)


def test_compiling_again_takes_the_change():
    # In double precision: a LoRA of random weights makes the rounding of single precision large.
    pipe, plain = tiny_pipeline().to(torch.float64), tiny_pipeline().to(torch.float64)
    pipe.compiled = CompiledPipeline(pipe)
    for one in (pipe, plain):
        torch.manual_seed(1)
        one.load_lora_weights(lora(one))
        one.enable_freeu(0.9, 0.2, 1.2, 1.4)
    pipe.compiled = CompiledPipeline(pipe)
    assert torch.allclose(run(pipe), run(plain), atol=1e-9)


def test_a_compile_that_fails_leaves_the_pipeline_as_it_was(monkeypatch):
    small, odd = Bucket(2, SIZE, SIZE), Bucket(2, SIZE + 1, SIZE)
    many = replace(small, num_references=100)  # more than the motion modules take, which the rehearsal finds out
    fresh, pipe = tiny_pipeline(), tiny_pipeline()
    pipe.compile([small])
    graphs, encode = pipe.compiled, pipe.text_encoder._compiled_call_impl
    for bad, words in (([small, odd], "height of a bucket is 17"), ([small, many], "100"), ("x", "list of Bucket")):
        for one in (fresh, pipe):
            with pytest.raises(InputError, match=words):
                one.compile(bad)
        assert fresh.compiled is None and fresh.text_encoder._compiled_call_impl is None
        assert pipe.compiled is graphs and pipe.text_encoder._compiled_call_impl is encode
    run(pipe, num_frames=2)
    fresh.load_lora_weights(lora(fresh))
    run(fresh)


def test_without_shapes_the_call_that_leaves_everything_open_is_compiled():
    pipe = tiny_pipeline()
    pipe.generation_defaults = GenerationDefaults(num_frames=3, height=SIZE, guidance_scale=1.0, num_inference_steps=2)
    assert pipe.compile(undeclared="error").buckets == (Bucket(3, SIZE, 32, guidance=False),)
    pipe("a fox", PICTURE)


def test_diffusers_plain_processors_compile():
    plain, pipe = tiny_pipeline(), tiny_pipeline()
    pipe.unet.set_default_attn_processor()
    pipe.compile([Bucket(3, SIZE, SIZE)], undeclared="error")
    assert torch.allclose(run(pipe), run(plain), atol=1e-4)


def test_the_cost_of_a_shape_is_told_where_it_is_known(pipe, caplog):
    run(pipe)
    assert "not a declared shape: it runs eagerly" in caplog.text and "up to 0 s" not in caplog.text


def test_frames_are_decoded_as_while_compiling_whatever_memory_is_free(monkeypatch):
    pipe = tiny_pipeline()
    pipe.compile([Bucket(4, SIZE, SIZE)], undeclared="error")
    monkeypatch.setattr("videomaker.pipeline.latents.frames_at_once", lambda *_: 2)
    run(pipe, num_frames=4)


@pytest.mark.parametrize("reuse_every", range(1, 7))
@pytest.mark.parametrize("guidance_until", [1.0, 0.6])
def test_every_graph_of_the_approximations_is_rehearsed(reuse_every, guidance_until, monkeypatch):
    pipe, seen = tiny_pipeline(), set()
    pipe.approximations = Approximations(reuse_every=reuse_every, guidance_until=guidance_until)

    def step(unet, latents, reference, timestep, weights, guidance, text, inner=None, keep_inner=False):
        seen.add((guidance is None, inner is None, keep_inner))
        return latents.contiguous(), torch.zeros(1) if keep_inner else None

    monkeypatch.setattr("videomaker.compiled.graphs.denoising_step", step)
    pipe.compile([Bucket(2, SIZE, SIZE)])
    rehearsed = set(seen)
    seen.clear()
    run(pipe, num_frames=2, num_inference_steps=25)
    assert seen and seen <= rehearsed


def test_a_graph_is_captured_on_the_device_of_its_tensors(monkeypatch):
    """Streams and captures are the current device's, which on a machine of several GPUs is another."""
    current, happened = ["of the program"], []

    @contextmanager
    def device(name):
        current.append(name)
        yield
        current.pop()

    @contextmanager
    def told(*_, **options):
        happened.append((current[-1], *options))
        yield

    stream = SimpleNamespace(wait_stream=lambda _: None)
    parts = {
        "device": device,
        "graph": told,
        "stream": told,
        "current_stream": lambda: happened.append(current[-1:]) or stream,
    }
    parts |= {
        "Stream": parts["current_stream"],
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: happened.append(current[-1:])),
    }
    for name, part in parts.items():
        monkeypatch.setattr(torch.cuda, name, part)
    x = torch.zeros(2)
    assert torch.equal(CapturedGraph(lambda x: x + 1, (x,), None)(x), x + 1)
    assert (x.device, "pool", "stream") in happened and {one[0] for one in happened} == {x.device}


def test_guidance_keeps_its_value_in_half_precision():
    pipe = tiny_pipeline().to(torch.bfloat16)
    assert pipe._prepare_guidance(8.1, 1, 1).item() == pytest.approx(8.1, abs=1e-6)
    noise = torch.randn(2, 4, 2, 2, 2, dtype=torch.bfloat16)
    assert apply_guidance(noise, torch.full((1, 1, 1, 1, 1), 8.1)).dtype == torch.bfloat16


def test_a_folder_that_is_not_there_is_told_once(tmp_path, caplog):
    pipe = tiny_pipeline()
    report = pipe.compile([Bucket(2, SIZE, SIZE)], saved=tmp_path / "absent")
    assert report.artifacts.startswith("refused") and str(report).endswith("artifacts refused")
    assert "there is no such folder, make it with videomaker warmup --save" in caplog.text
    assert "Errno" not in caplog.text
