"""What is asked for: references, prompts and seeds made into jobs, each of which becomes one video."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from videomaker.digests import sha256
from videomaker.errors import InputError
from videomaker.files import read_text

Combine = Literal["each", "pairs", "subject"]
Format = Literal["mp4", "gif", "frames"]
Fit = Literal["stretch", "pad", "crop"]

_MAX_NAME_BYTES = 80  # of the reference's part and of the prompt's; file systems allow 255 in all
_MAX_PROMPTS_BYTES = 8 * 2**20
MAX_PROMPT = 10_000  # characters; the model reads 77 tokens
_MAX_SEED = 2**63 - 1
_MAX_SEEDS = 100_000  # in one range, and jobs in all; more is a slip of the keyboard
_FILE_SUFFIXES = (".mp4", ".gif")
_OTHER_FILES = (
    ".avi", ".m4v", ".mkv", ".mov", ".webm",
    ".apng", ".avif", ".bmp", ".heic", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
)  # fmt: skip


@dataclass(frozen=True)
class ModelSpec:
    """Where the weights lie and how they run.

    Args:
        source: `"default"` (the embedded model), a folder in the diffusers format, a single file of Stable Diffusion
            1.5, or a model of the hub, `OWNER/NAME` or `OWNER/NAME@REVISION`.
        motion_adapter: a folder, a single file or a model of the hub; needed when `source` is a Stable Diffusion 1.5
            base.
        weights: a VideoMaker checkpoint, `.safetensors` or `.bin`.
        dtype: `"auto"`, `"float32"`, `"float16"` or `"bfloat16"`; auto is float16 on CUDA, else float32.
        device: `"auto"` (CUDA, else MPS, else the CPU) or a name that torch knows.
        attention_backend: of `videomaker.kernels.pisa_attention`.
        offload: whether parts of the model wait in main memory until their turn, for small GPUs.
        compile: whether the model is compiled for the shapes of the videos.
        vae: a folder, a single file or a model of the hub, in place of the source's.
        loras: files, each perhaps with `:scale`, that are added into the weights.
    """

    source: str = "default"
    motion_adapter: str | None = None
    weights: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    attention_backend: str = "auto"
    offload: bool = False
    compile: bool = False
    vae: str | None = None
    loras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How to sample. `None` takes what the model's `generation.json` says, else the paper's value.

    `fit` says how a reference of another shape gets the video's: see `videomaker.media.fit_reference`.
    """

    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    fit: Fit | None = None


@dataclass(frozen=True)
class Output:
    """What is written. `upscale` repeats every pixel of an mp4 or GIF; `None` enlarges tiny videos only."""

    format: Format = "mp4"
    upscale: int | None = None


@dataclass(frozen=True)
class Recipe:
    """What all videos of one request share."""

    model: ModelSpec = ModelSpec()
    settings: Settings = Settings()
    output: Output = Output()


@dataclass(frozen=True)
class Job:
    """One video: the pictures of one subject, a prompt, a seed, and the file or folder to write."""

    references: tuple[Path, ...]
    prompt: str
    seed: int
    path: Path


def plan_jobs(
    references: Sequence[Path],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    output: Path,
    file_format: Format = "mp4",
    combine: Combine = "each",
) -> list[Job]:
    """Combines references, prompts and seeds, and names the results.

    `combine` is `"each"` (every reference with every prompt), `"pairs"` (the first reference with the first prompt,
    and so on) or `"subject"` (all references show one subject and are used together, for every prompt). Every
    combination is made once for each seed. `output` is a folder, or a file when there is one video.

    Raises:
        InputError: the numbers do not match, or `output` is a file and there are several videos.
    """
    subjects = [tuple(references)] if combine == "subject" else [(path,) for path in references]
    if combine == "pairs":
        if len(references) != len(prompts):
            raise InputError(f"{len(references)} references and {len(prompts)} prompts do not make pairs")
        combinations = list(zip(subjects, prompts, strict=True))
    else:
        combinations = list(itertools.product(subjects, prompts))
    if len(combinations) * len(seeds) > _MAX_SEEDS:
        raise InputError(
            f"{len(combinations) * len(seeds):,} videos are asked for: give at most {_MAX_SEEDS:,} at once"
        )
    jobs = [Job(subject, prompt, seed, output) for subject, prompt in combinations for seed in seeds]
    jobs = list(dict.fromkeys(jobs))
    if output.suffix.lower() in _FILE_SUFFIXES:
        if len(jobs) > 1:
            raise InputError(f"output {output} is one file and {len(jobs)} videos are asked for: give a folder")
        return jobs
    return _name(jobs, output, "" if file_format == "frames" else f".{file_format}")


