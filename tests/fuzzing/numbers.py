"""Values of the options of other commands than `generate`: what cannot be is refused before the work."""

from __future__ import annotations

from pathlib import Path

from .case import Case, Rng
from .world import World

WORDS = ("", "x", "1e400", "nan", "-1", "0x10", "1,5", "９", "½", "10" * 30, "None", " ", "1 2", "inf")
COUNT = ("0", "1.5", *WORDS)
SHARE = ("1.5", "-0.1", "1e9", *(word for word in WORDS if word != "1,5"))
SIZE = ("0", "7", "100.5", *WORDS)

# Words of a good command, and bad values of its options.
OPTIONS: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {
    ("data", "sprites", "--out=out"): {"--clips": COUNT, "--seed": (*WORDS, "1.5")},
    ("data", "shard", "MANIFEST", "--out=out"): {"--clips-per-shard": COUNT},
    ("data", "check", "MANIFEST"): {
        "--sample": ("1.5", *(word for word in WORDS if word != "10" * 30)),
        "--out": ("MANIFEST", "", ".", "/dev/full", "/proc/x.jsonl", "../elsewhere.jsonl"),
        "--tokenizer": ("missing", "", ".", "/dev/zero", "MANIFEST"),
    },
    ("data", "index", "--layout=folder", "--root=CLIPS", "--out=out.jsonl"): {
        "--val-fraction": SHARE, "--layout": ("", "celebv", "Folder", "x"),
        "--root": ("missing", "MANIFEST", "/dev/null"), "--videos": ("missing",), "--masks": ("missing",),
    },
    ("data", "cache", "MANIFEST", "--model=MODEL", "--out=out", "--num-frames=2", "--height=16", "--width=16"): {
        "--num-frames": (*COUNT, "1000000"), "--frame-stride": (*COUNT, "1000000000"),
        "--height": SIZE, "--width": SIZE, "--starts": COUNT, "--model": ("missing", "", ".", "MANIFEST"),
        "--vae": ("missing", ".", "MANIFEST"),
    },
    ("data", "highlight", "MANIFEST", "--out=out.jsonl", "--detector=x", "--segmenter=x", "--prompt=dog"): {
        "--box-threshold": SHARE, "--text-threshold": SHARE, "--max-overlap": SHARE, "--min-area": SHARE,
    },
    ("warmup", "--model=MODEL", "--save=out"): {
        "--frames": COUNT, "--width": ("0", "31", "33", "1000000", *WORDS), "--height": ("0", "31", "15", *WORDS),
        "--batch-size": ("0", "1025", *WORDS), "--references": ("0", "1001", *WORDS),
        "--dtype": ("float64", "", "fp16"), "--device": ("gpu", "", "cuda:99", "meta", "x" * 3000),
        "--motion-adapter": ("missing", "", "/dev/zero"),
    },
    ("evaluate", "sprites", "--out=out", "--clips=2", "--steps=1"): {
        "--clips": ("1", *COUNT), "--seed": ("-5", "1.5", "3-1", "1,", "a", "", "9223372036854775808", "nan"),
        "--steps": (*COUNT, "100000"), "--guidance": ("x", "nan", "inf", "1e400", "", "-1"),
        "--reference": ("", "black", "White"), "--model": ("missing", "", ".", "MANIFEST"),
    },
    ("evaluate", "run", "SUITE", "--output=out", "--model=MODEL"): {
        "--shard": ("", "0/1", "2/1", "1", "a/b", "1/0", "-1/2", "1/2/3", "1.5/2"), "--paper": ("", "cats", "People"),
        "--protocol": ("", "Paper"), "--flow": ("", "lk"), "--face": ("", "x"),
        "--models": ("missing", "", "/dev/zero"), "--steps": COUNT, "--width": ("0", "33", *WORDS),
        "--batch-size": ("0", "1025", *WORDS),
    },
    ("evaluate", "measure", "CLIPS", "SUITE", "--output=out"): {
        "--shard": ("", "0/1", "2/1", "1"), "--device": ("gpu", "", "cuda:99", "meta"), "--models": ("missing", ""),
    },
    ("convert", "WEIGHTS", "out.safetensors", "--model=MODEL"): {"--model": ("missing", "", ".", "MANIFEST", "CLIPS")},
    ("provenance", "verify", "VIDEO"): {"--trust": ("missing.pem", "", ".", "MANIFEST", "/dev/zero")},
}  # fmt: skip


def case(rng: Rng, world: World, folder: Path) -> Case:
    """One bad value of one option."""
    suite = folder / "suite.yaml"
    suite.write_text(f"subjects: [{{name: a, image: {world.picture}}}]\nprompts: [a fox]\nseeds: [0]\n")
    names = {
        "MANIFEST": world.clips / "manifest.jsonl", "MODEL": world.model, "CLIPS": world.clips, "SUITE": suite,
        "WEIGHTS": world.weights, "VIDEO": world.video,
    }  # fmt: skip

    def real(word: str) -> str:
        option, equals, value = word.rpartition("=")
        return f"{option}{equals}{names.get(value, value)}"

    command = rng.pick(OPTIONS)
    option = rng.pick(OPTIONS[command])
    value = rng.pick(OPTIONS[command][option])
    words = [real(word) for word in command if not word.startswith(f"{option}=")]
    return Case(f"{' '.join(command[:2])} {option} {value[:30]!r}", [*words, real(f"{option}={value}")], "refused", ())
