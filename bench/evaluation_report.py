"""Makes the manual's sample report: the embedded model on 3 subjects, 4 prompts, 2 seeds, with tiny random networks.

    python bench/evaluation_report.py

Writes docs/evaluation-report.md and the pictures beside it. A few minutes on one CPU core. The networks that measure
are random and tiny, in their real formats: the numbers show what a report looks like, nothing about a model.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from tiny_metrics import write_networks  # noqa: E402  found through the line above

PAGE = ROOT / "docs" / "evaluation-report.md"
PLACES = ("a green meadow", "a blue sea", "a grey city", "a dark forest")
NOTE = """# A sample report

3 subjects × 4 prompts × 2 seeds on the embedded model, with **tiny random networks** in the place of CLIP and DINO: it
shows what a report looks like and nothing about a model, and the quoted rows are no comparison here. Made by
`python bench/evaluation_report.py`.
"""


def write_suite(folder: Path) -> None:
    """The package's three creatures, each over four places."""
    folder.mkdir()
    names = ("moss", "slate", "violet")
    for name in names:
        shutil.copy(ROOT / "videomaker" / "assets" / f"{name}.png", folder)
    suite = {
        "subjects": [{"name": name, "image": f"{name}.png"} for name in names],
        "prompts": [f"a big creature hopping to the left over {place}" for place in PLACES],
        "seeds": [1, 2],
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))


def main() -> None:
    """Runs the suite and copies its report into the manual."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder to work in and go on from; a temporary one by default")
    work = parser.parse_args().work or Path(tempfile.mkdtemp())
    models, out = write_networks(work / "models"), work / "out"
    if not (work / "suite").exists():
        write_suite(work / "suite")
    command = ["run", work / "suite", "--models", models, "--flow", "dis", "--opens2v", "--paper", "people", "-o", out]
    command += ["--batch-size", "8"]
    subprocess.run([sys.executable, "-m", "videomaker", "evaluate", *map(str, command)], check=True)
    text = (out / "report.md").read_text(encoding="utf-8").removeprefix("# Evaluation\n\n")
    for picture in sorted(out.glob("*.png")):
        shutil.copy(picture, PAGE.with_suffix("") / picture.name)
        text = text.replace(f"({picture.name})", f"({PAGE.stem}/{picture.name})")
    PAGE.write_text(NOTE + "\n" + text, encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
