"""A training step of the method: time, memory, share of the chip's limit; fused attention against the usual one.

    python bench/train.py                      on a GPU: SD 1.5 AnimateDiff at full size with random weights
    python bench/train.py --device cpu         on a CPU: the embedded model
    python bench/train.py --frames 16 --size 512 --batch 1 --json out.json

A step is forward, backward and AdamW through DeepSpeed, as in training, on ready latents and text embeddings. The usual
attention repeats the reference for every frame, concatenates, calls torch's attention once and averages. FLOPs are
counted on meta tensors while the same step runs there, recomputation included. Prints a table and one line of JSON.
"""

import argparse
import gc
import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import torch
from measure import Limits, environment, peak_memory
from rivals import usual
from sd15 import sd15_pipeline
from torch.utils.flop_counter import FlopCounterMode
from videomaker.train.config import ModelConfig, TrainConfig, ZeroConfig
from videomaker.train.engine import deepspeed_json, initialize, start_distributed
from videomaker.train.model import DTYPES, Denoiser, prepare_denoiser
from videomaker.train.recompute import MODES, Mode
from videomaker.train.step import Draws, draw

from videomaker import VideoMakerPipeline, default_model_path
from videomaker.files import atomic_path

GIB = 2**30
# The two paths add in another order; a loss is a mean over very many elements, so far less of it is rounding.
LOSS_TOLERANCE = {"bf16": 1e-2, "fp32": 1e-4}


@dataclass(frozen=True)
class Case:
    """One way to take the step."""

    attention: Literal["fused", "usual"]
    checkpointing: Mode

    def installed(self) -> AbstractContextManager:
        """While this lasts, the model's PISA layers compute as this case says."""
        return patch("videomaker.attention.pisa.pisa_attention", _usual) if self.attention == "usual" else nullcontext()


def _usual(q, k, v, *, num_frames: int, num_ref_tokens: int, scale: float, backend: str) -> torch.Tensor:
    return usual(q, k, v, num_frames=num_frames, num_ref_tokens=num_ref_tokens, scale=scale, kernel=None)


@dataclass(frozen=True)
class Shape:
    """One micro-batch in pixels."""

    batch: int
    frames: int
    size: int


def build(options: argparse.Namespace, case: Case, device: str) -> tuple[Denoiser, TrainConfig, int]:
    """The learner on `device` ("meta" for counting), its configuration, and the VAE's factor."""
    config = TrainConfig(
        batch_size=options.batch,
        micro_batch_size=options.batch,
        precision=options.precision,
        zero=ZeroConfig(stage=1 if options.precision == "bf16" else 0),
        model=ModelConfig(gradient_checkpointing=case.checkpointing, attention_backend=options.backend),
    )
    dtype = DTYPES[options.precision]
    if options.model == "sd15":
        pipeline = sd15_pipeline(device=device, dtype=dtype, attention_backend=options.backend)
    else:
        pipeline = VideoMakerPipeline.from_pretrained(options.model, dtype=dtype).to(device)
    return prepare_denoiser(pipeline, config), config, pipeline.vae_scale_factor


def inputs(learner: Denoiser, config: TrainConfig, shape: Shape, factor: int, device: str) -> tuple:
    """Latents, reference latents, text embeddings and draws, the same for every case."""
    unet = learner.unet.config
    channels, side = unet.in_channels, shape.size // factor
    source = torch.Generator(device="cpu").manual_seed(0)
    latents = torch.randn(shape.batch, channels, shape.frames, side, side, generator=source)
    reference = torch.randn(shape.batch, channels, 1, side, side, generator=source)
    text = torch.randn(shape.batch, 77, unet.cross_attention_dim, generator=source)
    draws = draw(
        config.method, latents.shape[1:], reference.shape[1:], keys=[(0, i) for i in range(shape.batch)],
        num_train_timesteps=len(learner.alphas_cumprod), device=torch.device("cpu"),
    )  # fmt: skip
    learner.alphas_cumprod = learner.alphas_cumprod.to(device)
    moved = Draws(**{name: value.to(device) for name, value in vars(draws).items()})
    return latents.to(device), reference.to(device), text.to(device), moved


