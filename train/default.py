"""Trains the embedded default model anew and puts it in its place: `make default`.

Draws the clips, then runs the presets sprites-vae, sprites-base and sprites one after another. Every part goes on where
it was interrupted, and finished parts are left alone. Overrides go to all three runs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from videomaker.train.export import export_run

from videomaker import default_model_path
from videomaker.files import atomic_directory
from videomaker.sprites.dataset import write_dataset
from videomaker.sprites.model import write_untrained_model

PRESETS = ("sprites-vae", "sprites-base", "sprites")
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
UNTRAINED = Path("runs/sprites-untrained")
SUBJECT = Path("runs/sprites")


def install(pipeline: Path, place: Path) -> None:
    """Puts a new model in `place`, whole or not at all; README.md and generation.json of the old one stay."""
    with atomic_directory(place) as temporary:
        for component in COMPONENTS:
            shutil.copytree(pipeline / component, temporary / component)
        shutil.copy(pipeline / "model_index.json", temporary)
        for kept in filter(Path.is_file, (place / "README.md", place / "generation.json")):
            shutil.copy(kept, temporary)


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--place", type=Path, default=default_model_path(), help="folder of the model to replace")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    write_dataset(Path("data/sprites"), clips=options.clips)
    if not UNTRAINED.is_dir():
        write_untrained_model(UNTRAINED)
    for preset in PRESETS:
        script = Path(__file__).with_name("main.py")
        subprocess.run([sys.executable, script, "--config", preset, *options.overrides], check=True)
    install(export_run(SUBJECT, SUBJECT / "default", dtype="fp16", whole=True), options.place)
    print(f"{options.place} holds the new model; run videomaker evaluate, and correct its README.md")


if __name__ == "__main__":
    main()
