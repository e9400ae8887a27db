"""The whole path: against a naive rendition of the paper's inference, and the pipeline's conventions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from ip_adapters import ip_adapter_state
from PIL import Image
from tiny import (
    tiny_motion_adapter,
    tiny_pipeline,
    tiny_scheduler,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_unet2d,
    tiny_vae,
)

from videomaker import InputError, VideoMakerPipeline
from videomaker.attention import PisaAttnProcessor, fuse_pisa_projections, is_spatial_self_attention
from videomaker.denoising import predict_noise

SIZE = 16  # pixels; latents are 8×8


def picture(seed: int = 0, size: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(pipe: VideoMakerPipeline, *args, **kwargs) -> torch.Tensor:
    settings = {"height": SIZE, "width": SIZE, "num_frames": 4, "num_inference_steps": 2, "output_type": "latent"}
    return pipe(*args, **{**settings, "generator": generator(0), **kwargs}).frames


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


# The paper's inference in the plainest words: section 4 of arXiv 2412.19645 and AnimateDiff's DDIM.


class RepeatedReferenceAttention:
    """Copies the reference to every frame, attends over both, splits, and averages the reference over the frames."""

    def __init__(self, num_frames: int):
        self.num_frames = num_frames

    def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, temb=None):
        videos = x.unflatten(0, (-1, self.num_frames + 1))
        frames, reference = videos[:, :-1], videos[:, -1:].expand(-1, self.num_frames, -1, -1)
        pairs = torch.cat([frames, reference], dim=2).flatten(0, 1)  # [B·F, 2N, C]
        q, k, v = (w(pairs).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for w in (attn.to_q, attn.to_k, attn.to_v))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        out = attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2)).unflatten(0, (-1, self.num_frames))
        frames, reference = out.chunk(2, dim=2)
        return torch.cat([frames, reference.mean(1, keepdim=True)], dim=1).flatten(0, 1)


def naive_inference(pipe, prompts, images, negative, num_frames, steps, scale, seeds) -> torch.Tensor:
    """Latents `[B, C, F, h, w]` after DDIM with guidance of eq. 6, every video by itself."""
    unet, betas = pipe.unet, torch.linspace(0.00085, 0.012, 1000)
    alphas = torch.cat([(1 - betas).cumprod(0), torch.ones(1)])  # index -1: the end of sampling
    for name, module in unet.named_modules():
        if name.endswith("attn1") and "motion" not in name:
            module.set_processor(RepeatedReferenceAttention(num_frames))
    results = []
    for prompt, image, seed in zip(prompts, images, seeds, strict=True):
        rng = generator(seed)
        pixels = torch.from_numpy(np.asarray(image)).float().permute(2, 0, 1)[None] / 127.5 - 1
        moments = pipe.vae.encode(pixels).latent_dist
        x = torch.randn(1, 4, num_frames, *moments.mean.shape[2:], generator=rng)  # the frames' noise comes first
        reference = moments.mean + moments.std * torch.randn(moments.mean.shape, generator=rng)
        reference = (reference * pipe.vae.config.scaling_factor)[:, :, None]
        timesteps = np.linspace(0, 999, steps).round()[::-1].astype(int)
        for t in timesteps:
            noise = eps(pipe, x, reference, int(t), prompt)
            if scale > 1:
                blank = eps(pipe, x, torch.zeros_like(reference), int(t), negative)
                noise = blank + scale * (noise - blank)
            previous = max(int(t) - 1000 // steps, -1)
            clean = (x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt()
            x = alphas[previous].sqrt() * clean + (1 - alphas[previous]).sqrt() * noise
        results.append(x)
    return torch.cat(results)


def eps(pipe, x, reference, t, prompt):
    tokens = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    text = pipe.text_encoder(tokens.input_ids)[0].repeat(x.shape[2] + 1, 1, 1)
    return pipe.unet(torch.cat([x, reference], dim=2), t, encoder_hidden_states=text).sample[:, :, :-1]


@pytest.mark.parametrize("num_frames", [8, 16])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 8.0])
@torch.no_grad()
def test_latents_equal_naive_inference(scale, batch, num_frames):
    prompts, images = ["a red fox", "two owls at night"][:batch], [picture(1), picture(2)][:batch]
    seeds = [11, 12][:batch]
    ours = run(
        tiny_pipeline(),
        prompts,
        images,
        num_frames=num_frames,
        num_inference_steps=30,
        guidance_scale=scale,
        negative_prompt="blurry",
        generator=[generator(seed) for seed in seeds],
    )
    naive = naive_inference(tiny_pipeline(), prompts, images, "blurry", num_frames, 30, scale, seeds)
    assert relative_error(ours, naive) < 1e-4  # fp32 rounding over 30 guided steps


def test_processors_sit_on_spatial_self_attention_only():
    processors = tiny_pipeline().unet.attn_processors
    changed = {name for name, processor in processors.items() if isinstance(processor, PisaAttnProcessor)}
    assert changed == {name for name in processors if is_spatial_self_attention(name)}
    assert changed and len(changed) < len(processors)


def test_reference_matters_and_seed_reproduces():
    pipe = tiny_pipeline()
    first, again = run(pipe, "a fox", picture(1)), run(pipe, "a fox", picture(1))
    assert torch.equal(first, again)
    assert relative_error(run(pipe, "a fox", picture(2)), first) > 1e-3


def test_requests_in_a_batch_equal_requests_alone():
    pipe = tiny_pipeline()
    prompts, images, scales, seeds = ["a fox", "an owl"], [picture(1), picture(2)], [3.0, 1.0], [5, 6]
    together = run(pipe, prompts, images, guidance_scale=scales, generator=[generator(seed) for seed in seeds])
    for i in range(2):
        alone = run(pipe, prompts[i], images[i], guidance_scale=scales[i], generator=generator(seeds[i]))
        assert relative_error(together[i : i + 1], alone) < 1e-5  # order of sums in batched products, 2 steps


def test_several_references_and_videos_per_prompt():
    pipe = tiny_pipeline()
    one = run(pipe, "a fox", [picture(1)])
    assert torch.equal(one, run(pipe, "a fox", picture(1)))
    two = run(pipe, "a fox", [picture(1), picture(2)], num_videos_per_prompt=2)
    assert two.shape[0] == 2 and relative_error(two[:1], one) > 1e-3
    assert run(pipe, ["a fox", "an owl"], [[picture(1), picture(2)], [picture(3), picture(4)]]).shape[0] == 2


def test_reference_latents_in_place_of_pictures():
    pipe = tiny_pipeline()
    latents = torch.randn(1, 4, 1, SIZE // 2, SIZE // 2, generator=generator(3))
    assert run(pipe, ["a fox", "an owl"], reference_image_embeds=latents).shape == (2, 4, 4, 8, 8)
    with pytest.raises(InputError, match="one of the two"):
        run(pipe, "a fox", picture(), reference_image_embeds=latents)
    with pytest.raises(InputError, match="reference_image_embeds has shape"):
        run(pipe, "a fox", reference_image_embeds=latents[:, :, 0])
    with pytest.raises(InputError, match="reference_image 0"):  # a batch of batches
        run(pipe, "a fox", torch.zeros(1, 1, 3, 8, 8))


def test_prompt_embeds_equal_prompts():
    pipe = tiny_pipeline()
    positive, negative = pipe.encode_prompt("a fox", "cpu", 1, True, "blurry")
    from_text = run(pipe, "a fox", picture(), negative_prompt="blurry")
    from_embeds = run(pipe, None, picture(), prompt_embeds=positive, negative_prompt_embeds=negative)
    assert torch.equal(from_text, from_embeds)


def test_an_empty_prompt_asks_for_nothing_in_particular():
    pipe = tiny_pipeline()
    empty, spaces = (run(pipe, text, picture(), guidance_scale=1.0) for text in ("", ["  "]))
    embeds, _ = pipe.encode_prompt("", "cpu", 1, False)
    assert torch.equal(empty, run(pipe, None, picture(), prompt_embeds=embeds, guidance_scale=1.0))
    assert empty.isfinite().all() and spaces.isfinite().all()


def test_callback_sees_and_replaces_latents_and_interrupts():
    pipe, seen = tiny_pipeline(), []

    def callback(pipe, step, t, tensors):
        seen.append((step, sorted(tensors)))
        pipe._interrupt = True
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = run(
        pipe,
        "a fox",
        picture(),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert seen == [(0, ["latents", "prompt_embeds"])] and not latents.any()


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_output_types(output_type):
    frames = run(tiny_pipeline(), "a fox", picture(), output_type=output_type)
    assert len(frames) == 1 and len(frames[0]) == 4


def test_save_and_reload_keep_processors_and_numbers(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    again = VideoMakerPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(run(again, "a fox", picture()), run(pipe, "a fox", picture()))


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("asked", [None, torch.float16, {"text_encoder": torch.float16}])
def test_every_part_loads_in_the_dtype_that_was_asked_for(tmp_path, asked, name):
    """float32 by default, whatever the files hold; by either name, without a warning of the other."""
    tiny_pipeline().to(dtype=torch.bfloat16).save_pretrained(tmp_path)
    pipe = VideoMakerPipeline.from_pretrained(tmp_path, **{name: asked} if asked else {})
    everywhere = asked if isinstance(asked, torch.dtype) else torch.float32
    text = asked["text_encoder"] if isinstance(asked, dict) else everywhere
    assert (pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype) == (everywhere, everywhere, text)


def test_sd15_base_with_motion_adapter(tmp_path):
    """A base as people have it: a 2D UNet and another scheduler; the motion adapter in a folder of its own."""
    torch.manual_seed(0)
    adapter = tiny_motion_adapter()
    base = AnimateDiffPipeline(
        tiny_vae(), tiny_text_encoder(), tiny_tokenizer(), tiny_unet2d(), adapter, tiny_scheduler()
    )
    base.unet = tiny_unet2d()
    base.register_modules(motion_adapter=None)
    base.save_pretrained(tmp_path / "base")
    adapter.save_pretrained(tmp_path / "adapter")
    pipe = VideoMakerPipeline.from_pretrained(tmp_path / "base", motion_adapter=tmp_path / "adapter")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.timestep_spacing == "linspace" and pipe.scheduler.config.clip_sample is False
    motion = pipe.unet.state_dict()["down_blocks.0.motion_modules.0.proj_out.weight"]
    assert torch.equal(motion, adapter.state_dict()["down_blocks.0.motion_modules.0.proj_out.weight"])
    assert torch.isfinite(run(pipe, "a fox", picture())).all()


def test_plain_animatediff_from_the_same_components():
    """Outside a call with a reference, the processors are AnimateDiff's own attention."""
    pipe = tiny_pipeline()
    run(pipe, "a fox", picture())
    settings = {"prompt": "a fox", "num_frames": 4, "height": SIZE, "width": SIZE, "output_type": "latent"}
    components = {name: value for name, value in pipe.components.items()}
    plain = AnimateDiffPipeline(**components)
    plain.set_progress_bar_config(disable=True)
    ours = plain(**settings, num_inference_steps=2, generator=generator(0)).frames
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    theirs = plain(**settings, num_inference_steps=2, generator=generator(0)).frames
    assert relative_error(ours, theirs) < 1e-5


