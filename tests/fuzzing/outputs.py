"""Where results go: odd names, places that are taken, places that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

from .case import FILE_NAMES, Case, Rng
from .world import World


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A place for the result of a good `generate`."""
    make = rng.choices((_named, _taken, _impossible, _formats, _again, _nested), (4, 4, 3, 2, 2, 1))[0]
    return make(rng, world, folder)


def _run(world: World, output: str, *words: str) -> list[str]:
    good = ["--model", str(world.model), "-r", str(world.picture), "-p", "a fox", *world.small()]
    return ["generate", *good, f"--output={output}", *words]


def _named(rng: Rng, world: World, folder: Path) -> Case:
    name, suffix = rng.pick((*FILE_NAMES, "x" * 200, "x" * 237, "x" * 246, "é" * 123)), rng.pick((".mp4", ".gif", ""))
    output = rng.pick((name + suffix, f"./{name}{suffix}", str(folder / (name + suffix))))
    # not UTF-8: no record could name it; a name of blanks or dots alone is no name
    good = "\udcff" not in name and len(os.fsencode(name + suffix)) <= 250
    what = f"the output {name[:20] + suffix!r}"
    longest = len(os.fsencode(name + suffix)) > 250
    return Case(what, _run(world, output), "either" if longest else "works" if good else "refused", ("*",))


def _taken(rng: Rng, world: World, folder: Path) -> Case:
    """Something of the user's lies where the video, its record or its sheet goes."""
    what = rng.pick(("record", "sheet", "folder", "input", "frames", "link to input", "foreign record", "parent"))
    words: tuple[str, ...] = ()
    output = "x.mp4"
    if what == "record":
        (folder / "x.json").write_text(rng.pick(('{"mine": 1}', "", "[]", "not json", '{"record_version": 2}')))
    elif what == "sheet":
        (folder / "x.sheet.png").write_bytes(world.picture.read_bytes())
        words = ("--contact-sheet",)
    elif what == "folder":
        (folder / "x.mp4").mkdir()
    elif what == "input":
        (folder / "x.gif").write_bytes(_gif())
        output, words = "x.gif", ("-r", "x.gif")
    elif what == "frames":
        (folder / "x").mkdir()
        (folder / "x" / rng.pick(("mine.png", "0001.jpg", "notes.txt"))).write_bytes(b"x")
        slug = "picture_a-fox_0"
        (folder / "x").rename(folder / slug)
        output, words = ".", ("--format", "frames")
    elif what == "link to input":
        (folder / "in.mp4").write_bytes(world.video.read_bytes())
        os.symlink("in.mp4", folder / "x.mp4")
        (folder / "x.json").write_text("{}")
    elif what == "foreign record":
        (folder / "x.json").write_bytes(world.record.read_bytes())  # that of video.mp4
    elif what == "parent":
        (folder / "file").write_text("x")
        output = "file/x.mp4"
    return Case(f"taken: {what}", _run(world, output, *words, *rng.pick(((), ("--overwrite",)))), "refused")


def _gif() -> bytes:
    import io

    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(file := io.BytesIO(), "GIF")
    return file.getvalue()


def _impossible(rng: Rng, world: World, folder: Path) -> Case:
    os.symlink("loop.mp4", folder / "loop.mp4")
    os.mkfifo(folder / "pipe.mp4")
    output = rng.pick((
        "loop.mp4", "pipe.mp4", "/dev/full/x.mp4", "/proc/x.mp4", "/proc/self/x.mp4", "x" * 256 + ".mp4",
        "é" * 130 + ".mp4", "/dev/null/x.gif", "x.avi", "x.webm", "x.MKV", "/sys/x.mp4", "loop.mp4/x.mp4",
        "a/" + "b" * 300 + "/x.mp4", "/".join(["a" * 200] * 25) + "/x.mp4", "x" * 252 + ".gif",
    ))  # fmt: skip
    return Case(f"the output {output[:30]!r}", _run(world, output), "refused", ())


def _formats(rng: Rng, world: World, folder: Path) -> Case:
    output, form = rng.pick(("x.mp4", "x.gif", "x", "x.MP4", "x.json", "x.png")), rng.pick(("mp4", "gif", "frames"))
    given = Path(output).suffix.lower()
    good = given not in (".mp4", ".gif") or given == f".{form}"
    expect = "works" if good else "refused"
    return Case(f"{output} as {form}", _run(world, output, "--format", form), expect, ("x*", "x*/*"))


def _again(rng: Rng, world: World, folder: Path) -> Case:
    """A result that is there is kept; one whose record or bytes are gone is made, with the others untouched."""
    (folder / "video.mp4").write_bytes(world.video.read_bytes())
    (folder / "video.json").write_bytes(world.record.read_bytes())
    what = rng.pick(("same", "other seed", "no video", "other format"))
    words: tuple[str, ...] = ()
    output, results, expect = "video.mp4", (), "works"
    if what == "other seed":
        words, expect = ("--seed", "5"), "refused"
    elif what == "no video":
        (folder / "video.mp4").unlink()
        results = ("video.*",)
    elif what == "other format":
        output, expect = "video.gif", "refused"
    return Case(f"again: {what}", _run(world, output, *words), expect, results)


def _nested(rng: Rng, world: World, folder: Path) -> Case:
    output = rng.pick(("a/b/c/out.mp4", "a/../out.mp4", "./././out.mp4", "outputs/", "a//b", ".", ".hidden/x.gif"))
    return Case(f"the output {output!r}", _run(world, output), "works", ("*",))
