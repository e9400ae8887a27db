"""`make default` in miniature: every stage finds what the one before left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from videomaker import VideoMakerPipeline

SCRIPT = Path(__file__).parents[1] / "train" / "default.py"


def test_the_stages_follow_one_another(tmp_path):
    small = ["--clips", "50", "--small-clips", "50", "--place", "place", "steps=1", "model.compile=false"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, SCRIPT, *small], cwd=tmp_path, env=environment, check=True)
    pipe = VideoMakerPipeline.from_pretrained(tmp_path / "place")
    assert pipe.unet.config.sample_size == 8 and pipe.config.use_pisa
