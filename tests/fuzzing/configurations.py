"""Configurations of trainings: YAML files and overrides, resolved as `--dry-run` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from videomaker.train.config import TrainConfig
from videomaker.train.overrides import as_dict

from .case import WRONG_CONTENTS, Case, Rng, no_file
from .documents import places, value_at, with_value, without, wrong_value
from .world import World

ODD_OVERRIDES = (
    "steps", "=5", "steps=", "steps==5", "steps=five", "stepz=5", "optimizer=3", "optimizer.=1", ".steps=1", "a.b.c=1",
    "steps=1e3", "steps=0x10", "steps=[1]", "steps={a: 1}", "steps=.nan", "steps=&a 5", "steps=*a", "steps=!!int x",
    "steps=!!python/object/apply:os.system [true]", "steps=1:30", "optimizer.learning_rate=.inf", "data.height=36.5",
    "optimizer.learning_rate=-1", "optimizer.betas=[0.9]", "optimizer.betas=[2, 3]", "precision=fp8", "data.width=17",
    "zero.stage=true", "zero.stage=4", "steps=\udcff", "seed=-1", "batch_size=0", "validation.levels=[]",
    "validation.levels=[2000]", "method.drop_text=0.9 method.drop_image", "method.drop_text=2", "method.timesteps=noon",
    "model.from_scratch=[os]", "data.num_frames=0", "data.frame_stride=-1", "steps=" + "9" * 400, "steps=null",
)  # fmt: skip
GOOD_OVERRIDES = (
    "steps=5", "optimizer.learning_rate=3e-5", "seed=7", "data.height=64", "optimizer.schedule=cosine", "steps= 9 ",
    "precision=fp32", "zero.stage=1", "method.girl_weight=0", "data.highlight=false", "optimizer.betas=[0.9, 0.99]",
)  # fmt: skip
# Where another kind of value may mean something: lists are read from words, and None where it is allowed.
LENIENT = {"gradient_checkpointing"}


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A configuration with one thing wrong."""
    make = rng.choices((_value, _override, _text, _unknown), (6, 4, 2, 2))[0]
    what, words, expect = make(rng, world, folder)
    return Case(f"configuration: {what}", ["train", "--config", *words, "--dry-run"], expect)


def _write(config: dict[str, Any], folder: Path) -> str:
    (folder / "x.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    return str(folder / "x.yaml")


def _value(rng: Rng, world: World, folder: Path) -> tuple[str, list[str], str]:
    config = as_dict(TrainConfig())
    place = rng.pick(places(config))
    if rng.random() < 0.2:
        return f"without {place}", [_write(without(config, place), folder)], "either"
    value = wrong_value(config, place, rng)
    old = value_at(config, place)
    lenient = isinstance(old, (str, float, list)) or old is None or place[-1] in LENIENT or value is None
    lenient = lenient or (isinstance(old, bool) and isinstance(value, str)) or isinstance(place[-1], int)
    what = f"{'.'.join(map(str, place))} is {str(value)[:40]!r}"
    return what, [_write(with_value(config, place, value), folder)], "either" if lenient else "refused"


def _override(rng: Rng, world: World, folder: Path) -> tuple[str, list[str], str]:
    base = rng.pick(("smoke", "paper-human", "sprites", str(world.configuration)))
    good = rng.random() < 0.3
    word = rng.pick(GOOD_OVERRIDES if good else ODD_OVERRIDES)
    either = word in ("steps=1e3", "steps=0x10", "steps=1:30", "steps=&a 5") or base == "sprites"
    either = either or word == "data.width=17"  # which sides fit, a dry run does not know: the VAE does
    return f"{word[:40]!r} on {Path(base).name}", [base, word], "either" if either else "works" if good else "refused"


def _text(rng: Rng, world: World, folder: Path) -> tuple[str, list[str], str]:
    path = folder / "x.yaml"
    if rng.random() < 0.25:
        what, path = no_file(folder, rng, "x.yaml")
        expect = "refused"
        if what == "zeros":
            (path := folder / "x.yaml").symlink_to("/dev/zero")
        return what, [str(path)], expect
    odd = {
        "a tab": b"steps:\t5\n\tx: 1", "anchors": b"a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nsteps: *b\n",
        "laughs": b"a: &a [" + b"x," * 9 + b"x]\n" + b"".join(
            b"%c: &%c [" % (98 + i, 98 + i) + (b"*%c," % (97 + i)) * 9 + b"*%c]\n" % (97 + i) for i in range(9)
        ),
        "two documents": b"steps: 5\n---\nsteps: 6\n", "a tag": b"steps: !!python/object/apply:os.system ['true']\n",
        "deep": b"[" * 20_000, "a list": b"- steps\n- 5\n", "a word": b"steps", "twice": b"steps: 5\nsteps: 6\n",
        "a key of numbers": b"5: 6\n", "a key of lists": b"? [1, 2]\n: 5\n", "not UTF-8": b"steps: \xff\n",
        **WRONG_CONTENTS,
    }  # fmt: skip
    what = rng.pick(odd)
    path.write_bytes(odd[what])
    return what, [str(path)], "either" if what in ("nothing", "twice", "a word") else "refused"


def _unknown(rng: Rng, world: World, folder: Path) -> tuple[str, list[str], str]:
    config = as_dict(TrainConfig())
    way = rng.pick(("key", "section", "inner", "preset", "name"))
    if way == "key":
        config["stepz"] = 5
    elif way == "section":
        config["optimiser"] = {"learning_rate": 1e-3}
    elif way == "inner":
        config["optimizer"]["lr"] = 1e-3
    elif way == "preset":
        config["preset"] = rng.pick(("papr", "../x", "", "paper human"))
        return f"the preset {config['preset']!r}", [_write(config, folder)], "refused" if config["preset"] else "either"
    else:
        name = rng.pick(("papr-human", "", " ", "../smoke", "x.yml", "/", "\udcff", "a" * 5000, "smoke.json"))
        return f"the preset {name[:20]!r}", [name], "refused"
    return f"an unknown {way}", [_write(config, folder)], "refused"