def test_fused_projections_keep_the_numbers():
    pipe = tiny_pipeline()
    before = run(pipe, "a fox", picture())
    fuse_pisa_projections(pipe.unet)
    assert relative_error(run(pipe, "a fox", picture()), before) < 1e-5


def test_fused_projections_leave_adapters_of_other_kinds_to_themselves():
    peft = pytest.importorskip("peft")
    pipe = tiny_pipeline()
    plain = run(pipe, "a fox", picture())
    loha = peft.LoHaConfig(r=2, target_modules=["attn1.to_q", "attn1.to_k"], init_weights=False)
    pipe.unet.add_adapter(loha, "loha")
    before = run(pipe, "a fox", picture())
    fuse_pisa_projections(pipe.unet)
    assert relative_error(run(pipe, "a fox", picture()), before) < 1e-5 < relative_error(before, plain)


def test_free_init_runs_and_free_noise_is_refused():
    pipe = tiny_pipeline()
    plain = run(pipe, "a fox", picture())
    pipe.enable_free_init(num_iters=2)
    assert relative_error(run(pipe, "a fox", picture()), plain) > 1e-3
    pipe.disable_free_init()
    assert torch.equal(run(pipe, "a fox", picture()), plain)
    with pytest.raises(NotImplementedError, match="FreeNoise"):
        pipe.enable_free_noise()


