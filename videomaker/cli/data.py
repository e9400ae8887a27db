"""`videomaker data`: make, index and prepare data for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from videomaker.errors import InputError

from . import options
from .app import data_app
from .groups import with_groups
from .spreading import Spread, over_ray
from .terminal import quiet_libraries


@data_app.command("index")
def data_index(
    layout: Annotated[
        Literal["celebv-text", "videobooth", "folder"],
        typer.Option(help="Whose folders they are; folder: videos, with NAME.txt beside them or a metadata.jsonl."),
    ],
    root: Annotated[
        Path, typer.Option(help="Folder of celebvtext_info.json, of VideoBooth's <category>.csv, or of your videos.")
    ],
    out: Annotated[
        Path, typer.Option(*options.OUT, help="The manifest to write; its paths are relative to its folder.")
    ],
    videos: Annotated[
        Path | None, typer.Option(help="Folder of the videos.", show_default="ROOT, or ROOT/videos for VideoBooth")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="CelebV-Text: folder of the descriptions; folder: of NAME.txt.", show_default="ROOT"),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="VideoBooth: folder of <videoid>/mask_<value>.png.", show_default="beside mask.json"),
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="folder: what highlighting looks for in every clip, such as dog.")
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of source videos in the split 'val'; the rest is 'train'.")
    ] = 0.01,
) -> None:
    """Make a manifest from CelebV-Text's or VideoBooth's folders, or from your own."""
    from videomaker.data.index import LAYOUTS, build_manifest

    given = {"videos": videos, "texts": texts, "masks": masks, "subject": subject}
    known = {"celebv-text": ("videos", "texts"), "videobooth": ("videos", "masks"), "folder": ("texts", "subject")}
    if other := [name for name, value in given.items() if value is not None and name not in known[layout]]:
        raise InputError(f"--{other[0]} does not belong to the layout {layout}: leave it out")
    folders = {name: given[name] for name in known[layout]}
    count, dropped = build_manifest(LAYOUTS[layout](root, **folders), out, val_fraction=val_fraction)
    _report(f"{count} clips in {out}", dropped)


@data_app.command("check")
def data_check(
    manifest: options.Manifest,
    out: Annotated[
        Path | None,
        typer.Option(*options.OUT, help="Write the lines that are good to this manifest in the same folder."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the text encoder's tokenizer: also report captions it would cut.")
    ] = None,
    sample: Annotated[
        int,
        typer.Option(
            min=0, max=options.MOST, help="Look at so many clips only, the same ones each time.", show_default="all"
        ),
    ] = 0,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="End with 2 where a line is bad, also with --out, which writes the rest."),
    ] = False,
) -> None:
    """Decode every video, picture and mask of a manifest and list what is wrong; goes on after an interruption.

    What it refuses, a training on this manifest does not read. Ends with 2
    where a line is bad, and with 0 where --out left it out.
    """
    if sample and out:
        raise InputError("--out needs all clips looked at: leave out --sample")
    from videomaker.data.check import check_clean_place, check_manifest, load_tokenizer, write_clean

    if out:
        check_clean_place(manifest, out)
    report = check_manifest(manifest, tokenizer=tokenizer and load_tokenizer(tokenizer), sample=sample)
    if not report.num_clips:
        raise InputError(f"the manifest {manifest} is empty; write one JSON object per line")
    for where, _, message in report.problems:
        typer.echo(f"{where}: {message}")
    looked = f" of {report.num_looked} that were looked at ({report.num_clips} in the manifest)" if sample else ""
    _report(f"{len(report.good)} clips{looked} are good", report.counts)
    if report.variable_rate:
        typer.echo(f"  variable frame rate: {report.variable_rate}; their frames are chosen by time")
    if out:
        write_clean(report, manifest, out)
        typer.echo(f"written to {out}")
    if report.problems and (strict or not out):
        remedy = "they are left out of --out" if out else "mend them, or drop them with --out"
        raise InputError(f"{manifest} has unusable lines ({len(report.problems)}): {remedy}")


@data_app.command("shard")
def data_shard(
    manifest: options.Manifest,
    out: Annotated[Path, typer.Option(*options.OUT, help="Folder for the shards and their manifest.jsonl.")],
    clips_per_shard: Annotated[int, typer.Option(min=1, max=options.MOST, help="Clips in each tar file.")] = 500,
) -> None:
    """Pack a manifest's files into WebDataset shards; goes on after an interruption."""
    from videomaker.data.shards import write_shards

    count, dropped = write_shards(manifest, out, clips_per_shard=clips_per_shard)
    _report(f"{count} clips in {out / 'manifest.jsonl'}", dropped)


