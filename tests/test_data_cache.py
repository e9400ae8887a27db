"""Cached latents and embeddings."""

import dataclasses

import numpy as np
import pytest
import torch
from clips import (
    SIZE,
    config_of,
    take,
    write_lines,
    write_video,
)
from tiny import tiny_pipeline

from videomaker.data.cache import build_cache, open_cache
from videomaker.data.dataset import build_dataset, decode_window
from videomaker.data.loader import build_loader
from videomaker.data.video import open_video
from videomaker.errors import InputError


@pytest.fixture
def cached(tmp_path):
    """A manifest of three clips, one of them too short, its cache, and what is needed to open it."""
    for name, count in (("a", 20), ("b", 12), ("short", 4)):
        write_video(tmp_path / f"{name}.mp4", count)
    lines = [{"video": f"{name}.mp4", "captions": [f"{name} 1", f"{name} 2"]} for name in ("a", "b", "short")]
    write_lines(tmp_path / "manifest.jsonl", lines)
    config = config_of(tmp_path, highlight=False, cache=str(tmp_path / "cache"))
    pipeline = tiny_pipeline()
    assert build_cache(config, pipeline, tmp_path / "cache", starts=2) == (2, {"too short": 1})
    return tmp_path, config, pipeline


def open_for(config, pipeline):
    return open_cache(config, vae=pipeline.vae, text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)


def test_a_cache_replaces_pixels_and_prompts(cached):
    _, config, pipeline = cached
    dataset = build_dataset(config, seed=0, cache=open_for(config, pipeline))
    loader = build_loader(dataset, batch_size=2)
    batches = take(loader, 3)
    assert set(loader.skipped) == {"too short"}
    for batch in batches:
        assert "pixel_values" not in batch
        assert batch["latents"].shape == (2, 4, 3, 16, 16)
        assert batch["reference"].shape == (2, 3, 1, SIZE, SIZE)
        tokens = pipeline.tokenizer(batch["caption"], padding="max_length", return_tensors="pt").input_ids
        expected = pipeline.text_encoder(tokens)[0]
        # Entries are fp16: half a unit in the last place of its 11 significant bits.
        assert (batch["prompt_embeds"] - expected).abs().max() <= expected.abs().max() * 2**-11
    windows = {batch["latents"][i].sum().item() for batch in take(loader, 12) for i in range(2)}
    assert len(windows) == 4  # two of each clip


def test_cached_latents_are_the_clips(cached):
    root, config, pipeline = cached
    plain = build_dataset(dataclasses.replace(config, cache=""), seed=0)
    cache = open_for(config, pipeline)
    latents = cache.read(plain.clips[1], caption=0, rng=np.random.default_rng(0))["latents"]
    with open_video(root / "b.mp4") as video:
        means = []
        for position in (0.25, 0.75):
            frames = decode_window(video, config, position=position).transpose(0, 1)
            with torch.no_grad():
                posterior = pipeline.vae.encode(frames).latent_dist
            scaled = (latents.transpose(0, 1) / pipeline.vae.config.scaling_factor - posterior.mean) / posterior.std
            means.append(scaled.pow(2).mean().item())
    # One of the windows is it: what is left is the posterior's noise, of variance 1 over 3072 numbers (4.7 sigma).
    assert min(abs(mean - 1) for mean in means) < 0.12


def test_an_interrupted_cache_goes_on(cached):
    root, config, pipeline = cached
    files = sorted((root / "cache").glob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in files]
    (root / "cache" / "cache.json").unlink()
    with pytest.raises(InputError, match="holds no finished cache"):
        open_for(config, pipeline)
    build_cache(config, pipeline, root / "cache", starts=2)
    assert [path.stat().st_mtime_ns for path in files] == times
    open_for(config, pipeline)


def test_a_cache_of_nothing_is_refused_and_not_written(cached):
    root, config, pipeline = cached
    slow = dataclasses.replace(config, frame_stride=1_000_000)
    with pytest.raises(InputError, match=r"no clip of .*manifest.jsonl can be encoded \(.*too short.*\)"):
        build_cache(slow, pipeline, root / "another")
    assert not (root / "another").exists()


def test_a_stale_cache_is_refused(cached):
    root, config, pipeline = cached
    with pytest.raises(InputError, match="stale: frame_stride was 4, is 5"):
        open_for(dataclasses.replace(config, frame_stride=5), pipeline)
    with torch.no_grad():
        next(pipeline.vae.parameters()).add_(0.1)
    with pytest.raises(InputError, match="stale: vae was"):
        open_for(config, pipeline)
    pipeline = tiny_pipeline()
    (root / "a.mp4").touch()  # another time of change, the same bytes
    open_for(config, pipeline)
    write_video(root / "a.mp4", 21)
    with pytest.raises(InputError, match="stale for 1 of 3 clips, first 'a': its video changed"):
        open_for(config, pipeline)
    manifest = root / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("b 2", "b 3"))
    with pytest.raises(InputError, match="stale for 2 of 3 clips"):
        open_for(config, pipeline)
