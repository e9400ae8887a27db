"""The surface that the pipeline inherits from AnimateDiffPipeline: every entry acts, or is refused in words."""

from __future__ import annotations

import copy
import pickle
import re
import threading
import time
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from tiny import (
    tiny_motion_adapter,
    tiny_pipeline,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_unet,
    tiny_unet2d,
    tiny_vae,
)
from transformers import CLIPTextConfig, CLIPTextModel

from videomaker import InputError, VideoMakerPipeline
from videomaker.compiled import Approximations
from videomaker.generation import GenerationDefaults
from videomaker.pipeline import ANIMATEDIFF_SCHEDULE

SIZE = 16


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def run(pipe, prompt="a fox", reference=None, **changes) -> torch.Tensor:
    settings = {"height": SIZE, "width": SIZE, "num_frames": 3, "num_inference_steps": 2, "output_type": "latent"}
    reference = picture() if reference is None and "reference_image_embeds" not in changes else reference
    return pipe(prompt, reference, **{**settings, "generator": torch.Generator().manual_seed(0), **changes}).frames


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return ((a - b).norm() / b.norm()).item() < 1e-4  # float32, sums in another order


def test_every_public_method_of_animatediff_is_there():
    missing = [name for name in dir(AnimateDiffPipeline) if not hasattr(VideoMakerPipeline, name)]
    assert not missing


def test_the_table_of_the_surface_is_complete():
    table = (Path(__file__).parents[1] / "docs" / "surface.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)`", table))
    methods = {name for name in dir(AnimateDiffPipeline) if not name.startswith("_")}
    arguments = set(signature(AnimateDiffPipeline.__call__).parameters) - {"self"}
    assert not (methods | arguments) - named


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ip_adapter_image": picture(1)}, "needs an IP-Adapter"),
        ({"ip_adapter_image_embeds": [torch.zeros(1, 1, 16)]}, "needs an IP-Adapter"),
        ({"ip_adapter_image_embeds": 5}, "needs an IP-Adapter"),
        ({"cross_attention_kwargs": [1]}, "cross_attention_kwargs is"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "give a list of names"),
        ({"callback_on_step_end_tensor_inputs": ["nonsense"]}, "nonsense"),
        ({"prompt_embeds": 5, "prompt": None}, "prompt_embeds is a int"),
        ({"negative_prompt": 5, "guidance_scale": 1.0}, "negative_prompt is a int"),
        ({"negative_prompt_embeds": torch.zeros(1, 77, 15), "guidance_scale": 1.0}, "negative_prompt_embeds has shape"),
    ],
)
def test_conditioning_that_nothing_hears_is_refused(changes, words):
    changes = {"prompt": "a fox", **changes}
    with pytest.raises(InputError, match=words):
        run(tiny_pipeline(), **changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.fuse_qkv_projections(),
        lambda pipe: (pipe.fuse_qkv_projections(), pipe.unfuse_qkv_projections()),
        lambda pipe: pipe.disable_xformers_memory_efficient_attention(),
        lambda pipe: pipe.enable_attention_slicing(),
        lambda pipe: setattr(pipe, "unet", _same_unet(pipe)),
        lambda pipe: pipe.unet.set_default_attn_processor(),
        lambda pipe: setattr(pipe, "unet", _default_copy(pipe)),
    ],
    ids=["fuse", "fuse and unfuse", "xformers off", "slicing", "another unet", "defaults", "defaults of a copy"],
)
def test_what_replaces_processors_keeps_the_subject(change):
    pipe = tiny_pipeline()
    before = run(pipe)
    change(pipe)
    assert near(run(pipe), before)


def _same_unet(pipe):
    unet = tiny_unet().eval()
    unet.load_state_dict(pipe.unet.state_dict())
    return unet


def _default_copy(pipe):
    unet = pickle.loads(pickle.dumps(copy.deepcopy(pipe.unet)))
    unet.set_default_attn_processor()
    return unet


def test_lost_processors_are_refused_unless_pisa_is_off_by_choice():
    pipe = tiny_pipeline()
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(InputError, match="lost their PISA processor"):
        run(pipe)
    parts = {name: part for name, part in pipe.components.items()}
    off = VideoMakerPipeline(**parts, use_pisa=False)
    off.set_progress_bar_config(disable=True)
    assert run(off).isfinite().all()


