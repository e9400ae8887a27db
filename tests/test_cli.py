"""The command line from files to files, with a tiny model: what it makes, what it refuses, what it leaves behind."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_motion_adapter, tiny_pipeline, tiny_unet2d
from typer.testing import CliRunner

from videomaker import media
from videomaker.attention import is_spatial_self_attention
from videomaker.cli import app
from videomaker.files import sha256
from videomaker.jobs import record, render, request

runner = CliRunner()
PROMPT = "a creature over a meadow"
QUICK = ("--steps", "2", "--frames", "3")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def reference(tmp_path) -> Path:
    path = tmp_path / "subject.png"
    Image.effect_noise((48, 40), 80).convert("RGB").save(path)
    return path


@pytest.fixture
def run(model, reference, tmp_path):
    """Runs `videomaker generate` on the tiny model; writes to `tmp_path / "out"`."""

    def invoke(*arguments, prompt=PROMPT, references=(reference,)):
        given = [argument for path in references for argument in ("-r", str(path))]
        given += [] if prompt is None else ["-p", prompt]
        output = [] if "-o" in arguments else ["-o", str(tmp_path / "out")]
        source = [] if "--model" in arguments else ["--model", str(model)]
        return runner.invoke(app, ["generate", *given, *source, *output, *QUICK, *map(str, arguments)])

    return invoke


def refused(result, words: str) -> None:
    """Exit code 2, and one line on stderr that says what is wrong."""
    assert result.exit_code == 2, result.output
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert words in result.stderr


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys; from typer.testing import CliRunner; from videomaker.cli import app; "
        "assert CliRunner().invoke(app, ['generate', '--help']).exit_code == 0; "
        "print([m for m in ('torch', 'numpy', 'PIL', 'av', 'diffusers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_generate_writes_a_video_and_all_it_was_made_from(run, reference, tmp_path):
    result = run("--seed", 7, "--fps", 4, "--negative-prompt", "fog", "--contact-sheet")
    assert result.exit_code == 0, result.output
    video = tmp_path / "out" / "subject_a-creature-over-a-meadow_7.mp4"
    assert result.stdout.split() == [str(video), str(tmp_path / "out" / "contact-sheet.png")]
    assert files(tmp_path / "out") == ["contact-sheet.png", video.with_suffix(".json").name, video.name]
    assert media.read_frames(video).shape == (3, 256, 256, 3)  # 32 pixels, enlarged
    made_from = json.loads(video.with_suffix(".json").read_text())
    assert (made_from["prompt"], made_from["seed"]) == (PROMPT, 7)
    assert made_from["settings"] == {
        "steps": 2, "guidance": 8.0, "negative_prompt": "fog",
        "width": 32, "height": 32, "frames": 3, "fps": 4.0, "fit": "stretch",
    }  # fmt: skip
    assert made_from["output"] == {"format": "mp4", "upscale": 8}
    assert made_from["video_sha256"] == record.file_digest(video)
    assert made_from["references"] == [{"path": str(reference), "sha256": sha256(reference)}]
    assert made_from["model"]["device"] != "auto" and made_from["model"]["dtype"] != "auto"


@pytest.mark.parametrize("file_format", ["mp4", "gif", "frames"])
def test_a_record_makes_the_same_bytes_again(run, tmp_path, file_format):
    assert run("--seed", "3", "--format", file_format).exit_code == 0
    (made_from,) = (tmp_path / "out").glob("*.json")
    video = next(path for path in (tmp_path / "out").iterdir() if path != made_from)
    again = tmp_path / "again" / video.name
    result = runner.invoke(app, ["generate", "--from-json", str(made_from), "-o", str(again)])
    assert result.exit_code == 0, result.output
    assert "the same bytes" in result.stderr
    assert record.file_digest(again) == record.file_digest(video)


def test_a_record_of_a_batch_makes_the_same_bytes_again(run, tmp_path):
    assert run("--seed", "0-2", "--batch-size", "2").exit_code == 0
    made_from = tmp_path / "out" / "subject_a-creature-over-a-meadow_1.json"
    result = runner.invoke(app, ["generate", "--from-json", str(made_from), "-o", str(tmp_path / "again.mp4")])
    assert result.exit_code == 0 and "the same bytes" in result.stderr, result.output


def test_a_record_refuses_another_reference_or_model(run, reference, model, tmp_path):
    assert run("-o", tmp_path / "video.mp4").exit_code == 0
    again = ["generate", "--from-json", str(tmp_path / "video.json"), "-o", str(tmp_path / "again.mp4")]

    moved = tmp_path / "moved.png"
    reference.rename(moved)
    refused(runner.invoke(app, again), "does not exist any more")
    assert runner.invoke(app, [*again, "-r", str(moved)]).exit_code == 0
    Image.new("RGB", (8, 8)).save(reference)
    refused(runner.invoke(app, [*again, "--overwrite"]), "has changed")

    other = tmp_path / "other"
    tiny_pipeline(seed=1).save_pretrained(other)
    refused(runner.invoke(app, [*again, "--overwrite", "-r", str(moved), "--model", str(other)]), "unet")
    refused(runner.invoke(app, [*again, "--steps", "3"]), "--steps does not go with --from-json")
    refused(runner.invoke(app, [*again, "-r", str(moved)]), "exists")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"record_version": 1}', '{"record_version": 99}'])
def test_a_file_that_is_no_record(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    refused(runner.invoke(app, ["generate", "--from-json", str(tmp_path / "x.json")]), "not the record of a video")


def test_an_interrupted_batch_goes_on(run, tmp_path, monkeypatch):
    whole = render.render

    def stop_at_second(pipe, batch, *arguments):
        if batch[0].seed == 1:
            raise KeyboardInterrupt
        return whole(pipe, batch, *arguments)

    monkeypatch.setattr(render, "render", stop_at_second)
    result = run("--seed", "0-2")
    assert result.exit_code == 130
    assert "1 of 3 videos are complete" in result.stderr
    assert files(tmp_path / "out") == [f"subject_a-creature-over-a-meadow_0.{x}" for x in ("json", "mp4")]

    monkeypatch.setattr(render, "render", whole)
    first = tmp_path / "out" / "subject_a-creature-over-a-meadow_0.mp4"
    before = first.stat().st_mtime_ns
    assert run("--seed", "0-2").exit_code == 0
    assert len(files(tmp_path / "out")) == 6 and first.stat().st_mtime_ns == before
    assert run("--seed", "0-2", "--overwrite").exit_code == 0
    assert first.stat().st_mtime_ns > before


def test_a_result_of_other_settings_is_not_mistaken_for_this_one(run, tmp_path):
    assert run("--seed", "0").exit_code == 0
    refused(run("--guidance", "2"), "guidance 8.0, now 2.0")
    (video,) = (tmp_path / "out").glob("*.mp4")
    video.with_suffix(".json").unlink()
    refused(run(), "without its record")


def test_ctrl_c_while_writing_leaves_no_half_written_file(run, tmp_path, monkeypatch):
    def write_half(path, *arguments, **options):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(media, "write", write_half)
    assert run().exit_code == 130
    assert files(tmp_path / "out") == []


def start(*arguments, prepare=lambda: None) -> subprocess.Popen:
    """A real process of the command line, which hears Ctrl-C even where a shell runs the tests in the background."""

    def hear_ctrl_c():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        prepare()

    return subprocess.Popen(
        [sys.executable, "-m", "videomaker", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def test_ctrl_c_in_the_terminal(model, reference, tmp_path):
    out = tmp_path / "out"
    asked = ("generate", "-r", reference, "-p", PROMPT, "--model", model, "-o", out, "--steps", 1000)
    process = start("--verbose", *asked)
    for line in process.stderr:
        if "attention backend" in line:  # said by the first layer that runs
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "interrupted: 0 of 1" in said
    assert not out.exists()


def test_full_disk(model, reference, tmp_path):
    """A limit on the size of files stands for the disk: a write beyond it fails in the kernel, as on a full disk."""
    out = tmp_path / "out"
    asked = ("generate", "-r", reference, "-p", PROMPT, "--model", model, "-o", out, *QUICK, "--upscale", 16)
    process = start(*asked, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert said.splitlines()[-1].startswith("error: File too large")
    assert files(out) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--width", "33"), "width is 33; it must be a positive multiple of 2"),
        (("--frames", "0"), "'--frames'"),
        (("--steps", "1001"), "1 to 1000"),
        (("--guidance", "inf"), "less than or equal to 1000"),
        (("--model", "no/such/model"), "unknown model 'no/such/model'"),
        (("--motion-adapter", "nowhere"), "motion adapter 'nowhere'"),
        (("--weights", "nowhere.bin"), "nowhere.bin does not exist"),
        (("--device", "warp"), "device 'warp'"),
        (("--device", "cpu", "--offload"), "the device is the CPU"),
        (("--attention-backend", "magic"), "'magic'"),
        (("--seed", "one"), "seed 'one'"),
        (("--seed", "5-2"), "seed '5-2'"),
        (("-o", "video.avi"), ".avi is not written"),
        (("-o", "picture.PNG"), ".png is not written; give .mp4, .gif or a folder"),
        (("-o", "picture.webp", "--format", "frames"), ".webp is not written"),
        (("-o", "video.mp4", "--format", "gif"), "format asked for is gif"),
        (("-o", "video.mp4", "--seed", "0,1"), "give a folder"),
        (("--compile", "--artifacts", "absent"), "no folder absent; make it with videomaker warmup --save absent"),
        (("-o", "/dev/null/out"), "/dev/null"),
        (("--from-json", "nowhere.json"), "does not go with --from-json"),
        (("--combine", "pairs", "-p", "another"), "1 references and 2 prompts"),
        (("-p", " "), "prompt is empty"),
        (("-p", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_refused_options(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused(run(*arguments), words)
    assert files(tmp_path) == ["subject.png"]


def test_refused_references(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("not a picture")
    refused(run(references=()), "no reference")
    refused(run(references=[tmp_path / "nowhere.png"]), "nowhere.png does not exist")
    refused(run(references=[tmp_path / "text.png"]), "text.png cannot be read")
    refused(run(references=[tmp_path / "empty"]), "no picture in folder")
    refused(run(prompt=None), "no prompt")
    assert not (tmp_path / "out").exists()


def test_model_of_another_kind(run, tmp_path):
    (tmp_path / "xl").mkdir()
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "xl" / "model_index.json").write_text(json.dumps({**index, "text_encoder_2": ["a", "b"]}))
    refused(run("--model", tmp_path / "xl"), "is a StableDiffusionXLPipeline")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "has no tokenizer/"),
        (lambda folder: (folder / "vae" / "config.json").unlink(), "cannot be loaded"),
        (
            lambda folder: os.truncate(folder / "unet" / "diffusion_pytorch_model.safetensors", 9_000),
            "cut short",
        ),
        (
            lambda folder: lose_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors"),
            "lacks 11 tensors of unet",
        ),
        (
            lambda folder: lose_tensors(folder / "text_encoder" / "model.safetensors", "layer_norm2"),
            "text_encoder lacks 4 tensors",
        ),
    ],
    ids=["no tokenizer", "no config", "cut short", "tensors lost", "text tensors lost"],
)
def test_damaged_model(run, model, tmp_path, damage, words):
    shutil.copytree(model, tmp_path / "model")
    damage(tmp_path / "model")
    refused(run("--model", tmp_path / "model"), words)


def lose_tensors(path: Path, lost: str = "attn1.to_q") -> None:
    save_file({name: value for name, value in load_file(path).items() if lost not in name}, path)


def test_base_with_motion_adapter_and_weights(run, model, tmp_path):
    """As with Stable Diffusion 1.5: a base for single pictures, AnimateDiff's motion adapter, our checkpoint."""
    base = tmp_path / "base"
    shutil.copytree(model, base)
    shutil.rmtree(base / "unet")
    tiny_unet2d().save_pretrained(base / "unet")
    index = json.loads((base / "model_index.json").read_text())
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    (base / "model_index.json").write_text(json.dumps(index))
    tiny_motion_adapter().save_pretrained(tmp_path / "adapter")
    refused(run("--model", base), "give --motion-adapter")

    weights = {name: value for name, value in tiny_pipeline().unet.state_dict().items() if "attn1.to_q" in name}
    torch.save(weights, tmp_path / "partial.bin")
    asked = ("--model", base, "--motion-adapter", tmp_path / "adapter", "--weights", tmp_path / "partial.bin")
    assert run(*asked, "-o", tmp_path / "video.mp4").exit_code == 0
    torch.save({"something.else": torch.zeros(1)}, tmp_path / "partial.bin")
    refused(run(*asked), "another architecture")


