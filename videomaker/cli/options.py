"""Options that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MODEL, VIDEO, RESULT = "Model", "Video", "Result"
OUT = ("--out", "--output", "-o")  # every command takes all three
MOST = 2**31 - 1  # of any count: more does not fit a database's column, nor any disk

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A folder in the diffusers format, a single file, a model of the hub, or 'default'.",
        show_default="embedded",
        rich_help_panel=MODEL,
    ),
]
MotionAdapter = Annotated[
    str | None,
    typer.Option(
        "--motion-adapter", help="AnimateDiff's folder or single file, for an SD 1.5 base.", rich_help_panel=MODEL
    ),
]
Vae = Annotated[
    str | None,
    typer.Option("--vae", help="Another VAE: a folder, a single file or a model of the hub.", rich_help_panel=MODEL),
]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", help="FILE or FILE:scale, added into the weights; repeatable.", rich_help_panel=MODEL),
]
NegativePreset = Annotated[
    Literal["people", "objects"] | None,
    typer.Option("--negative-preset", help="A long negative prompt, as published results used.", rich_help_panel=VIDEO),
]
SubjectModels = Annotated[
    Path | None, typer.Option("--models", help="With --highlight: folder of grounding-dino/ and sam/.")
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="VideoMaker checkpoint, .safetensors or .bin.", rich_help_panel=MODEL),
]
DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
Dtype = Annotated[
    DtypeName, typer.Option("--dtype", help="auto: float16 on CUDA, else float32.", rich_help_panel=MODEL)
]
Device = Annotated[str, typer.Option("--device", help="auto: CUDA, else MPS, else the CPU.", rich_help_panel=MODEL)]
AttentionBackend = Annotated[
    str,
    typer.Option(
        "--attention-backend", help="auto, naive, sdpa or triton; see videomaker info.", rich_help_panel=MODEL
    ),
]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep idle parts in main memory: for small GPUs.", rich_help_panel=MODEL)
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile for these videos first: for many at once.", rich_help_panel=MODEL)
]
Artifacts = Annotated[
    Path | None,
    typer.Option("--artifacts", help="With --compile: what videomaker warmup saved.", rich_help_panel=MODEL),
]

References = Annotated[
    list[Path] | None,
    typer.Option("--reference", "-r", help="Picture of the subject, or a folder of pictures; repeatable."),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", help="What happens in the video, or a .txt file, a prompt a line; repeatable."),
]
Combine = Annotated[
    Literal["each", "pairs", "subject"],
    typer.Option(
        "--combine",
        help="[b]each[/b]: every reference with every prompt; [b]pairs[/b]: the first reference with the first "
        "prompt and so on; [b]subject[/b]: all references show one subject, used together.",
    ),
]
Seeds = Annotated[
    str, typer.Option("--seed", "-s", help="A number, or several such as 1,2,3 or 0-9: a video for each.")
]


def not_empty(context: typer.Context, parameter: typer.CallbackParam, value: str) -> str:
    """A callback that refuses the empty text where it was given."""
    source = context.get_parameter_source(parameter.name or "")
    if not value and source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter("it is empty: name the subject, such as head or dog")
    return value


HighlightWord = Annotated[
    str,
    typer.Option(
        "--highlight",
        help="Find the subject by this word, such as head or dog, and put it on white, as in training "
        "(Grounding DINO and SAM in --models).",
        metavar="WORD",
        show_default=False,
        callback=not_empty,
    ),
]
Mask = Annotated[
    Path | None, typer.Option("--mask", help="Picture that is 0 outside the subject: put it on white and crop to it.")
]
SuiteMask = Annotated[
    Path | None,
    typer.Option("--mask", help="Folder of SUBJECT.png, 0 outside the subject; or one file for one subject."),
]
Box = Annotated[str | None, typer.Option("--box", help="x1,y1,x2,y2 in pixels of the reference: crop to the subject.")]
Steps = Annotated[
    int | None,
    typer.Option("--steps", min=1, max=10_000, help="Denoising steps.", show_default="30", rich_help_panel=VIDEO),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance", min=0, max=1000, help="Guidance scale; 1 is none.", show_default="8", rich_help_panel=VIDEO
    ),
]
NegativePrompt = Annotated[
    str | None, typer.Option("--negative-prompt", help="What the video should not show.", rich_help_panel=VIDEO)
]
Width = Annotated[
    int | None,
    typer.Option("--width", min=1, max=4096, help="Pixels.", show_default="as trained", rich_help_panel=VIDEO),
]
Height = Annotated[
    int | None,
    typer.Option("--height", min=1, max=4096, help="Pixels.", show_default="as trained", rich_help_panel=VIDEO),
]
Frames = Annotated[
    int | None,
    typer.Option(
        "--frames", "--num-frames", min=1, max=10_000, help="Frames.", show_default="as trained", rich_help_panel=VIDEO
    ),
]
Fps = Annotated[
    float | None,
    typer.Option("--fps", min=0.1, max=240, help="Frames a second.", show_default="8", rich_help_panel=VIDEO),
]
Fit = Annotated[
    Literal["stretch", "pad", "crop"] | None,
    typer.Option(
        "--fit",
        help="How a reference gets the video's shape; pad: white around it.",
        show_default="stretch",
        rich_help_panel=VIDEO,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size", min=1, max=1024, help="Videos that go through the model together.", rich_help_panel=RESULT
    ),
]
FileFormat = Annotated[
    Literal["mp4", "gif", "frames"] | None,
    typer.Option("--format", help="frames is a folder of PNG files.", show_default="mp4", rich_help_panel=RESULT),
]
Upscale = Annotated[
    int | None,
    typer.Option(
        "--upscale",
        min=1,
        max=64,
        help="Repeat each pixel so often.",
        show_default="tiny videos only",
        rich_help_panel=RESULT,
    ),
]
ContactSheet = Annotated[
    bool,
    typer.Option("--contact-sheet", help="Also write a picture of references and frames.", rich_help_panel=RESULT),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Make results again that are there.", rich_help_panel=RESULT)
]
Manifest = Annotated[Path, typer.Argument(help="A manifest: JSON Lines, paths relative to its folder.")]
