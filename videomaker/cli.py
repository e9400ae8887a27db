"""The command line: thin commands over the library. Heavy modules load inside them, so that help is quick."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup

from videomaker import __version__
from videomaker.errors import InputError


class _Commands(TyperGroup):
    """Commands whose errors about the user's input or files are one line on stderr and exit code 2."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (InputError, OSError) as error:
            typer.echo(f"error: {_one_line(error)}", err=True)
            raise typer.Exit(2) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return shorten(str(error), 400, placeholder=" …")


app = typer.Typer(
    name="videomaker",
    cls=_Commands,
    help="Puts a subject, given as one picture, into a video described by a prompt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Make, index and prepare data for training.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is chosen and why.")] = False,
) -> None:
    from videomaker.terminal import show_messages

    show_messages(verbose=verbose)


_MODEL, _VIDEO, _RESULT = "Model", "Video", "Result"


@app.command(no_args_is_help=True)
def generate(
    context: typer.Context,
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", "-r", help="Picture of the subject, or a folder of pictures; repeatable."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="What happens in the video, or a .txt file, a prompt a line; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder, or a .mp4 or .gif file for one video.", show_default="outputs"),
    ] = None,
    combine: Annotated[
        Literal["each", "pairs", "subject"],
        typer.Option(
            help="[b]each[/b]: every reference with every prompt; [b]pairs[/b]: the first reference with the first "
            "prompt and so on; [b]subject[/b]: all references show one subject, used together."
        ),
    ] = "each",
    seed: Annotated[
        str, typer.Option("--seed", "-s", help="A number, or several such as 1,2,3 or 0-9: a video for each.")
    ] = "0",
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder in the diffusers format, or 'default'.", show_default="embedded", rich_help_panel=_MODEL
        ),
    ] = None,
    motion_adapter: Annotated[
        str | None,
        typer.Option(help="AnimateDiff's folder, when the model is an SD 1.5 base.", rich_help_panel=_MODEL),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="VideoMaker checkpoint, .safetensors or .bin.", rich_help_panel=_MODEL),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        typer.Option(help="auto: float16 on CUDA, else float32.", rich_help_panel=_MODEL),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto: CUDA, else MPS, else the CPU.", rich_help_panel=_MODEL)] = "auto",
    attention_backend: Annotated[
        str, typer.Option(help="auto, naive, sdpa or triton; see videomaker info.", rich_help_panel=_MODEL)
    ] = "auto",
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep idle parts in main memory: for small GPUs.", rich_help_panel=_MODEL)
    ] = False,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile for these videos first: for many at once.", rich_help_panel=_MODEL),
    ] = False,
    artifacts: Annotated[
        Path | None,
        typer.Option(help="With --compile: what videomaker warmup saved.", rich_help_panel=_MODEL),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps.", show_default="30", rich_help_panel=_VIDEO)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale; 1 is none.", show_default="8", rich_help_panel=_VIDEO)
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the video should not show.", rich_help_panel=_VIDEO)
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Pixels.", show_default="as trained", rich_help_panel=_VIDEO)
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=1, help="Pixels.", show_default="as trained", rich_help_panel=_VIDEO)
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames.", show_default="as trained", rich_help_panel=_VIDEO)
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.1, max=240, help="Frames a second.", show_default="8", rich_help_panel=_VIDEO)
    ] = None,
    fit: Annotated[
        Literal["stretch", "pad", "crop"] | None,
        typer.Option(
            help="How a reference gets the video's shape; pad: white around it.",
            show_default="stretch",
            rich_help_panel=_VIDEO,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Videos that go through the model together.", rich_help_panel=_RESULT)
    ] = 1,
    file_format: Annotated[
        Literal["mp4", "gif", "frames"] | None,
        typer.Option("--format", help="frames is a folder of PNG files.", show_default="mp4", rich_help_panel=_RESULT),
    ] = None,
    upscale: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Repeat each pixel so often.", show_default="tiny videos only", rich_help_panel=_RESULT
        ),
    ] = None,
    contact_sheet: Annotated[
        bool,
        typer.Option("--contact-sheet", help="Also write a picture of references and frames.", rich_help_panel=_RESULT),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make results again that are there.", rich_help_panel=_RESULT)
    ] = False,
    from_json: Annotated[
        Path | None,
        typer.Option(help="Make the video of this JSON again, bit for bit.", rich_help_panel=_RESULT),
    ] = None,
) -> None:
    """Make videos of a subject from its picture and a prompt.

    Beside each video lies a JSON with all it was made from. Results that
    are there are kept: an interrupted batch goes on when run again.

    [b]With the embedded model[/b], offline, on any machine:

        videomaker generate -r creature.png -p "a creature over a meadow"

    [b]With Stable Diffusion 1.5[/b] from local folders, four videos of each prompt:

        videomaker generate -r person.jpg -p prompts.txt --seed 0-3
        --model realistic-vision --motion-adapter animatediff-v1-5-3
        --weights videomaker-human.safetensors

    [b]Again[/b], bit for bit, from the record of a video:

        videomaker generate --from-json outputs/x.json -o again.mp4
    """
    if from_json is not None:
        _refuse_other_options(context)
        moved = {"source": model, "motion_adapter": motion_adapter, "weights": weights}
        moved = {part: place for part, place in moved.items() if place is not None}
        _generate_again(from_json, output, reference or [], moved, overwrite)
        return
    from videomaker import request

    output = output or Path("outputs")
    file_format = request.output_format(output, file_format)
    jobs = request.plan_jobs(
        request.find_references(reference or []),
        request.read_prompts(prompt or []),
        request.parse_seeds(seed),
        output=output,
        file_format=file_format,
        combine=combine,
    )
    recipe = request.Recipe(
        request.ModelSpec(
            model or "default", motion_adapter, weights, dtype, device, attention_backend, offload, compile
        ),
        request.Settings(steps, guidance, negative_prompt, width, height, frames, fps, fit),
        request.Output(file_format, upscale),
    )
    if artifacts is not None and not compile:
        raise InputError(f"--artifacts {artifacts} goes with --compile: add it")
    _generate_jobs(jobs, recipe, batch_size, overwrite, artifacts)
    if contact_sheet:
        typer.echo(_write_contact_sheet(output, jobs))


