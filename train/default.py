"""Trains the embedded default model anew and puts it in its place: `make default`.

Draws the clips, runs the preset sprites-vae, encodes the clips with the autoencoder, and runs sprites-base, sprites and
sprites-small. Every part goes on where it was interrupted, and finished parts are left alone. Overrides go to all runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from videomaker.train.export import export_run
from videomaker.train.overrides import load_config

from videomaker import default_model_path
from videomaker.data.cache import build_cache
from videomaker.data.encode import load_encoders
from videomaker.files import atomic_directory
from videomaker.pipeline import ANIMATEDIFF_SCHEDULE, VideoMakerPipeline
from videomaker.sprites.dataset import write_dataset
from videomaker.sprites.model import make_text_encoder, make_tokenizer, make_unet, make_vae
from videomaker.sprites.world import FPS, NUM_FRAMES

COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
UNTRAINED = Path("runs/sprites-untrained")
SPRITES, FINAL = Path("runs/sprites"), Path("runs/sprites-small")
SMALL_SEED, SMALL_SHARE = 7, 0.8  # of the clips for the last run


def write_untrained_model(out: Path, *, seed: int = 0) -> None:
    """Writes a whole pipeline in the diffusers format, weights drawn from `seed`, for the training to start from.

    The text model stays as it is drawn: its embeddings tell the few words apart, and the UNet learns to read them.
    It predicts velocity (arXiv 2202.00512), because on frames this small the noise loss hardly weighs the noisy steps,
    which are those where the reference matters.
    """
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    pipeline = VideoMakerPipeline(
        text_encoder=make_text_encoder(tokenizer),
        vae=make_vae(),
        tokenizer=tokenizer,
        unet=make_unet(),
        motion_adapter=None,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction", **ANIMATEDIFF_SCHEDULE
        ),
    )
    with atomic_directory(out, ours=_is_model) as folder:
        pipeline.save_pretrained(folder)
        settings = {"num_frames": NUM_FRAMES, "fps": FPS, "num_inference_steps": 10, "guidance_scale": 2.0}
        (folder / "generation.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _is_model(folder: Path) -> bool:
    """Whether a folder holds nothing but a model's parts, its card and its settings."""
    known = {*COMPONENTS, "model_index.json", "generation.json", "README.md"}
    return {path.name for path in folder.iterdir()} <= known


def install(pipeline: Path, place: Path) -> None:
    """Puts a new model in `place`, whole or not at all; README.md and generation.json of the old one stay."""
    with atomic_directory(place, ours=_is_model) as temporary:
        for component in COMPONENTS:
            shutil.copytree(pipeline / component, temporary / component)
        shutil.copy(pipeline / "model_index.json", temporary)
        for kept in filter(Path.is_file, (place / "README.md", place / "generation.json")):
            shutil.copy(kept, temporary)
        for config in (temporary / "model_index.json", *temporary.glob("*/config.json")):
            settings = json.loads(config.read_text(encoding="utf-8"))
            settings.pop("_name_or_path", None)  # where it lay on the machine that trained it
            config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def train(preset: str, overrides: list[str]) -> None:
    """Runs a preset in a process of its own, from where it stopped."""
    script = Path(__file__).with_name("main.py")
    subprocess.run([sys.executable, script, "--config", preset, *overrides], check=True)


def encode_clips(preset: str) -> None:
    """Fills the cache that a preset reads."""
    data = load_config(preset).data
    vae = Path(load_config("sprites-base").model.vae)
    build_cache(data, load_encoders(UNTRAINED, vae=vae), Path(data.cache))


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--small-clips", type=int, default=16_000, help="of which four in five of small creatures")
    parser.add_argument("--place", type=Path, default=default_model_path(), help="folder of the model to replace")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    write_dataset(Path("data/sprites"), clips=options.clips)
    write_dataset(Path("data/sprites-small"), clips=options.small_clips, seed=SMALL_SEED, small=SMALL_SHARE)
    if not UNTRAINED.is_dir():
        write_untrained_model(UNTRAINED)
    train("sprites-vae", options.overrides)
    encode_clips("sprites-base")
    train("sprites-base", options.overrides)
    train("sprites", options.overrides)
    if not (SPRITES / "pipeline").is_dir():
        export_run(SPRITES, SPRITES / "pipeline", dtype="fp32", whole=True)
    encode_clips("sprites-small")
    train("sprites-small", options.overrides)
    install(export_run(FINAL, FINAL / "default", dtype="fp16", whole=True), options.place)
    print(f"{options.place} holds the new model; run videomaker evaluate sprites, and correct its README.md")


if __name__ == "__main__":
    main()
