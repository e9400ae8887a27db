"""A quick video by the command line, for tests of what it is made from."""

import json
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from videomaker.cli import app

QUICK = ["--steps", "1", "--frames", "2", "--width", "64", "--height", "64", "--guidance", "2", "--format", "frames"]


def generate(folder: Path, *arguments, picture: str = "subject.png") -> tuple[int, str, dict]:
    """Exit status, output and record of one `videomaker generate` of a white picture into `folder`/out."""
    picture = folder / picture
    Image.new("RGB", (64, 64), "white").save(picture, "PNG")
    command = ["generate", "-r", picture, "-p", "a thing", "-o", folder / "out", *QUICK, "--overwrite", *arguments]
    result = CliRunner().invoke(app, list(map(str, command)))
    records = list((folder / "out").glob("*.json")) if (folder / "out").exists() else []
    return result.exit_code, result.output, json.loads(records[0].read_text()) if records else {}