# What may be given with --from-json: where things lie now.
_WITH_FROM_JSON = {"from_json", "reference", "output", "model", "motion_adapter", "weights", "overwrite"}


def _refuse_other_options(context: typer.Context) -> None:
    for name in context.params.keys() - _WITH_FROM_JSON:
        if context.get_parameter_source(name).name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')} does not go with --from-json, which brings its own")


def _generate_jobs(jobs: list, recipe, batch_size: int, overwrite: bool, artifacts: Path | None) -> None:
    prepared = _prepare(recipe)
    from videomaker.generate import make_videos, pending_jobs
    from videomaker.terminal import video_progress

    pending = pending_jobs(prepared, jobs, overwrite=overwrite)
    finished = len(jobs) - len(pending)
    if finished:
        typer.echo(f"{finished} of {len(jobs)} videos are there already; --overwrite makes them again", err=True)
    for job in jobs:
        if job not in pending:
            typer.echo(job.path)
    try:
        with video_progress(len(pending), prepared.recipe.settings.steps) as advance:
            videos = make_videos(prepared, pending, batch_size=batch_size, on_step=advance, artifacts=artifacts)
            for job in videos:
                finished += 1
                print(job.path, flush=True)  # typer.echo would write into the progress bar
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {finished} of {len(jobs)} videos are complete; run the same again to go on", err=True)
        raise


def _generate_again(
    path: Path, output: Path | None, references: list[Path], moved: dict[str, str], overwrite: bool
) -> None:
    from dataclasses import replace

    from videomaker.terminal import quiet_libraries, video_progress

    quiet_libraries()
    from videomaker import record, request
    from videomaker.generate import replay

    old = record.read_record(path)
    recipe = record.recorded_recipe(old)
    output = output or path.with_name(old["video"])
    request.output_format(output, recipe.output.format)
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: use --overwrite or another --output")
    prepared = _prepare(replace(recipe, model=replace(recipe.model, **moved)))
    with video_progress(1, recipe.settings.steps) as advance:
        same = replay(prepared, old, output, references=references, on_step=advance)
    typer.echo("the same bytes as the first time" if same else "NOT the same bytes as the first time", err=True)
    typer.echo(output)


def _prepare(recipe):
    from videomaker.terminal import console, quiet_libraries

    with console().status("Loading the model"):
        quiet_libraries()
        from videomaker.generate import prepare

        return prepare(recipe)