def test_vae_slicing_and_tiling_still_work():
    pipe = tiny_pipeline()
    before = run(pipe, "a fox", picture(), output_type="pt")
    pipe.vae.enable_slicing()
    assert relative_error(run(pipe, "a fox", picture(), output_type="pt"), before) < 1e-5
    pipe.vae.enable_tiling()
    assert torch.isfinite(run(pipe, "a fox", picture(), output_type="pt")).all()


def test_lora_loads_on_top_of_pisa(tmp_path):
    pytest.importorskip("peft")
    pipe = tiny_pipeline()
    before = run(pipe, "a fox", picture())
    lora = {}
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn1.to_q", "attn1.to_v")) and "motion" not in name:
            width = module.in_features
            lora[f"unet.{name}.lora_A.weight"] = torch.randn(2, width, generator=generator(1))
            lora[f"unet.{name}.lora_B.weight"] = torch.randn(width, 2, generator=generator(2))
    pipe.load_lora_weights(lora)
    assert relative_error(run(pipe, "a fox", picture()), before) > 1e-3
    pipe.unload_lora_weights()
    assert relative_error(run(pipe, "a fox", picture()), before) < 1e-6


def test_ip_adapter_leaves_pisa_in_place():
    pipe = tiny_pipeline()
    before = run(pipe, "a fox", picture())
    pipe.load_ip_adapter([ip_adapter_state(pipe.unet)], subfolder=None, weight_name=None, image_encoder_folder=None)
    embeds = [torch.randn(2, 1, 1, 8, generator=generator(4))]
    with_adapter = run(pipe, "a fox", picture(), ip_adapter_image_embeds=embeds)
    assert relative_error(with_adapter, before) > 1e-3
    changed = run(pipe, "a fox", picture(2), ip_adapter_image_embeds=embeds)
    assert relative_error(changed, with_adapter) > 1e-3  # the reference still speaks
    pipe.unload_ip_adapter()
    assert relative_error(run(pipe, "a fox", picture()), before) < 1e-6