def count_flops(options: argparse.Namespace, case: Case, shape: Shape) -> float:
    """Multiply-adds · 2 of forward and backward, as executed: attention by its formula, all else as torch counts it."""
    learner, config, factor = build(options, case, "meta")
    arguments = inputs(learner, config, shape, factor, "meta")
    attention = AttentionCount(case.attention)
    with (
        patch("videomaker.attention.pisa.pisa_attention", attention),
        FlopCounterMode(display=False) as counter,
    ):
        learner(*arguments)["loss"].backward()
    return counter.get_total_flops() + attention.flops


class AttentionCount:
    """Stands in for the attention on meta tensors and adds up what it would compute."""

    def __init__(self, attention: str):
        self.attention = attention
        self.flops = 0

    def __call__(self, q, k, v, *, num_frames: int, num_ref_tokens: int, **_) -> torch.Tensor:
        """As `pisa_attention`, without values."""
        batch, tokens, heads, head_dim = q.shape
        of_frame = (tokens - num_ref_tokens) // num_frames
        if self.attention == "usual":  # every frame with its copy of the reference, all with all
            scores = num_frames * (of_frame + num_ref_tokens) ** 2
        else:  # frame and reference with each other and themselves, the reference with itself only once
            scores = num_frames * (of_frame**2 + 2 * of_frame * num_ref_tokens) + num_ref_tokens**2
        return _Counted.apply(q, k, v, self, 4 * batch * heads * head_dim * scores)


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, count: AttentionCount, flops: int) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.count, ctx.flops = count, flops
        count.flops += flops
        return torch.empty_like(q)

    @staticmethod
    def backward(ctx, grad):
        ctx.count.flops += 2.5 * ctx.flops  # five products where the forward has two
        return *(torch.empty_like(x) for x in ctx.saved_tensors), None, None


def run_case(options: argparse.Namespace, case: Case, shape: Shape, device: torch.device) -> dict:
    """Times steps of one case; a record with "error" when it does not fit."""
    record = {**asdict(case), **asdict(shape)}
    try:
        with case.installed():
            return record | _timed_steps(options, case, shape, device)
    except torch.OutOfMemoryError:
        return record | {"error": "out of memory"}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _timed_steps(options: argparse.Namespace, case: Case, shape: Shape, device: torch.device) -> dict:
    learner, config, factor = build(options, case, str(device))
    arguments = inputs(learner, config, shape, factor, str(device))
    engine = initialize(learner, config, deepspeed_json(config, 1), device)

    def step() -> float:
        losses = engine(*arguments)
        engine.backward(losses["loss"])
        engine.step()
        return losses["loss"]

    first_loss = step().item()
    for _ in range(options.warmup):
        step()
    milliseconds = _step_times(step, options.steps, device)
    p20, median, p80 = np.percentile(milliseconds, (20, 50, 80))
    return {
        "loss": first_loss,
        "median_ms": median,
        "p20_ms": p20,
        "p80_ms": p80,
        "clips_per_second": 1000 * shape.batch / median,
        "peak_gib": _peak_gib(step, device),
    }


def _step_times(step, count: int, device: torch.device) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return times


def _peak_gib(step, device: torch.device) -> float:
    """Weights and optimizer state included on a GPU; what the step adds to them on a CPU."""
    if device.type == "cpu":
        return peak_memory(step, device) * 2**20 / GIB
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(device) / GIB


def run(options: argparse.Namespace) -> dict:
    """Measures every case; the correctness gate comes before the table."""
    device = start_distributed()
    shape = Shape(options.batch, options.frames, options.size or _native_size(options))
    limit = Limits.of(device, DTYPES[options.precision])
    header = environment(device) | {"model": str(options.model), "precision": options.precision}
    records = []
    for case in (Case(attention, mode) for mode in reversed(MODES) for attention in ("fused", "usual")):
        record = run_case(options, case, shape, device)
        if "error" not in record:
            record["tflop"] = count_flops(options, case, shape) / 1e12
            record["tflops"] = record["tflop"] / record["median_ms"] * 1000
            record["share_of_limit"] = record["tflops"] / limit.matrix_tflops
        records.append(record)
        print(_row(record), flush=True)
        _write({"environment": header, "cases": records}, options.json)  # an end before the last loses nothing
    check(records, options.precision)
    return {
        "environment": header,
        "limit_tflops": limit.matrix_tflops,
        "cases": records,
        "against_usual": ratios(records),
        "against_none": checkpointing_ratios(records),
    }


