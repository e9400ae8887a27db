"""Inference: time per step and per video, memory, and where the time goes.

    python bench/inference.py                       SD 1.5 at full size with random weights on a GPU,
                                                    the embedded model on a CPU
    python bench/inference.py --cold-start          also the time from process start to the first video,
                                                    with and without saved artifacts
    python bench/inference.py --approximations      also what each opt-in approximation saves and changes

Paths: `ours`; `usual` is the same pipeline with the reference repeated, concatenated, attended, split and averaged;
`plain` is AnimateDiff without a reference, in the same graph. Each runs eagerly, compiled, and on a GPU captured.
Numbers are checked before anything is timed. Prints tables and, last, one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from measure import Limits, environment, peak_memory
from rivals import usual
from sd15 import sd15_pipeline
from torch.utils.flop_counter import FlopCounterMode

from videomaker import VideoMakerPipeline, default_model_path
from videomaker.attention import EACH_ROW_ALONE, PisaAttnProcessor, install_pisa
from videomaker.compiled import artifacts
from videomaker.compiled.graphs import Bucket, CapturedGraph
from videomaker.compiled.processors import prepare_unet, project_text
from videomaker.compiled.sampler import Approximations, ddim_weights
from videomaker.compiled.step import denoising_step
from videomaker.denoising import guided_noise
from videomaker.files import atomic_path
from videomaker.pipeline.memory import module_bytes

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PATHS = ("ours", "usual", "plain")
# Largest relative error of one step against eager: fusing and reordering sums, in half precision over ~200 layers.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
KINDS = {  # by words in the names of operators and kernels, the first match counts
    "attention": ("pisa", "flash", "fmha", "attention", "sdpa", "bmm"),
    "convolution": ("conv", "fprop", "implicit"),
    "linear": ("gemm", "nvjet", "cutlass", "addmm", "mm", "linear", "matmul"),
    "norm": ("norm",),
}


class UsualPisaProcessor(PisaAttnProcessor):
    """The usual path: attention over `[frame ‖ a copy of the reference]`, split and averaged."""

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        temb=None,
        reference_layout=EACH_ROW_ALONE,
    ):
        """Maps hidden states `[B·(F+R), N, C]` to the same shape."""
        rows, tokens, _ = hidden_states.shape
        frames, references = reference_layout
        q, k, v = self.project(attn, hidden_states, rows // reference_layout.rows_per_video)
        attended = usual(q, k, v, num_frames=frames, num_ref_tokens=references * tokens, scale=attn.scale, kernel=None)
        return attn.to_out[1](attn.to_out[0](attended.reshape(rows, tokens, -1)))


@dataclass(frozen=True)
class Shape:
    """What is made: B videos of F frames."""

    batch: int
    num_frames: int
    height: int
    width: int

    def bucket(self) -> Bucket:
        """As `compile` takes it."""
        return Bucket(self.num_frames, self.height, self.width, self.batch)


def make_pipeline(options: argparse.Namespace, path: str = "ours") -> VideoMakerPipeline:
    """The model on its device, with the attention of `path`."""
    if options.model == "sd15":
        pipe = sd15_pipeline(device=str(options.device), dtype=options.dtype, attention_backend=options.backend)
    else:
        pipe = VideoMakerPipeline.from_pretrained(default_model_path(), attention_backend=options.backend)
        pipe.to(options.device, options.dtype)
        pipe.set_progress_bar_config(disable=True)
    for module in pisa_layers(pipe.unet) if path != "ours" else ():
        module.set_processor(UsualPisaProcessor() if path == "usual" else AttnProcessor2_0())
    return pipe


def pisa_layers(unet: torch.nn.Module) -> list[torch.nn.Module]:
    """The spatial self-attentions."""
    return [module for module in unet.modules() if isinstance(getattr(module, "processor", None), PisaAttnProcessor)]


def step_inputs(pipe: VideoMakerPipeline, shape: Shape, *, references: int) -> dict[str, torch.Tensor]:
    """Random inputs of one guided step."""
    factor, channels = pipe.vae_scale_factor, pipe.unet.config.in_channels
    size = (shape.height // factor, shape.width // factor)
    draw = partial(torch.randn, device=pipe.device, dtype=pipe.unet.dtype)
    length, width = pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim
    return {
        "latents": draw(shape.batch, channels, shape.num_frames, *size),
        "reference": draw(shape.batch, channels, references, *size),
        "text": draw(2 * shape.batch, length, width),
        "guidance": torch.full((shape.batch, 1, 1, 1, 1), 8.0, device=pipe.device, dtype=pipe.unet.dtype),
    }


def eager_step(pipe: VideoMakerPipeline, inputs: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """One guided step as diffusers' modules run it, and the scheduler's update."""
    t = pipe.scheduler.timesteps[0]

    def step() -> torch.Tensor:
        latents = inputs["latents"]
        noise = guided_noise(pipe.unet, latents, inputs["reference"], t, inputs["text"], inputs["guidance"])
        return pipe.scheduler.step(noise, t, latents).prev_sample

    return step


def step_arguments(pipe: VideoMakerPipeline, inputs: dict[str, torch.Tensor]) -> tuple:
    """The same step's arguments for `denoising_step` with the UNet bound."""
    return (
        inputs["latents"],
        inputs["reference"],
        pipe.scheduler.timesteps[:1].to(pipe.device, torch.float32),
        ddim_weights(pipe.scheduler, pipe.scheduler.timesteps)[0].to(pipe.device),
        inputs["guidance"],
        project_text(pipe.unet, inputs["text"]),
    )