def test_half_precision_on_cpu():
    pipe = tiny_pipeline().to(torch.bfloat16)
    frames = run(pipe, "a fox", picture(), output_type="pt")
    assert torch.isfinite(frames).all()


def test_frames_only_cross_attention():
    """A row of Table 3: the reference's cross-attention is its own input, so its noise does not hear the prompt."""
    pipe = tiny_pipeline()
    frames = torch.randn(1, 4, 4, 8, 8, generator=generator(1))
    reference = torch.randn(1, 4, 1, 8, 8, generator=generator(2))
    text = torch.randn(2, 1, 77, 16, generator=generator(3))
    hears = {}
    for cross_attention in (True, False):
        pipe.register_to_config(reference_cross_attention=cross_attention)
        pipe._install_pisa()
        with torch.no_grad():
            first, second = (predict_noise(pipe.unet, frames, reference, 500, t) for t in text)
        hears[cross_attention] = relative_error(first[1], second[1])
    assert 0 < hears[False] < hears[True]  # what is left comes through temporal and spatial attention


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 32, "window_frames": 32}, "1 to 31 frames"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"height": 17}, "multiple of 2"),
        ({"prompt": []}, "empty"),
        ({"prompt": ["a", "b"], "reference_image": [picture()] * 3}, "3 reference images for 2 prompts"),
        ({"prompt": ["a", "b"], "reference_image": [[picture()], [picture()] * 2]}, "same number"),
        ({"reference_image": []}, "empty"),
        ({"reference_image": None}, "one of the two"),
        ({"generator": [generator(0)] * 2}, "2 generators for 1 videos"),
        ({"guidance_scale": [1.0, 2.0]}, "2 guidance scales"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        run(tiny_pipeline(), **{"prompt": "a fox", "reference_image": picture(), **arguments})