@data_app.command("cache")
def data_cache(
    manifest: options.Manifest,
    model: Annotated[Path, typer.Option(help="Pipeline's folder in the diffusers format.")],
    out: Annotated[
        Path, typer.Option(*options.OUT, help="Folder for the entries: data.cache of the training configuration.")
    ],
    vae: Annotated[Path | None, typer.Option(help="VAE's folder.", show_default="MODEL/vae")] = None,
    num_frames: Annotated[
        int, typer.Option("--num-frames", "--frames", min=1, max=options.MOST, help="As data.num_frames.")
    ] = 16,
    frame_stride: Annotated[int, typer.Option(min=1, max=options.MOST, help="As data.frame_stride.")] = 8,
    height: Annotated[int, typer.Option(min=8, max=options.MOST, help="As data.height.")] = 512,
    width: Annotated[int, typer.Option(min=8, max=options.MOST, help="As data.width.")] = 512,
    starts: Annotated[int, typer.Option(min=1, max=options.MOST, help="Windows of each clip, spread evenly.")] = 1,
) -> None:
    """Encode clips and captions once, for training that skips the VAE; goes on after an interruption."""
    quiet_libraries()
    from videomaker.data.cache import build_cache
    from videomaker.data.dataset import DataConfig
    from videomaker.data.encode import load_encoders

    config = DataConfig(str(manifest), num_frames=num_frames, frame_stride=frame_stride, height=height, width=width)
    count, dropped = build_cache(config, load_encoders(model, vae=vae), out, starts=starts)
    _report(f"{count} clips in {out}", dropped)


@data_app.command("highlight")
@over_ray
@with_groups
def data_highlight(
    manifest: options.Manifest,
    detector: Annotated[Path, typer.Option(help="Local folder of Grounding DINO in the transformers format.")],
    segmenter: Annotated[Path, typer.Option(help="Local folder of SAM in the transformers format.")],
    out: Annotated[
        Path, typer.Option(*options.OUT, help="The manifest to write, beside MANIFEST; masks go into <OUT>-masks.")
    ],
    prompt: Annotated[
        str, typer.Option(help="What to detect, such as 'head'.", show_default="each clip's subject_phrase")
    ] = "",
    box_threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a detection.")] = 0.35,
    text_threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of its words.")] = 0.25,
    max_overlap: Annotated[float, typer.Option(min=0, max=1, help="Boxes that overlap more are one subject.")] = 0.5,
    min_area: Annotated[float, typer.Option(min=0, max=1, help="Smallest box, as a share of the picture.")] = 0.02,
    *,
    spread: Spread,
) -> None:
    """Mask the subject of every reference; clips without exactly one, large enough, are left out.

    The same command goes on after an interruption. With --shard it makes
    masks alone; without, it writes the manifest, too.
    """
    part = spread.part()
    quiet_libraries()
    import torch

    from videomaker.data.highlight import GroundingDino, HighlightSettings, Sam, highlight_manifest, highlight_part

    settings = HighlightSettings(box_threshold, text_threshold, max_overlap, min_area)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detect, segment = GroundingDino(detector, settings, device=device), Sam(segmenter, device=device)
    if part.count > 1:
        count = highlight_part(manifest, out, detect, segment, part, prompt=prompt, settings=settings)
        typer.echo(f"{count} clips looked at; when every shard is done, the same command without --shard writes {out}")
        return
    count, dropped = highlight_manifest(manifest, out, detect, segment, prompt=prompt, settings=settings)
    _report(f"{count} clips in {out}", dropped)


@data_app.command("sprites")
def data_sprites(
    out: Annotated[
        Path, typer.Option(*options.OUT, help="Folder for the videos, references, masks and manifest.jsonl.")
    ],
    clips: Annotated[
        int, typer.Option(min=1, max=999_999, help="How many; one in fifty is held out as 'val'.")
    ] = 20_000,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    small: Annotated[float, typer.Option(min=0, max=1, help="Share of small creatures.")] = 0.25,
) -> None:
    """Draw clips of the sprite world, on which the embedded model is trained; goes on after an interruption."""
    from videomaker.sprites.dataset import write_dataset

    typer.echo(write_dataset(out, clips=clips, seed=seed, small=small))


def _report(done: str, dropped: dict[str, int]) -> None:
    """A line of what was done, and one for each reason to leave something out."""
    typer.echo(done)
    for reason, count in dropped.items():
        typer.echo(f"  left out, {reason}: {count}")
