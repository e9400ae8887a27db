"""The sprite world, its measure on truth and on noise, its files, and the suite on the embedded model."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from videomaker.train.default import install
from videomaker.train.model import blocks_of_pixels

from videomaker import default_model_path, media
from videomaker.cli import app
from videomaker.data.manifest import read_manifest
from videomaker.errors import InputError
from videomaker.evaluation import sprites as evaluate
from videomaker.evaluation.sprites import SpriteSuite, contact_sheet, evaluate_sprites, reference_gain, sprite_cases
from videomaker.pipeline import VideoMakerPipeline
from videomaker.sprites import world
from videomaker.sprites.dataset import write_dataset
from videomaker.sprites.measure import Search, distractors, nearest_motion, score_clip, to_canvas
from videomaker.sprites.model import TEXT_LENGTH, make_text_encoder, make_tokenizer

CLIPS = 64


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(5)
    return [world.random_clip(rng, split="test") for _ in range(CLIPS)]


def rate(scores, name):
    return np.mean([getattr(score, name) for score in scores])


def test_the_same_seed_draws_the_same_clip():
    first, second = (world.random_clip(np.random.default_rng(3), split="train") for _ in range(2))
    assert first.caption == second.caption
    for one, other in zip(world.draw_clip(first), world.draw_clip(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_splits_never_share_a_pattern():
    rng = np.random.default_rng(0)
    drawn = {
        split: {world.random_pattern(rng, split=split).tobytes() for _ in range(300)} for split in ("train", "test")
    }
    assert not drawn["train"] & drawn["test"]
    assert all(world.split_of(np.frombuffer(bits, dtype=bool)) == split for split in drawn for bits in drawn[split])


@pytest.mark.parametrize("size", world.SIZES)
@pytest.mark.parametrize("motion", world.MOTIONS)
def test_creatures_stay_on_the_canvas_and_on_the_latent_grid(motion, size):
    creature = world.random_creature(np.random.default_rng(0), split="train")
    clip = world.Clip(creature, motion, "a blue sea", size)
    side = world.CREATURE // world.SIZES[size]
    for position in np.ravel(clip.track):
        assert 0 <= position <= world.CANVAS - side
        assert position % world.CELL == 0


def test_masks_are_where_the_background_is_covered(clips):
    frames, masks = world.draw_clip(clips[0])
    covered = (frames != world.draw_background(clips[0].background)).any(axis=-1)
    assert not (covered & ~masks).any()
    assert (masks.sum(axis=(1, 2)) == clips[0].creature.view(size=clips[0].size).silhouette.sum()).all()


@pytest.mark.parametrize("reference_background", [None, "a blue sea"])
def test_the_measure_finds_the_truth(clips, reference_background):
    rng = np.random.default_rng(1)
    clips = [clip for clip in clips if clip.background != reference_background]
    scores = [
        score_clip(world.enlarge(world.draw_clip(clip)[0]), clip, reference_background=reference_background, rng=rng)
        for clip in clips
    ]
    for name in ("identity", "motion", "background", "size", "temporal_consistency"):
        assert rate(scores, name) == 1, name
    assert rate(scores, "copied_background") == rate(scores, "colour_distance") == 0
    assert rate(scores, "pattern") > 0.9  # a few patterns differ only outside the silhouette
    assert rate(scores, "dynamic") == np.mean([clip.motion != "standing" for clip in clips])


@pytest.mark.parametrize("wrong", ["noise", "another clip"])
def test_the_measure_is_at_chance_on_the_wrong_video(clips, wrong):
    rng = np.random.default_rng(2)
    videos = [world.enlarge(world.draw_clip(clip)[0]) for clip in clips]
    videos = [rng.integers(0, 256, video.shape) for video in videos] if wrong == "noise" else videos[1:] + videos[:1]
    scores = [
        score_clip(video, clip, reference_background=None, rng=rng) for video, clip in zip(videos, clips, strict=True)
    ]
    for name, chance in {"identity": 1 / 16, "pattern": 1 / 16, "motion": 1 / 8, "background": 1 / 8}.items():
        # Four standard deviations of a binomial rate.
        assert rate(scores, name) < chance + 4 * np.sqrt(chance * (1 - chance) / CLIPS), name


def test_a_copied_background_is_noticed(clips):
    clip = next(clip for clip in clips if clip.background != "a grey city")
    video = world.enlarge(world.draw_clip(replace(clip, background="a grey city"))[0])
    score = score_clip(video, clip, reference_background="a grey city", rng=np.random.default_rng(0))
    assert score.copied_background and not score.background and score.identity


def test_the_search_tells_size_side_and_place(clips):
    for clip in clips[:8]:
        canvas, _ = world.draw_clip(clip)
        [found] = Search(canvas.astype(float), world.draw_background(clip.background)).find([clip.creature])
        assert (found.size, nearest_motion(found)) == (clip.size, clip.motion)
        np.testing.assert_array_equal(np.stack([found.rows, found.columns], axis=1), clip.track)


def test_distractors_share_what_they_should(clips):
    creature = clips[0].creature
    for same_palette in (False, True):
        for other in distractors(creature, np.random.default_rng(0), same_palette=same_palette):
            np.testing.assert_array_equal(other.silhouette, creature.silhouette)
            assert np.array_equal(other.palette, creature.palette) == same_palette


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[F, 32, 32, 3\]"):
        to_canvas(np.zeros((8, 64, 64, 3)))


def test_the_dataset_is_what_training_reads(tmp_path):
    manifest = write_dataset(tmp_path, clips=50, seed=4)
    lines = read_manifest(manifest)
    assert [line.split for line in lines].count("val") == 1 and lines[-1].split == "val"
    frames = media.read_frames(tmp_path / lines[0].video)
    clip = world.random_clip(np.random.default_rng([4, 0]), split="train")
    assert lines[0].captions == (clip.caption,)
    assert np.abs(frames.astype(int) - world.enlarge(world.draw_clip(clip)[0])).mean() < 1  # of 255: nearly lossless
    ref = lines[0].refs[0]
    left, top, right, bottom = map(int, ref.box)
    mask = np.asarray(Image.open(tmp_path / ref.mask))
    assert mask[top:bottom, left:right].any(axis=0).all() and mask.sum() == mask[top:bottom, left:right].sum()


def test_an_interrupted_dataset_goes_on(tmp_path):
    write_dataset(tmp_path, clips=2, seed=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    manifest = write_dataset(tmp_path, clips=4, seed=1)
    assert len(read_manifest(manifest)) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_another_share_of_small_creatures_is_another_dataset(tmp_path):
    """Its clips do not take the place of those of the usual share, whose captions would then be wrong."""
    usual = read_manifest(write_dataset(tmp_path, clips=20, seed=1))
    small = read_manifest(write_dataset(tmp_path, clips=20, seed=1, small=0.8))
    assert not {line.video for line in usual} & {line.video for line in small}
    counts = [sum("small" in line.captions[0] for line in lines) for lines in (usual, small)]
    assert counts[0] < 10 < counts[1]
    assert len(read_manifest(write_dataset(tmp_path, clips=20, seed=1))) == 20  # both manifests are ours


@pytest.fixture(scope="module")
def embedded():
    pipe = VideoMakerPipeline.from_pretrained(default_model_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float32)


def test_the_embedded_model_uses_the_reference(embedded):
    """Chance is zero gain; the error without any model is near 1, as latents have unit variance."""
    gains = reference_gain(embedded, sprite_cases(SpriteSuite(clips=8)))
    assert min(gains[500], gains[700]) > 0.2


@pytest.mark.parametrize("reference", ["raw", "none"])
def test_the_suite_runs_and_repeats_itself(embedded, reference):
    suite = SpriteSuite(clips=2, num_inference_steps=1, reference=reference)
    counts: list[int] = []
    first, videos = evaluate_sprites(embedded, suite, on_videos=counts.append)
    second, again = evaluate_sprites(embedded, replace(suite, batch_size=1))
    assert counts == [2]
    assert videos[0].shape == (world.NUM_FRAMES, 32, 32, 3)
    # Another batch size adds in another order, which may turn a rounding.
    assert max(np.abs(one.astype(int) - other).max() for one, other in zip(videos, again, strict=True)) <= 1
    assert first["identity"] == second["identity"]
    json.dumps(first)
    assert contact_sheet(suite, videos).width > 0


def test_identity_by_size(embedded, monkeypatch):
    def only_big_ones(video, wanted, **settings):
        return replace(score_clip(video, wanted, **settings), identity=wanted.size == "big")

    monkeypatch.setattr(evaluate, "score_clip", only_big_ones)
    results, _ = evaluate_sprites(embedded, SpriteSuite(clips=2, num_inference_steps=1, reference="none"))
    assert results["identity_by_size"] == {"big": 1.0, "small": 0.0}


def test_one_clip_is_too_few(embedded):
    with pytest.raises(InputError, match="at least 2"):
        evaluate_sprites(embedded, SpriteSuite(clips=1))


def captions():
    return [world.caption(*words) for words in itertools.product(world.SIZES, world.MOTIONS, world.BACKGROUNDS)]


def test_the_tokenizer_is_the_same_every_time():
    one, other = make_tokenizer(), make_tokenizer()
    assert one.get_vocab() == other.get_vocab()
    assert one(captions()).input_ids == other(captions()).input_ids


@torch.no_grad()
def test_an_untrained_text_encoder_tells_captions_apart():
    tokenizer = make_tokenizer()
    ids = tokenizer(captions(), padding="max_length", return_tensors="pt").input_ids
    embeds = make_text_encoder(tokenizer)(ids)[0]
    share = embeds.var(dim=0).sum() / embeds.square().mean(dim=0).sum()
    assert share > 0.3  # 0.10 with CLIP's own draw, and 0.36 with words drawn far apart


def test_every_caption_is_whole_words_and_fits():
    tokenizer = make_tokenizer()
    for caption in captions():
        assert len(tokenizer(caption).input_ids) == len(caption.split()) + 2 <= TEXT_LENGTH
    tokenizer("Ünknown wörds, digits 123 and (signs)!")


def test_the_anchor_is_the_canvas():
    canvas = np.random.default_rng(0).integers(0, 256, (1, world.CANVAS, world.CANVAS, 3), dtype=np.uint8)
    frames = torch.from_numpy(world.enlarge(canvas)).movedim(-1, 1) / 127.5 - 1
    anchor = blocks_of_pixels(frames, (1, 12, 8, 8))
    back = (torch.nn.functional.pixel_shuffle(anchor, 2) + 1) * 127.5
    np.testing.assert_array_equal(back.round().byte().movedim(1, -1).numpy(), canvas)
    with pytest.raises(InputError, match="this VAE has 4"):
        blocks_of_pixels(frames, (1, 4, 8, 8))


def test_a_new_default_keeps_its_card_and_settings(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    (place / "README.md").write_text("the card")
    (place / "unet").mkdir()
    (place / "unet" / "old.safetensors").touch()
    install(default_model_path(), place)
    assert (place / "README.md").read_text() == "the card"
    assert {path.name for path in (place / "unet").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert not (place / "generation.json").exists()
    with pytest.raises(FileNotFoundError):
        install(tmp_path / "broken", place)
    assert (place / "unet" / "config.json").is_file()  # what was there stays whole


def test_the_commands(tmp_path):
    run = lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))
    assert run("data", "sprites", "--out", tmp_path / "data", "--clips", 1).exit_code == 0
    assert (tmp_path / "data/manifest.jsonl").is_file()
    result = run("evaluate", "sprites", "--clips", 2, "--steps", 1, "--out", tmp_path / "evaluation")
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "evaluation/results.json").read_text())
    assert results["suite"]["num_inference_steps"] == 1 and results["suite"]["clips"] == 2
    assert (tmp_path / "evaluation/videos.png").is_file()
    refused = run("evaluate", "sprites", "--model", tmp_path)
    assert refused.exit_code == 2 and "unknown model" in refused.output