def _write_contact_sheet(output: Path, jobs: list) -> Path:
    from videomaker.generate import write_contact_sheet

    one_file = output.suffix.lower() in (".mp4", ".gif")
    sheet = output.with_suffix(".sheet.png") if one_file else output / "contact-sheet.png"
    write_contact_sheet(sheet, jobs)
    return sheet


@app.command(no_args_is_help=True)
def warmup(
    save: Annotated[Path, typer.Option(help="The folder to write; replaced if it is there.")],
    frames: Annotated[int | None, typer.Option(min=1, help="Frames.", show_default="as trained")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.", show_default="as trained")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.", show_default="as trained")] = None,
    batch_size: Annotated[list[int], typer.Option(min=1, help="Videos at once; repeatable.")] = [1],  # noqa: B006
    references: Annotated[int, typer.Option(min=1, help="Pictures of each subject.")] = 1,
    model: Annotated[
        str, typer.Option(help="A folder in the diffusers format, or 'default'.", rich_help_panel=_MODEL)
    ] = "default",
    motion_adapter: Annotated[
        str | None, typer.Option(help="AnimateDiff's folder, when the model is an SD 1.5 base.", rich_help_panel=_MODEL)
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        typer.Option(help="auto: float16 on CUDA, else float32.", rich_help_panel=_MODEL),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto: CUDA, else MPS, else the CPU.", rich_help_panel=_MODEL)] = "auto",
) -> None:
    """Compile for declared shapes and save the result for generate --compile --artifacts.

    What is saved fits this device and these versions, and any weights. It
    is machine code: use only what you made.
    """
    from videomaker import request

    recipe = request.Recipe(
        request.ModelSpec(model, motion_adapter, dtype=dtype, device=device),
        request.Settings(width=width, height=height, frames=frames),
    )
    prepared = _prepare(recipe)
    from videomaker import artifacts
    from videomaker.compiled import Bucket

    settings = prepared.recipe.settings
    shape = (settings.frames, settings.height, settings.width)
    report = prepared.pipe.compile([Bucket(*shape, size, references) for size in batch_size])
    typer.echo(report, err=True)
    typer.echo(artifacts.save(save, prepared.pipe))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A published checkpoint (.bin), or one of this project.")],
    output: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Folder whose UNet the checkpoint is for.", show_default="AnimateDiff on SD 1.5"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")] = False,
) -> None:
    """Turn a published checkpoint into safetensors and report what it covers."""
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: use --overwrite or another name")
    from videomaker.terminal import quiet_libraries

    quiet_libraries()
    from videomaker.convert import convert_checkpoint

    typer.echo(convert_checkpoint(source, output, model=model))
    typer.echo(output)