def test_two_pipelines_over_one_unet_act_as_each_was_made():
    first = tiny_pipeline()
    before = run(first)
    second = VideoMakerPipeline.from_pipe(first, reference_cross_attention=False)
    second.set_progress_bar_config(disable=True)
    assert torch.equal(run(first), before) and not near(run(second), before)
    assert torch.equal(run(first), before)
    with pytest.raises(InputError, match="has PISA processors"):
        run(VideoMakerPipeline.from_pipe(first, use_pisa=False))


def test_from_pipe_shares_the_parts_and_keeps_the_numbers():
    pipe = tiny_pipeline()
    other = VideoMakerPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert other.unet is pipe.unet and torch.equal(run(other), run(pipe))


@pytest.mark.parametrize("chosen", [False, True])
def test_from_pipe_gives_a_base_the_schedule_unless_it_has_one_for_animatediff(chosen):
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear" if chosen else "scaled_linear"}
    scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1, **noise)
    base = StableDiffusionPipeline(
        tiny_vae(), tiny_text_encoder(), tiny_tokenizer(), tiny_unet2d(), scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe = VideoMakerPipeline.from_pipe(base, motion_adapter=tiny_motion_adapter())
    pipe.set_progress_bar_config(disable=True)
    if chosen:
        assert pipe.scheduler is scheduler
    else:
        assert ANIMATEDIFF_SCHEDULE.items() <= dict(pipe.scheduler.config).items()
    assert run(pipe).isfinite().all()
    pipe.generation_defaults = GenerationDefaults(num_frames=5)
    assert VideoMakerPipeline.from_pipe(pipe).generation_defaults.num_frames == 5


def test_prompts_can_be_encoded_without_a_unet():
    pipe = tiny_pipeline()
    parts = {**pipe.components, "unet": None, "vae": None}
    alone = VideoMakerPipeline(**parts)
    embeds, _ = alone.encode_prompt("a fox", "cpu", 1, False)
    assert embeds.shape == (1, 77, 16)
    with pytest.raises(InputError, match="has no unet"):
        alone("a fox", picture())


def test_a_part_of_another_size_is_refused():
    pipe = tiny_pipeline()
    pipe.vae = AutoencoderKL.from_config({**pipe.vae.config, "latent_channels": 8})
    with pytest.raises(InputError, match="vae of size 8 does not fit"):
        run(pipe)
    pipe = tiny_pipeline()
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    with pytest.raises(InputError, match="text_encoder of size 8 does not fit"):
        run(pipe)


def test_guidance_ends_by_callback_as_by_approximation():
    def stop(pipe, step, t, tensors):
        if step == 0:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    wanted = tiny_pipeline()
    wanted.approximations = Approximations(guidance_until=0.5)
    cut = run(wanted)
    options = {"callback_on_step_end": stop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert near(run(tiny_pipeline(), **options), cut)
    ready = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    assert near(run(tiny_pipeline(), callback_on_step_end=ready), cut)


def test_embeddings_of_another_length():
    pipe = tiny_pipeline()
    text = pipe.encode_prompt("a fox", "cpu", 1, False)[0]
    assert run(pipe, None, prompt_embeds=text[:, :5]).isfinite().all()
    for odd in (torch.cat([text, text], 1), text[:, :1]):
        with pytest.raises(InputError, match=f"prompt_embeds have {odd.shape[1]} tokens"):
            run(pipe, None, prompt_embeds=odd)
    for odd in (text[:0], text[:, :0], text.to_sparse(), text.to("meta")):
        with pytest.raises(InputError, match=r"prompt_embeds (has shape|is a)"):
            run(pipe, None, prompt_embeds=odd)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda seen: {"latents": None}, "latents that callback_on_step_end returned is a NoneType"),
        (lambda seen: {"latents": seen["latents"][:, :, :1]}, "latents .* has shape"),
        (lambda seen: {"latents": seen["latents"] * float("nan")}, "latents .* not finite"),
        (lambda seen: {"prompt_embeds": None}, "prompt_embeds .* is a NoneType"),
        (lambda seen: {"prompt_embeds": torch.zeros(1, 5, 16)}, "prompt_embeds .* has shape"),
        (lambda seen: {"negative_prompt_embeds": torch.zeros(3, 77, 16)}, "negative_prompt_embeds .* has shape"),
        (lambda seen: None, "returned a NoneType"),
    ],
)
def test_what_a_callback_returns_is_checked(returned, words):
    with pytest.raises(InputError, match=words):
        run(tiny_pipeline(), callback_on_step_end=lambda pipe, step, t, seen: returned(seen))