def test_a_model_brings_its_defaults_and_its_note(model, reference, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    defaults = {"num_frames": 2, "fps": 5, "num_inference_steps": 1, "width": 40, "note": "This model is untrained."}
    (tmp_path / "model" / "generation.json").write_text(json.dumps(defaults))
    video = tmp_path / "video.mp4"
    asked = ["generate", "-r", str(reference), "-p", PROMPT, "--model", str(tmp_path / "model"), "-o", str(video)]
    result = runner.invoke(app, [*asked, "--fps", "6"])
    assert result.exit_code == 0, result.output
    assert "This model is untrained." in result.stderr
    settings = json.loads(video.with_suffix(".json").read_text())["settings"]
    assert (settings["frames"], settings["steps"], settings["width"], settings["fps"]) == (2, 1, 40, 6.0)
    assert (settings["height"], settings["guidance"]) == (32, 8.0)


def test_long_prompt_says_what_is_cut(run):
    result = run(prompt="x" * 75 + "tail")  # the tiny tokenizer makes a token of every letter
    assert result.exit_code == 0
    assert "81 tokens, the model reads 77; cut off: 'tail'" in " ".join(result.stderr.split())


def test_references_prompts_and_seeds_combine(run, reference, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png", ".hidden.png"):
        shutil.copy(reference, folder / name)
    (folder / "notes.md").write_text("no picture")
    (tmp_path / "prompts.txt").write_text("# two prompts\nhop\n\nrun\n")
    both = {"references": [folder], "prompt": str(tmp_path / "prompts.txt")}

    def names(*arguments) -> list[str]:
        result = run(*arguments, "-o", tmp_path / arguments[1], **both)
        assert result.exit_code == 0, result.output
        return [Path(line).stem for line in result.stdout.split()]

    assert names("--combine", "each") == ["a_hop_0", "a_run_0", "b_hop_0", "b_run_0"]
    assert names("--combine", "pairs", "--seed", "1,3-4") == [
        "a_hop_1", "a_hop_3", "a_hop_4", "b_run_1", "b_run_3", "b_run_4",
    ]  # fmt: skip
    assert names("--combine", "subject") == ["a_hop_0", "a_run_0"]
    made_from = json.loads((tmp_path / "subject" / "a_hop_0.json").read_text())
    assert [Path(x["path"]).name for x in made_from["references"]] == ["a.png", "b.png"]


def test_names_never_meet(tmp_path):
    references = [tmp_path / "one" / "face.png", tmp_path / "two" / "Face.png"]
    prompts = ["Run!", "run?", "word " * 100, "word " * 101, "奔跑" * 100, "..."]
    jobs = request.plan_jobs(references, prompts, [0], output=tmp_path)
    names = [job.path.name for job in jobs]
    assert len({name.casefold() for name in names}) == len(jobs) == 12
    assert max(len(name.encode()) for name in names) <= 200
    assert names == [job.path.name for job in request.plan_jobs(references, prompts, [0], output=tmp_path)]


def test_convert_reports_coverage(model, tmp_path):
    state = {f"module.unet.{name}": value for name, value in tiny_pipeline().unet.state_dict().items()}
    torch.save(state, tmp_path / "published.bin")
    output = tmp_path / "converted.safetensors"
    command = ["convert", str(tmp_path / "published.bin"), str(output)]
    refused(runner.invoke(app, command), "another shape")  # than those of Stable Diffusion 1.5
    result = runner.invoke(app, [*command, "--model", str(model)])
    assert result.exit_code == 0, result.output
    count = sum(is_spatial_self_attention(name) for name in tiny_pipeline().unet.state_dict())
    assert f"spatial attn1: {count} of {count} tensors" in result.stdout
    assert tiny_pipeline(seed=1).load_videomaker_weights(output).complete
    refused(runner.invoke(app, [*command, "--model", str(model)]), "exists")
    refused(runner.invoke(app, [*command[:2], str(tmp_path / "x.bin")]), "must end in .safetensors")


def test_info_names_the_attention_backend():
    result = runner.invoke(app, ["info", "--json"])
    told = json.loads(result.stdout)
    assert told["versions"]["torch"] == torch.__version__
    assert told["attention"]["chosen"] in ("sdpa", "triton") and told["attention"]["reason"]
    assert "attention" in runner.invoke(app, ["info"]).stdout
