"""What the README and the manual show: each command is read by its program, the cheap ones and all snippets run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import documents
import pytest
import torch
from PIL import Image

import videomaker
from videomaker import VideoMakerPipeline
from videomaker.attention import trainable_names
from videomaker.weights import save_partial

# What stands for the reader's own files. All else that a snippet names has to be there.
STAND_INS = {
    '.to("cuda")': "",
    "num_frames=16": "num_frames=8",  # all that the embedded model has positions for
    "height=512, width=512": "height=32, width=32",
    "Bucket(batch=4)": "Bucket(batch=4, num_frames=8, height=32, width=32)",
    "torch.float16": "torch.float32",
    '    motion_adapter="path/to/animatediff-motion-adapter-v1-5-3",\n': "",  # the stand-in has its motion modules
}
PICTURES = ("person.jpg", "fox.png")
MODELS = ("path/to/model", "path/to/Realistic_Vision_V5.1_noVAE")

# Run as they stand, in this order, in one folder.
RUN = [
    "videomaker info",
    'videomaker generate -r videomaker/assets/moss.png -p "a big creature hopping to the left over a green meadow" '
    "-o moss.mp4",
    "videomaker generate --from-json moss.json -o again.mp4",
    "videomaker data sprites --out data/few --clips 64",
    "python train/main.py --config smoke data.manifest=data/few/manifest.jsonl data.height=32 data.width=32 "
    "model.path=videomaker/default_model",
    "videomaker export runs/smoke",
]


OTHER_PAGES = ("CHANGELOG.md", "SECURITY.md", "bench/LOG.md", "videomaker/default_model/README.md")
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a reader would be: the repository's folders, and what the commands before have made."""
    place = tmp_path_factory.mktemp("reader")
    for name in ("videomaker", "train", "bench", "kernels"):
        (place / name).symlink_to(documents.ROOT / name)
    return place


@pytest.mark.parametrize("shown", documents.commands(), ids=str)
def test_command_is_read_by_its_program(shown, monkeypatch, capsys):
    monkeypatch.chdir(documents.ROOT)
    documents.read(shown.text)


@pytest.mark.parametrize("wrong", [
    "videomaker generate --no-such-option", "videomaker nonsense", "python bench/attn.py --wrong",
    "python train/main.py --config smoke no.such=1", "make nothing", "pip install -e '.[nothing]'",
    "pytest tests/test_none.py", "frobnicate",
])  # fmt: skip
def test_a_wrong_command_is_noticed(wrong, monkeypatch, capsys):
    monkeypatch.chdir(documents.ROOT)
    with pytest.raises(BaseException):  # noqa: B017  each program has its own way to refuse
        documents.read(wrong)


def test_links_lead_to_files_of_the_repository():
    """Pages are read there as well as on the site, whose links docs/hooks.py makes of these."""
    pages = [*documents.PAGES, *(documents.ROOT / name for name in OTHER_PAGES)]
    links = [(page, link) for page in pages for link in _LINK.findall(page.read_text(encoding="utf-8"))]
    assert len(links) > 50
    broken = [
        f"{page.relative_to(documents.ROOT)}: {link}" for page, link in links if not (page.parent / link).exists()
    ]
    assert not broken


def _normal(command: str) -> list[str]:
    return shlex.split(command, comments=True)


@pytest.mark.parametrize("command", RUN, ids=lambda command: " ".join(command.split()[:3]))
def test_command_runs(command, folder):
    assert _normal(command) in [_normal(shown.text) for shown in documents.commands()], "no page shows it any more"
    program, *arguments = _normal(command)
    start = [sys.executable, "-P", *(["-m", "videomaker"] if program == "videomaker" else [])]
    done = subprocess.run([*start, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_commands_made(folder):
    assert (folder / "again.mp4").read_bytes() == (folder / "moss.mp4").read_bytes()
    assert json.loads((folder / "moss.json").read_text())
    assert (folder / "runs/smoke/export/videomaker.safetensors").is_file()


@pytest.fixture(scope="module")
def with_models(folder) -> Path:
    for name in PICTURES:
        Image.new("RGB", (32, 32), "white").save(folder / name)
    for name in MODELS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(videomaker.default_model_path())
    unet = VideoMakerPipeline.from_pretrained(videomaker.default_model_path()).unet
    trained = {name: unet.state_dict()[name] for name in trainable_names(unet)}
    save_partial(trained, folder / "videomaker-human.safetensors")
    return folder


@pytest.fixture(scope="module")
def name_space() -> dict[str, object]:
    """Snippets of a page go on from one another."""
    return {}


@pytest.mark.parametrize("shown", documents.blocks("python"), ids=str)
def test_snippet_runs(shown, with_models, monkeypatch, name_space):
    text = shown.text
    for word, instead in STAND_INS.items():
        text = text.replace(word, instead)
    if not re.search(r"^(?:from|import) (?:videomaker|torch|openai)", text, re.MULTILINE):
        pytest.fail("a snippet that imports nothing of the project")
    monkeypatch.chdir(with_models)
    if name_space.get("page") != shown.page:
        name_space.clear()
        name_space["page"] = shown.page
    with torch.compiler.set_stance("force_eager"):  # compiling for real takes a minute; test_compiled.py does
        exec(compile(text, str(shown), "exec"), name_space)


def test_readme_is_ten_minutes():
    assert len((documents.ROOT / "README.md").read_text().splitlines()) <= 160


@pytest.mark.parametrize("page", [page for page in documents.PAGES if page.is_file()], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    made = {"default-model.md", "security.md", "changelog.md", "contributing.md", "log.md"}  # by docs/hooks.py
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        if page.parent.name == "docs" and (target in made or target.startswith("images/")):
            continue
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "name",
    re.findall(
        r"^ {2,}([\w/.]+)",
        (documents.ROOT / "README.md").read_text().partition("## What is where")[2].partition("## Limits")[0],
        re.MULTILINE,
    ),
)
def test_tree_names_what_is_there(name):  # fmt: skip
    assert os.path.exists(documents.ROOT / "videomaker" / name)
