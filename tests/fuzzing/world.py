"""Good inputs, made once: what the generators damage."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from clips import write_clips
from PIL import Image
from runs import write_configuration
from safetensors.torch import save_file
from tiny import tiny_pipeline


@dataclass(frozen=True)
class World:
    """Paths of good inputs. Cases copy what they change."""

    root: Path

    @property
    def picture(self) -> Path:
        return self.root / "picture.png"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def weights(self) -> Path:
        return self.root / "weights.safetensors"

    @property
    def video(self) -> Path:
        return self.root / "video.mp4"

    @property
    def record(self) -> Path:
        return self.root / "video.json"

    @property
    def clips(self) -> Path:
        return self.root / "clips"

    @property
    def configuration(self) -> Path:
        return self.root / "config.yaml"

    def generate(self, *words: object) -> list[str]:
        """The shortest good `generate`, with `words` after it."""
        good = ["--model", self.model, "-r", self.picture, "-p", "a fox", *self.small()]
        return ["generate", *map(str, [*good, *words])]

    @staticmethod
    def small() -> list[str]:
        """Options for the least work."""
        return ["--steps", "1", "--frames", "2", "--guidance", "1"]

    def copy_model(self, folder: Path) -> Path:
        """A copy of the model that may be changed."""
        return Path(shutil.copytree(self.model, folder / "model"))


def make_world(root: Path) -> World:
    """Writes the inputs below `root`, unless they are there."""
    world = World(root)
    if world.record.exists():
        return world
    root.mkdir(parents=True, exist_ok=True)
    white = np.full((32, 32, 3), 255, np.uint8)
    white[8:24, 8:24] = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(white).save(world.picture)
    write_configuration(root)  # with the model and the clips
    assert world.model.is_dir() and write_clips and (world.clips / "manifest.jsonl").is_file()
    trained = {
        name: value.contiguous()
        for name, value in tiny_pipeline().unet.state_dict().items()
        if "attn1.to" in name or "motion_modules" in name
    }
    save_file(trained, world.weights)
    from typer.testing import CliRunner

    from videomaker.cli import app

    done = CliRunner().invoke(app, world.generate("-o", world.video))
    assert done.exit_code == 0, done.output
    return world