def _native_size(options: argparse.Namespace) -> int:
    if options.model == "sd15":
        return 512
    learner, _, factor = build(options, Case("fused", "none"), "meta")
    return learner.unet.config.sample_size * factor


def check(records: list[dict], precision: str) -> None:
    """Refuses the result when the first loss of two cases differs by more than rounding."""
    found = [record["loss"] for record in records if "loss" in record]
    if found and max(found) - min(found) > LOSS_TOLERANCE[precision] * abs(found[0]):
        raise SystemExit(f"the losses of the first step differ: {found}; these times mean nothing")


def ratios(records: list[dict]) -> list[dict]:
    """Speed and memory with the fused attention relative to the usual one, with and without checkpointing."""
    found = []
    for fused, rival in zip(records[::2], records[1::2], strict=True):
        if "error" not in fused and "error" not in rival:
            speedup, memory = rival["median_ms"] / fused["median_ms"], fused["peak_gib"] / rival["peak_gib"]
            found.append({"checkpointing": fused["checkpointing"], "speedup": speedup, "memory": memory})
    return found


def checkpointing_ratios(records: list[dict]) -> list[dict]:
    """Time, clips per second, memory and arithmetic of the fused step relative to the one that recomputes nothing."""
    fused = {record["checkpointing"]: record for record in records if record["attention"] == "fused"}
    none = fused["none"]
    if "error" in none:
        return []
    names = {"time": "median_ms", "clips_per_second": "clips_per_second", "memory": "peak_gib", "arithmetic": "tflop"}
    return [
        {"checkpointing": mode, **{name: record[key] / none[key] for name, key in names.items()}}
        for mode, record in fused.items()
        if "error" not in record
    ]


def _row(record: dict) -> str:
    name = f"{record['attention']}  checkpointing {record['checkpointing']:6}"
    if "error" in record:
        return f"{name}  {record['error']}"
    return (
        f"{name}  {record['median_ms']:9.1f} ms ({record['p20_ms']:.1f}-{record['p80_ms']:.1f})  "
        f"{record['clips_per_second']:7.3f} clips/s  {record['peak_gib']:7.2f} GiB  {record['tflop']:8.3f} TFLOP  "
        f"{record['tflops']:7.2f} TFLOP/s  {record['share_of_limit']:6.1%} of the limit"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; what depends on the device is filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--model", help="a pipeline folder, or sd15; default: sd15 on a GPU, the embedded model on a CPU"
    )
    parser.add_argument("--backend", default="auto", help="of the fused attention")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, help="16 on a GPU, 8 on a CPU")
    parser.add_argument("--size", type=int, help="pixels; as the model was made for")
    parser.add_argument("--steps", type=int, default=10, help="timed, per case")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report here")
    options = parser.parse_args(arguments)
    gpu = options.device == "cuda"
    options.model = options.model or ("sd15" if gpu else default_model_path())
    options.precision = options.precision or ("bf16" if gpu else "fp32")
    options.frames = options.frames or (16 if gpu else 8)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Prints the table and one line of JSON."""
    options = parse(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    report = run(options)
    for ratio in report["against_none"]:
        if ratio["checkpointing"] != "none":
            print(
                f"checkpointing {ratio['checkpointing']} against none: {ratio['time']:.2f}x the time, "
                f"{ratio['clips_per_second']:.2f}x the clips/s, {ratio['memory']:.2f}x the memory"
            )
    for ratio in report["against_usual"]:
        print(
            f"fused against usual attention, checkpointing {ratio['checkpointing']}: "
            f"{ratio['speedup']:.2f}x the speed, {ratio['memory']:.2f}x the memory"
        )
    _write(report, options.json)
    print(json.dumps(report))
    return 0


def _write(report: dict, path: Path | None) -> None:
    if path:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    sys.exit(main())