@app.command(no_args_is_help=True)
def export(
    run: Annotated[Path, typer.Argument(help="A training run's folder.")],
    output: Annotated[Path | None, typer.Option("--out", "-o", help="File or folder; default in RUN/export.")] = None,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32; default bf16, fp32 for a base.")] = "",
    ema: Annotated[bool | None, typer.Option(help="The moving average; default if the run kept one.")] = None,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="A whole pipeline folder, not the trained part.")
    ] = False,
) -> None:
    """Turn a training run into weights that `generate` and others load, with a model card."""
    from videomaker.train.export import export_run

    report = partial(typer.echo, err=True)
    typer.echo(export_run(run, output, dtype=dtype, ema=ema, whole=pipeline, report=report))


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for results.json and videos.png.")] = Path("outputs/evaluation"),
    suite: Annotated[
        Literal["sprites"], typer.Option(help="The sprite world: no pretrained network needed.")
    ] = "sprites",
    model: Annotated[str, typer.Option(help="'default' (small, embedded) or a folder made like it.")] = "default",
    clips: Annotated[int, typer.Option(min=2, help="Unseen creatures, each with a prompt.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    reference: Annotated[
        Literal["white", "raw", "none"],
        typer.Option(help="Creatures on white, on a background that is not the prompt's, or no reference at all."),
    ] = "white",
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="the model's")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.", show_default="the model's")] = None,
) -> None:
    """Measure subject fidelity, motion and background where the truth is known."""
    import json

    from videomaker.terminal import console, quiet_libraries

    quiet_libraries()
    from videomaker.evaluate import SpriteSuite, contact_sheet, evaluate_sprites
    from videomaker.files import atomic_path
    from videomaker.generate import generation_defaults, load_pipeline, model_folder, resolve_model
    from videomaker.request import ModelSpec

    settings, _ = generation_defaults(model_folder(model))
    task = SpriteSuite(
        clips, seed, steps or settings.steps or 30, guidance or settings.guidance or 8.0, reference=reference
    )
    pipe = load_pipeline(resolve_model(ModelSpec(source=model, dtype="float32")))
    with console().status("Evaluating") as status:
        results, videos = evaluate_sprites(pipe, task, on_videos=lambda n: status.update(f"{n} of {clips} videos"))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "results.json") as path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with atomic_path(out / "videos.png") as path:
        contact_sheet(task, videos).save(path)
    typer.echo(json.dumps(results, indent=2))


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show versions, devices and which attention backend would run, and why."""
    from videomaker.environment import describe

    environment = describe()
    if as_json:
        import json

        typer.echo(json.dumps(environment, indent=2))
        return
    for name, version in environment["versions"].items():
        typer.echo(f"{name:14}{version or 'not installed'}")
    typer.echo(f"{'platform':14}{environment['platform']}")
    for device in environment["devices"]:
        details = ", ".join(f"{value} {key}" for key, value in device.items() if key not in ("device", "name"))
        typer.echo(f"{device['device']:14}{device['name']} ({details})")
    attention = environment["attention"]
    typer.echo(f"{'attention':14}{attention['chosen']}: {attention['reason']}")
    for name, reason in attention["unavailable"].items():
        typer.echo(f"{'  ' + name:14}{'available' if reason is None else 'not available: ' + reason}")


_MANIFEST = Annotated[Path, typer.Argument(help="A manifest: JSON Lines, paths relative to its folder.")]


@data_app.command("index")
def data_index(
    layout: Annotated[Literal["celebv-text", "videobooth"], typer.Option(help="Whose folders they are.")],
    root: Annotated[Path, typer.Option(help="Folder of celebvtext_info.json, or of VideoBooth's <category>.csv.")],
    out: Annotated[Path, typer.Option(help="The manifest to write; its paths are relative to its folder.")],
    videos: Annotated[
        Path | None, typer.Option(help="Folder of the videos.", show_default="ROOT, or ROOT/videos for VideoBooth")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="CelebV-Text: folder of the folders of descriptions.", show_default="ROOT")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="VideoBooth: folder of <videoid>/mask_<value>.png.", show_default="beside mask.json"),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of source videos in the split 'val'; the rest is 'train'.")
    ] = 0.01,
) -> None:
    """Make a manifest from CelebV-Text's or VideoBooth's own folders."""
    from videomaker.train.index import LAYOUTS, build_manifest

    folders = {"videos": videos, "texts": texts, "masks": masks}
    other = "masks" if layout == "celebv-text" else "texts"
    if folders.pop(other) is not None:
        raise InputError(f"--{other} does not belong to the layout {layout}: leave it out")
    count, dropped = build_manifest(LAYOUTS[layout](root, **folders), out, val_fraction=val_fraction)
    _report(f"{count} clips in {out}", dropped)


@data_app.command("check")
def data_check(
    manifest: _MANIFEST,
    out: Annotated[
        Path | None, typer.Option(help="Write the lines that are good to this manifest in the same folder.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the text encoder's tokenizer: also report captions it would cut.")
    ] = None,
) -> None:
    """Read every line, video, picture and mask of a manifest and list what is wrong."""
    from videomaker.train.check import check_manifest, load_tokenizer, write_clean

    report = check_manifest(manifest, tokenizer=tokenizer and load_tokenizer(tokenizer))
    for where, _, message in report.problems:
        typer.echo(f"{where}: {message}")
    _report(f"{len(report.good)} clips are good", report.counts)
    if out:
        write_clean(report, manifest, out)
        typer.echo(f"written to {out}")
    elif report.problems:
        raise InputError(f"{manifest} has unusable lines ({len(report.problems)}): mend them, or drop them with --out")


@data_app.command("shard")
def data_shard(
    manifest: _MANIFEST,
    out: Annotated[Path, typer.Option(help="Folder for the shards and their manifest.jsonl.")],
    clips_per_shard: Annotated[int, typer.Option(min=1, help="Clips in each tar file.")] = 500,
) -> None:
    """Pack a manifest's files into WebDataset shards; goes on after an interruption."""
    from videomaker.train.shards import write_shards

    count, dropped = write_shards(manifest, out, clips_per_shard=clips_per_shard)
    _report(f"{count} clips in {out / 'manifest.jsonl'}", dropped)