def clock(call: Callable[[], object], device: torch.device, seconds: float, least: int = 3) -> dict[str, float]:
    """Milliseconds of one call: median, 20th and 80th percentile, with the device idle before and after."""
    times: list[float] = []
    while len(times) < least or (sum(times) < 1000 * seconds and len(times) < 100):
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    p20, median, p80 = np.percentile(times, (20, 50, 80))
    return {"median_ms": median, "p20_ms": p20, "p80_ms": p80, "samples": len(times)}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """`‖ours - exact‖ / ‖exact‖`."""
    return ((ours.float() - exact.float()).norm() / exact.float().norm()).item()


def bench_path(path: str, shape: Shape, limits: Limits, flops: dict[str, float], options) -> list[dict]:
    """Steps of one path: eager, compiled, and on a GPU captured."""
    pipe = make_pipeline(options, path)
    pipe.scheduler.set_timesteps(options.steps, device=pipe.device)
    inputs = step_inputs(pipe, shape, references=0 if path == "plain" else 1)
    eager = eager_step(pipe, inputs)
    exact = eager()
    bench = partial(timed_step, path, exact=exact, limits=limits, flops=flops, options=options)
    records = [bench("eager", eager)]
    pipe.unet.to(memory_format=torch.channels_last)
    prepare_unet(pipe.unet)
    arguments = step_arguments(pipe, inputs)
    compiled = torch.compile(partial(denoising_step, pipe.unet), fullgraph=True, dynamic=False, mode=options.mode)
    start = time.perf_counter()
    compiled(*arguments)
    seconds = {"compile_seconds": time.perf_counter() - start}
    records.append(bench("compiled", lambda: compiled(*arguments)[0]) | seconds)
    if options.device.type == "cuda":
        graphs: list[CapturedGraph] = []
        capture = lambda: graphs.append(CapturedGraph(compiled, arguments, torch.cuda.graph_pool_handle()))
        peak = {"peak_mib": peak_memory(capture, options.device)}  # a replay allocates nothing
        records.append(bench("compiled + CUDA graph", lambda: graphs[0](*arguments)[0]) | peak)
    return records


def timed_step(
    path: str, mode: str, step: Callable, *, exact: torch.Tensor, limits: Limits, flops: dict[str, float], options
) -> dict:
    """One record; a step that is off is not timed."""
    record = {"what": "step", "path": path, "mode": mode, "error": relative_error(step(), exact)}
    if not record["error"] <= TOLERANCE[options.dtype]:
        return record | {"not_timed": f"error {record['error']:.2g} is over {TOLERANCE[options.dtype]:g}"}
    record |= clock(step, options.device, options.seconds)
    limit_ms = {kind: count / limits.matrix_tflops / 1e9 for kind, count in flops.items()}
    record["peak_mib"] = peak_memory(step, options.device)
    record["percent_of_limit"] = 100 * sum(limit_ms.values()) / record["median_ms"]
    if options.profile:
        record["ms_by_kind"] = profile(step, options.device)
        record["percent_of_limit_by_kind"] = {
            kind: 100 * limit / record["ms_by_kind"][kind]
            for kind, limit in limit_ms.items()
            if record["ms_by_kind"].get(kind)
        }
    return record


