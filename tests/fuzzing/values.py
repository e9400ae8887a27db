"""Values of `generate`'s options: what is in range works, what is not is refused before the work."""

from __future__ import annotations

from pathlib import Path

from .case import Case, Rng
from .world import World

# Option: good values, bad ones.
NUMBERS = ("", "x", "1e400", "nan", "-1", "0x10", "1,5", "９", "½", "10" * 30, "--", "None", " ", "1 2", "+-1")
VALUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "--steps": (("1", "2", " 3 ", "1_0"),  # ten, as Python and pydantic write it
         ("0", "1.5", "10001", *NUMBERS)),
    "--guidance": (("0", "1", "1.0", "7.5", "30", "1e2", "+2", " 2"), ("inf", "-0.1", "1e308", *NUMBERS)),
    "--width": (("32", "16", "48", "30", "34"), ("0", "31", "33", "4098", "1000000", "32.5", *NUMBERS)),
    "--height": (("32", "16", "48"), ("0", "31", "15", "5000", "1e3", *NUMBERS)),
    "--frames": (("1", "2", "31"), ("0", "10001", "2.5", *NUMBERS)),
    "--fps": (("1", "8", "0.5", "29.97", "60", "240"), ("0", "0.01", "241", "1e9", "inf", "-8", *NUMBERS)),
    "--seed": (
        ("0", "1", "9223372036854775807", "1,1", " 4 ", "0-1", "1-1"),
        ("-5", "1.5", "9223372036854775808", "3-1", "1,", ",1", "a", "", "1-2-3", "0-200000", "٣", "0x1", "1 2", "nan"),
    ),
    "--batch-size": (("1", "2", "1024"), ("0", "1025", "1.5", *NUMBERS)),
    "--upscale": (("1", "2", "8"), ("0", "65", "200", "1.5", *NUMBERS)),
    "--format": (("mp4", "gif", "frames"), ("MP4", "avi", "webm", "", "mp3", "frame")),
    "--fit": (("stretch", "pad", "crop"), ("fill", "", "Pad", "none")),
    "--combine": (("each", "pairs", "subject"), ("both", "", "EACH")),
    "--dtype": (("auto", "float32"), ("float64", "int8", "fp16", "", "bf16", "double")),
    "--device": (("auto", "cpu"), ("gpu", "cuda:99", "CPU", "", "tpu", "meta", "cpu:7:8", "\udcff", "x" * 3000)),
    "--attention-backend": (("auto", "sdpa", "naive"), ("flash", "", "SDPA", "../x", "pisa")),
    "--negative-prompt": (("bad", "", " ", "низкое", "x" * 300), ("x" * 10_001, "a\x07", "\udcff")),
    "--negative-preset": (("people", "objects"), ("cats", "", "People")),
    "--box": (
        ("4,4,28,28", "0,0,32,32", " 1, 1, 20, 20"),
        ("", "1,2,3", "a,b,c,d", "9,9,3,3", "nan,0,9,9", "0,0,inf,9", "-5,-5,-1,-1", "40,40,60,60",
         "1;2;3;4", "0,0,0,9"),
    ),
    "--weights": ((), ("missing.safetensors", ".", "", "/dev/zero", "x" * 5000, "a\nb")),
    "--motion-adapter": ((), ("missing", "", "x" * 5000, "/dev/zero")),
    "--vae": ((), ("missing", "", "/dev/zero", "x" * 5000)),
    "--lora": ((), ("missing.safetensors", "missing.safetensors:1", "", ":", "x:y", "/dev/zero", "x" * 5000)),
    "--model": ((), ("missing", "", ".", "/dev/zero", "a/b/c/d", "x" * 5000, "\udcff", "~", "http://x/y", "o/n@@r")),
    "--reference": ((), ("missing.png", "", ".", "/dev/zero", "x" * 5000, "http://localhost/x.png", "\udcff.png")),
    "--from-json": ((), ("missing.json", "", ".", "/dev/zero", "x" * 5000, "\udcff.json")),
    "--artifacts": ((), ("missing", "", ".")),
    "--mask": ((), ("missing.png", "", ".", "/dev/zero", "x" * 5000)),
    "--models": ((), ("missing", "", "x" * 5000)),
    "--highlight": ((), ("dog", "  ", "x" * 500, "\udcff")),
}  # fmt: skip
EMPTY_IS_NONE = {"--highlight", "--negative-prompt", "--models"}  # an empty word asks for nothing
REPLACED = {"--steps", "--frames", "--guidance", "--model", "--reference"}


def case(rng: Rng, world: World, folder: Path) -> Case:
    """One or two options with odd values, one of them bad in most cases."""
    names = rng.sample(list(VALUES), rng.choices((1, 2), (4, 1))[0])
    given: dict[str, str] = {}
    bad = False
    for name in names:
        good_values, bad_values = VALUES[name]
        is_bad = not good_values or rng.random() < 0.75
        given[name] = rng.pick(bad_values if is_bad else good_values)
        bad = bad or is_bad
    base = {
        "--model": str(world.model), "--reference": str(world.picture), "--prompt": "a fox",
        "--steps": "1", "--frames": "2", "--guidance": "1", "--output": "outputs",
    }  # fmt: skip
    if "--from-json" in given:
        base = {"--output": "again.mp4"}
    words = [f"{name}={value}" for name, value in {**base, **given}.items()]
    what = ", ".join(f"{name} {value[:30]!r}" for name, value in given.items())
    return Case(what, ["generate", *words], "refused" if bad else _good(given))


def _good(given: dict[str, str]) -> str:
    """Whether what is good one by one is good together."""
    if ("--fps" in given and "--format" in given) or len(given) > 1:
        return "either"
    return "works"