@data_app.command("cache")
def data_cache(
    manifest: _MANIFEST,
    model: Annotated[Path, typer.Option(help="Pipeline's folder in the diffusers format.")],
    out: Annotated[Path, typer.Option(help="Folder for the entries: data.cache of the training configuration.")],
    vae: Annotated[Path | None, typer.Option(help="VAE's folder.", show_default="MODEL/vae")] = None,
    num_frames: Annotated[int, typer.Option(min=1, help="As data.num_frames.")] = 16,
    frame_stride: Annotated[int, typer.Option(min=1, help="As data.frame_stride.")] = 8,
    height: Annotated[int, typer.Option(min=8, help="As data.height.")] = 512,
    width: Annotated[int, typer.Option(min=8, help="As data.width.")] = 512,
    starts: Annotated[int, typer.Option(min=1, help="Windows of each clip, spread evenly.")] = 1,
) -> None:
    """Encode clips and captions once, for training that skips the VAE; goes on after an interruption."""
    from videomaker.terminal import quiet_libraries

    quiet_libraries()
    from videomaker.train.cache import build_cache, load_encoders
    from videomaker.train.dataset import DataConfig

    size = {"num_frames": num_frames, "frame_stride": frame_stride, "height": height, "width": width}
    config = DataConfig(manifest=str(manifest), **size)
    count, dropped = build_cache(config, load_encoders(model, vae=vae), out, starts=starts)
    _report(f"{count} clips in {out}", dropped)


@data_app.command("highlight")
def data_highlight(
    manifest: _MANIFEST,
    detector: Annotated[Path, typer.Option(help="Local folder of Grounding DINO in the transformers format.")],
    segmenter: Annotated[Path, typer.Option(help="Local folder of SAM in the transformers format.")],
    out: Annotated[Path, typer.Option(help="The manifest to write, beside MANIFEST; masks go into <OUT>-masks.")],
    prompt: Annotated[
        str, typer.Option(help="What to detect, such as 'head'.", show_default="each clip's subject_phrase")
    ] = "",
    box_threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a detection.")] = 0.35,
    text_threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of its words.")] = 0.25,
    max_overlap: Annotated[float, typer.Option(min=0, max=1, help="Boxes that overlap more are one subject.")] = 0.5,
    min_area: Annotated[float, typer.Option(min=0, max=1, help="Smallest box, as a share of the picture.")] = 0.02,
) -> None:
    """Mask the subject of every reference; clips without exactly one, large enough, are left out."""
    from videomaker.terminal import quiet_libraries

    quiet_libraries()
    import torch

    from videomaker.train.highlight import GroundingDino, HighlightSettings, Sam, highlight_manifest

    settings = HighlightSettings(box_threshold, text_threshold, max_overlap, min_area)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detect, segment = GroundingDino(detector, settings, device=device), Sam(segmenter, device=device)
    count, dropped = highlight_manifest(manifest, out, detect, segment, prompt=prompt, settings=settings)
    _report(f"{count} clips in {out}", dropped)


@data_app.command("sprites")
def data_sprites(
    out: Annotated[Path, typer.Option(help="Folder for the videos, references, masks and manifest.jsonl.")],
    clips: Annotated[int, typer.Option(min=1, help="How many; one in fifty is held out as 'val'.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw clips of the sprite world, on which the embedded model is trained; goes on after an interruption."""
    from videomaker.sprites.dataset import write_dataset

    typer.echo(write_dataset(out, clips=clips, seed=seed))


def _report(done: str, dropped: dict[str, int]) -> None:
    """A line of what was done, and one for each reason to leave something out."""
    typer.echo(done)
    for reason, count in dropped.items():
        typer.echo(f"  left out, {reason}: {count}")


from videomaker import cli_serve  # noqa: E402

cli_serve.register(app)


def main() -> None:
    """The console script `videomaker`."""
    app()


if __name__ == "__main__":
    main()