def operations(pipe: VideoMakerPipeline, shape: Shape, references: int) -> dict[str, float]:
    """FLOPs of one guided step by kind, counted on "meta"; PISA attention as the `3F + 1` blocks that it needs."""
    unet = pipe.unet
    counted = meta_unet(unet)
    layers: list[tuple[int, int]] = []  # tokens, channels
    see = lambda module, arguments: layers.append(tuple(arguments[0].shape[1:]))
    for module in pisa_layers(counted):
        module.register_forward_pre_hook(see)
    inputs = {
        name: torch.empty_like(value, device="meta")
        for name, value in step_inputs(pipe, shape, references=references).items()
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        guided_noise(counted, inputs["latents"], inputs["reference"], 500, inputs["text"], inputs["guidance"])
    by_kind = defaultdict(float)
    for operator, flops in counter.get_flop_counts()["Global"].items():
        by_kind[kind_of(str(operator))] += flops
    frames = shape.num_frames
    for tokens, channels in layers:  # frame on frame, frame on reference, reference on frame, reference on itself
        scores = frames * tokens**2 + (2 * frames * references + references**2) * tokens**2
        by_kind["attention"] += 2 * shape.batch * 4 * scores * channels
    return dict(by_kind)


def meta_unet(unet: torch.nn.Module) -> torch.nn.Module:
    """A UNet of the same configuration without memory."""
    with torch.device("meta"):
        counted = type(unet).from_config(unet.config)
    install_pisa(counted, backend="sdpa")
    return counted.to(unet.dtype)


def kind_of(name: str) -> str:
    """Attention, convolution, linear, norm or other, from the name of an operator or kernel."""
    name = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def profile(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Milliseconds of one step by kind of operation. A fused kernel counts for the first kind in its name."""
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CUDA] if device.type == "cuda" else [activity.CPU]
    step()
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        _synchronize(device)
    by_kind: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        by_kind[kind_of(event.key)] += microseconds / 1000
    return dict(by_kind)


def generate(pipe: VideoMakerPipeline, shape: Shape, steps: int, **changes) -> torch.Tensor:
    """Videos of random references."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (1, shape.height, shape.width, 3), dtype=np.uint8) for _ in range(shape.batch)]
    settings = {
        "prompt": [f"a video, number {i}" for i in range(shape.batch)],
        "reference_image": [torch.from_numpy(p).permute(0, 3, 1, 2) / 255 for p in pictures],
        "num_frames": shape.num_frames,
        "height": shape.height,
        "width": shape.width,
        "num_inference_steps": steps,
        "generator": [torch.Generator().manual_seed(i) for i in range(shape.batch)],
        "output_type": "pt",
    }
    return pipe(**{**settings, **changes}).frames


def bench_videos(shape: Shape, options: argparse.Namespace) -> list[dict]:
    """From prompt and picture to pixels: the usual path eagerly, ours eagerly and as `pipe.compile` makes it."""
    records = []
    for path, is_compiled in (("usual", False), ("ours", False), ("ours", True)):
        pipe = make_pipeline(options, path)
        record = {"what": "video", "path": path, "mode": "compiled" if is_compiled else "eager", "batch": shape.batch}
        if is_compiled:
            record["compile_seconds"] = pipe.compile([shape.bucket()], mode=options.mode).seconds
        generate(pipe, shape, 1)
        call = partial(generate, pipe, shape, options.steps)
        record |= clock(call, options.device, options.seconds, least=1)
        if options.device.type == "cuda":  # of the process: weights, activations, pools of CUDA graphs
            record["peak_mib"] = torch.cuda.max_memory_reserved(options.device) / 2**20
            torch.cuda.reset_peak_memory_stats(options.device)
        records.append(record)
    return records


def bench_approximations(shape: Shape, options: argparse.Namespace) -> list[dict]:
    """What each opt-in saves, eagerly, and how far its pixels are from those of the exact 30 steps."""
    pipe = make_pipeline(options)
    exact = generate(pipe, shape, options.steps)
    ddim, vae_dtype = pipe.scheduler, pipe.vae.dtype
    few = max(1, options.steps // 2)
    trials = {
        "exact": {},
        "guidance for 80 % of the steps": {"approximations": Approximations(guidance_until=0.8)},
        "guidance for 60 % of the steps": {"approximations": Approximations(guidance_until=0.6)},
        "inner blocks every 2nd step": {"approximations": Approximations(reuse_every=2)},
        "inner blocks every 3rd step": {"approximations": Approximations(reuse_every=3)},
        f"DDIM, {few} steps": {"steps": few},
        f"DPM-Solver++, {few} steps": {
            "steps": few,
            "scheduler": DPMSolverMultistepScheduler.from_config(ddim.config),
        },
        f"UniPC, {few} steps": {"steps": few, "scheduler": UniPCMultistepScheduler.from_config(ddim.config)},
        "VAE in bfloat16": {"vae_dtype": torch.bfloat16},
    }
    records = []
    for name, trial in trials.items():
        pipe.approximations = trial.get("approximations", Approximations())
        pipe.scheduler = trial.get("scheduler", ddim)
        pipe.vae.to(trial.get("vae_dtype", vae_dtype))
        _synchronize(options.device)
        start = time.perf_counter()
        error = relative_error(generate(pipe, shape, trial.get("steps", options.steps)), exact)
        seconds = time.perf_counter() - start
        records.append({"what": "approximation", "name": name, "error": error, "seconds": seconds})
    return records


def bench_cold_start(options: argparse.Namespace) -> list[dict]:
    """Seconds from the start of a process to its first compiled video, with and without artifacts."""
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("without artifacts", "with artifacts"):
            start = time.perf_counter()
            command = [sys.executable, __file__, *options.arguments, "--first-video", f"{folder}/saved"]
            with tempfile.TemporaryDirectory() as cache:
                env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
                answer = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
            found = json.loads(answer.splitlines()[-1])
            records.append({"what": "cold start", "name": name, "seconds": time.perf_counter() - start, **found})
    return records


def first_video(shape: Shape, options: argparse.Namespace) -> None:
    """One compiled video in this process; saves the artifacts if they are not there yet."""
    folder = options.first_video
    there = folder.exists()
    pipe = make_pipeline(options)
    report = pipe.compile([shape.bucket()], mode=options.mode, saved=folder if there else None)
    generate(pipe, shape, options.steps)
    if not there:
        artifacts.save(folder, pipe, options.mode)
    print(json.dumps({"compile_seconds": report.seconds, "artifacts": report.artifacts}))


def run(options: argparse.Namespace) -> dict[str, object]:
    """The whole report, printed as it goes."""
    shape = Shape(options.batch, options.frames, options.height, options.width)
    pipe = make_pipeline(options)
    limits = Limits.of(options.device, options.dtype)
    flops = {path: operations(pipe, shape, references=0 if path == "plain" else 1) for path in PATHS}
    report = {
        "environment": environment(options.device),
        "model": options.model,
        "dtype": str(options.dtype).removeprefix("torch."),
        "shape": asdict(shape),
        "steps": options.steps,
        "compile_mode": options.mode,
        "weights_mib": {name: module_bytes(getattr(pipe, name)) / 2**20 for name in ("unet", "vae", "text_encoder")},
        "matrix_tflops": limits.matrix_tflops,
        "step_flop": flops,
    }
    del pipe
    print_header(report)
    parts = [partial(bench_path, path, shape, limits, flops[path], options) for path in options.paths]
    parts.append(partial(bench_videos, shape, options))
    parts += [partial(bench_videos, replace(shape, batch=n), options) for n in options.more_batches]
    if options.approximations:
        parts.append(partial(bench_approximations, shape, options))
    if options.cold_start:
        parts.append(partial(bench_cold_start, options))
    report["results"] = []
    start = time.monotonic()
    for part in parts:
        if time.monotonic() - start > options.budget:
            print("the rest is skipped: the budget is spent")
            break
        records = part()
        for record in records:
            print_record(record)
        report["results"] += records
        if options.json:
            write(report, options.json)
        if options.device.type == "cuda":
            torch.cuda.empty_cache()
    return report


def write(report: dict, path: Path) -> None:
    """After every part, so that an end before the last one loses nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")


def print_header(report: dict) -> None:
    """The machine, the work, the limit."""
    env, shape, rate = report["environment"], Shape(**report["shape"]), report["matrix_tflops"]
    print(f"{env['device']}, torch {env['torch']}, {env['threads']} threads, commit {env['commit'][:12]}")
    print(f"{report['model']}, {report['dtype']}, {shape.bucket()}, {report['steps']} steps")
    for path in ("ours", "plain"):
        flops = report["step_flop"][path]
        counted = ", ".join(f"{kind} {count / 1e9:,.1f}" for kind, count in flops.items())
        limit_ms = sum(flops.values()) / rate / 1e9
        print(f"GFLOP of a step, {path}: {counted}; at the {rate:.2f} TFLOP/s of matrix products {limit_ms:.1f} ms")


def print_record(record: dict) -> None:
    """One line of the table, and one for the profile."""
    name = " ".join(str(record[key]) for key in ("what", "path", "mode", "name") if key in record)
    if "not_timed" in record:
        print(f"{name:<40} not timed: {record['not_timed']}")
        return
    if record["what"] == "cold start":
        print(f"{name:<40} {record['seconds']:10.1f} s, of it compile() {record['compile_seconds']:.1f} s")
        return
    if record["what"] == "approximation":
        print(f"{name:<48} {record['seconds']:10.1f} s  error {record['error']:.1e}")
        return
    extras = {
        "error": "error {:.1e}",
        "peak_mib": "peak {:.0f} MiB",
        "percent_of_limit": "{:.1f} % of limit",
        "compile_seconds": "compiled in {:.0f} s",
    }
    texts = [text.format(record[key]) for key, text in extras.items() if key in record]
    times = f"{record['median_ms']:10.1f} ms ({record['p20_ms']:.1f} - {record['p80_ms']:.1f})"
    print(f"{name:<40} {times}  {', '.join(texts)}")
    kinds = sorted(record.get("ms_by_kind", {}).items(), key=lambda item: -item[1])
    shares = record.get("percent_of_limit_by_kind", {})
    for kind, ms in kinds:
        print(f"    {kind:<36} {ms:10.1f} ms  {f'{shares[kind]:.1f} % of limit' if kind in shares else ''}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line; defaults by device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1 or cpu")
    parser.add_argument("--model", choices=("sd15", "default"), help="sd15 on a GPU, the embedded default on a CPU")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--backend", default="auto", help="attention backend of ours")
    parser.add_argument("--mode", default="default", help="of torch.compile: default, max-autotune-no-cudagraphs")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--frames", type=int, help="16 for sd15; as trained for the embedded model")
    parser.add_argument("--size", help="WIDTHxHEIGHT; as trained by default")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--more-batches", type=int, nargs="*", default=[], help="further batches to make videos in")
    parser.add_argument("--profile", action="store_true", help="time by kind of operation")
    parser.add_argument("--approximations", action="store_true", help="effect of each opt-in approximation")
    parser.add_argument("--cold-start", action="store_true", help="first video of a new process")
    parser.add_argument("--seconds", type=float, default=3, help="of measuring per number, at least three calls")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no part is begun")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report here")
    parser.add_argument("--first-video", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.arguments = arguments
    options.device = torch.device(options.device)
    on_gpu = options.device.type == "cuda"
    options.model = options.model or ("sd15" if on_gpu else "default")
    options.dtype = DTYPES[options.dtype or ("bfloat16" if on_gpu else "float32")]
    trained = {"num_frames": 16, "width": 512, "height": 512}
    if options.model == "default":
        trained = json.loads((default_model_path() / "generation.json").read_text())
    options.frames = options.frames or trained["num_frames"]
    size = map(int, options.size.split("x")) if options.size else (trained["width"], trained["height"])
    options.width, options.height = size
    return options


@torch.no_grad()
def main(arguments: list[str]) -> None:
    """Entry of `python bench/inference.py`."""
    options = parse(arguments)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    if options.first_video is not None:
        first_video(Shape(options.batch, options.frames, options.height, options.width), options)
        return
    report = run(options)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