def test_a_callback_may_return_another_dtype():
    pipe = tiny_pipeline()
    wide = run(pipe, callback_on_step_end=lambda pipe, step, t, seen: {"latents": seen["latents"].double()})
    assert torch.equal(wide, run(pipe))


def test_a_batch_of_pictures_is_the_list_of_them():
    pipe, pictures = tiny_pipeline(), [picture(1), picture(2)]
    batch = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in pictures])
    seeds = [[torch.Generator().manual_seed(seed) for seed in (1, 2)] for _ in range(2)]
    listed = run(pipe, ["a", "b"], pictures, generator=seeds[0])
    assert near(run(pipe, ["a", "b"], batch, generator=seeds[1]), listed)


def test_skipped_layers_change_the_numbers():
    pipe = tiny_pipeline()
    assert not near(run(pipe, clip_skip=1), run(pipe))
    with pytest.raises(InputError, match="clip_skip is 9"):
        run(pipe, clip_skip=9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output_type": "gif"}, "output_type is 'gif'"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"eta": float("nan")}, "eta is nan"),
        ({"generator": (torch.Generator(),)}, "generator is a tuple"),
        ({"latents": torch.zeros(1, 4, 2, 8, 8)}, "latents has shape"),
        ({"num_frames": 2.5}, "num_frames is 2.5"),
        ({"num_frames": 10_001}, "at most 10,000 are made at once"),
        ({"width": 17}, "width is 17"),
        ({"reference_image_embeds": torch.full((1, 4, 1, 8, 8), float("nan"))}, "not finite"),
        ({"decode_chunk_size": 0}, "decode_chunk_size is 0"),
        ({"prompt_embeds": torch.zeros(1, 77, 16)}, "one of the two"),
    ],
)
def test_arguments_are_refused_before_the_first_step(changes, words):
    with pytest.raises(ValueError, match=words):
        run(tiny_pipeline(), **changes)


@pytest.mark.parametrize("value", [np.full((8, 8, 3), np.nan), np.full((8, 8, 3), 2.0), np.zeros((8, 8, 3), np.int32)])
def test_pictures_out_of_range_are_refused(value):
    with pytest.raises(InputError):
        run(tiny_pipeline(), reference=value)


def test_overflow_gives_no_black_pictures():
    pipe = tiny_pipeline()
    pipe.vae.decoder.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="overflow"):
        run(pipe, output_type="pil")


def test_two_threads_over_the_same_modules():
    pipes = [tiny_pipeline()]
    pipes.append(VideoMakerPipeline(**pipes[0].components))
    pipes[1].scheduler = type(pipes[0].scheduler).from_config(pipes[0].scheduler.config)
    wanted = [run(pipes[0], num_frames=3), run(pipes[1], reference=[picture(1), picture(2)], num_frames=5)]
    found: list = [None, None]

    def work(index: int) -> None:
        options = [{"num_frames": 3}, {"reference": [picture(1), picture(2)], "num_frames": 5}][index]
        found[index] = [run(pipes[index], **options) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(near(video, wanted[index]) for index in range(2) for video in found[index])


def test_threads_that_share_a_tokenizer_pad_alike(monkeypatch):
    pipe = tiny_pipeline()
    settle = type(pipe.tokenizer).set_truncation_and_padding

    def settle_and_wait(self, **how):
        settle(self, **how)
        time.sleep(0.005)  # another thread's turn, before what was settled is read

    monkeypatch.setattr(type(pipe.tokenizer), "set_truncation_and_padding", settle_and_wait)
    shapes: list = []

    def work() -> None:
        for _ in range(5):
            shapes.append(pipe.encode_text("a fox").shape)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == [(1, 77, 16)] * 10