def _name(jobs: list[Job], folder: Path, suffix: str) -> list[Job]:
    """Names results `REFERENCE_PROMPT_SEED`; where that is not unique, a digest of what was asked for follows."""
    names = [f"{slug(job.references[0].stem)}_{slug(job.prompt)}_{job.seed}" for job in jobs]
    counts = Counter(name.casefold() for name in names)
    return [
        replace(job, path=folder / f"{name}{'_' + _digest(job) if counts[name.casefold()] > 1 else ''}{suffix}")
        for job, name in zip(jobs, names, strict=True)
    ]


def slug(text: str) -> str:
    """A text as a part of a file's name: lower case, words joined by hyphens, cut to a length."""
    words = re.sub(r"[\W_]+", "-", text.lower()).strip("-")
    return words.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip("-") or "untitled"


def _digest(job: Job) -> str:
    identity = "\0".join([job.prompt, *(str(path.resolve()) for path in job.references)])
    return sha256(identity)[:8]


def find_references(values: Sequence[Path]) -> list[Path]:
    """Paths of pictures; a folder stands for all pictures directly in it.

    Raises:
        InputError: none given, or a folder without pictures.
    """
    from videomaker.media import list_images

    if not values:
        raise InputError("no reference: give --reference with a picture or a folder of pictures")
    paths = itertools.chain.from_iterable(list_images(path) if path.is_dir() else [path] for path in values)
    return list(paths)


def read_prompts(values: Sequence[str]) -> list[str]:
    """Prompts as given; a value that ends in `.txt` is a file with one prompt a line, `#` starting a comment.

    Raises:
        InputError: none given, an empty prompt, or a file that is missing, empty or not UTF-8.
    """
    if not values:
        raise InputError('no prompt: give --prompt "what happens in the video" or a .txt file with one prompt a line')
    prompts: list[str] = []
    for value in values:
        prompts += _prompt_file(Path(value)) if value.lower().endswith(".txt") else [value.strip()]
    for prompt in prompts:
        check_prompt(prompt)
    return prompts


def _prompt_file(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in read_text(path, max_bytes=_MAX_PROMPTS_BYTES).splitlines()]
    except InputError as error:
        raise InputError(f"prompt file {path} cannot be read as UTF-8 text: {error}") from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise InputError(f"prompt file {path} holds no prompt: write one a line")
    return prompts


def check_prompt(prompt: str) -> None:
    """Refuses what no text encoder reads.

    Raises:
        InputError: the prompt says nothing, or see `check_text`.
    """
    check_text(prompt)
    if not any(unicodedata.category(letter)[0] in "LNPS" for letter in prompt):
        raise InputError("a prompt is empty: describe what happens in the video")


def check_text(prompt: str) -> None:
    """Refuses what no text encoder reads in a text that may say nothing, as a negative prompt may.

    Raises:
        InputError: the text is not UTF-8, is far too long, or holds control characters.
    """
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"prompt {prompt[:30]!r}… has {len(prompt):,} characters: give at most {MAX_PROMPT:,}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"prompt {prompt[:60]!r} is not UTF-8 text: type it again") from error
    if bad := next(
        (letter for letter in prompt if unicodedata.category(letter) == "Cc" and letter not in "\t\n\r"), None
    ):
        raise InputError(f"prompt {prompt[:60]!r} holds the control character {bad!r}: take it out")


def parse_seeds(text: str) -> list[int]:
    """Seeds from numbers and ranges separated by commas: `"1,2,5-7"` is `[1, 2, 5, 6, 7]`.

    Raises:
        InputError: something else, a seed of more than 63 bits, or a range of more than 100,000.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})(?:-(\d{1,20}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last <= _MAX_SEED or last - first >= _MAX_SEEDS:
            raise InputError(f"seed {part[:40]!r} is not understood: give numbers from 0 such as 7, or 1,2,3, or 0-9")
        seeds.extend(range(first, last + 1))
        if len(seeds) > _MAX_SEEDS:
            raise InputError(f"more than {_MAX_SEEDS:,} seeds: give fewer at once")
    return list(dict.fromkeys(seeds))


def output_format(output: Path, asked: Format | None) -> Format:
    """The format asked for, else the one that the output's suffix says, else mp4.

    Raises:
        InputError: the two differ, or the suffix is that of another kind of video or of a picture.
    """
    suffix = output.suffix.lower()
    if suffix in _OTHER_FILES:
        raise InputError(f"output {output}: {suffix} is not written; give .mp4, .gif or a folder (--format frames)")
    if suffix not in _FILE_SUFFIXES:
        return asked or "mp4"
    if asked not in (None, suffix[1:]):
        raise InputError(f"output {output} is a {suffix} file but the format asked for is {asked}")
    return "mp4" if suffix == ".mp4" else "gif"
