"""PISA attention against every other way to compute it: times, memory, and how far from the chip's limit.

    python bench/attn.py                        everything this GPU can run, the correctness gate first
    python bench/attn.py --device cpu           the portable backend on a CPU
    python bench/attn.py --case 2,16,4096,4096,40 --json out.json --plot out.png
    python bench/attn.py --adopters             other models' layers, repeated form against ours; needs diffusers

Prints one table per case and, last, one line of JSON.
"""

import argparse
import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from measure import Limits, environment, gpu_state, kernel_names, measure, peak_memory
from rivals import Rival, compile_merge, layer, ours, rivals
from torch import Tensor
from videomaker.kernels.accuracy import (
    error_band,
    errors,
    evaluate,
    evaluate_naive,
    failures,
    largest_score,
    poisoned_memory,
)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SD15 = ((4096, 40), (1024, 80), (256, 160), (64, 160))  # tokens and head dim of SD 1.5's layers at 512 x 512
DIRECTIONS = ("forward", "backward", "both")
L2_BYTES = 128 * 2**20  # more than the cache of any GPU so far


@dataclass(frozen=True)
class Case:
    """One problem. `projections` puts the layer's QKV and output projections around the attention."""

    batch: int
    num_frames: int
    frame_tokens: int
    num_ref_tokens: int
    head_dim: int
    num_heads: int = 8
    projections: bool = False

    def __str__(self) -> str:
        return (
            f"batch {self.batch}, {self.num_frames} frames of {self.frame_tokens} tokens + {self.num_ref_tokens}, "
            f"{self.num_heads} heads of {self.head_dim}{', with projections' * self.projections}"
        )

    @property
    def options(self) -> dict[str, float]:
        """Keyword arguments of every path."""
        return {
            "num_frames": self.num_frames,
            "num_ref_tokens": self.num_ref_tokens,
            "scale": self.head_dim**-0.5,
        }

    @property
    def tokens(self) -> int:
        """T, all tokens of one video and its reference."""
        return self.num_frames * self.frame_tokens + self.num_ref_tokens

    def operations(self, direction: str, *, dense: bool) -> float:
        """Multiply-adds times two in the attention: what PISA needs, or what the usual path computes (dense)."""
        frames, n, m = self.num_frames, self.frame_tokens, self.num_ref_tokens
        scores = frames * (n + m) ** 2 if dense else frames * (n * n + 2 * n * m) + m * m
        per_score = {"forward": 4, "backward": 10, "both": 14}[direction]
        return per_score * scores * self.head_dim * self.num_heads * self.batch


def main_cases(device: torch.device) -> list[Case]:
    """The layers of SD 1.5, 16 frames; on a CPU one that it can do in a second."""
    if device.type == "cpu":
        return [Case(1, 16, 1024, 1024, 40)]
    return [Case(2, 16, tokens, tokens, head_dim) for tokens, head_dim in SD15]


def more_cases(device: torch.device) -> list[Case]:
    """Other frame counts, batches and references; sweeps over N, F and D; whole layers."""
    if device.type == "cpu":
        return [Case(1, 8, 256, 256, 80), Case(1, 16, 64, 256, 160), Case(1, 16, 1024, 1024, 40, projections=True)]
    cases = [Case(2, 16, tokens, tokens, head_dim, projections=True) for tokens, head_dim in SD15]
    for tokens, head_dim in SD15:
        cases += [Case(1, 16, tokens, tokens, head_dim), Case(2, 16, tokens, 4 * tokens, head_dim)]
        cases += [Case(2, num_frames, tokens, tokens, head_dim) for num_frames in (8, 32)]
    cases += [Case(1, 16, tokens, tokens, 40) for tokens in (64, 256, 1024, 2304, 9216)]
    cases += [Case(1, num_frames, 1024, 1024, 80) for num_frames in (1, 4, 24)]
    cases += [Case(1, 16, 1024, 1024, head_dim) for head_dim in (32, 64, 96, 128)]
    return list(dict.fromkeys(cases))


def draw(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """q, k, v as views of one fused projection, and a gradient for the output."""
    fused = torch.randn(case.batch, case.tokens, 3, case.num_heads, case.head_dim, device=device, dtype=dtype)
    return *fused.unbind(2), torch.randn_like(fused[:, :, 0])


class Gate:
    """Correctness before time: the last head of the last video against float64, by videomaker.kernels.accuracy."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        self.case, self.tensors = case, draw(case, dtype, device)
        tensors = [self._part(x) for x in self.tensors]
        self.exact = evaluate_naive(*tensors, **case.options)
        naive = evaluate_naive(*tensors, **case.options, dtype=dtype)
        self.naive = errors(naive, self.exact, case.num_ref_tokens)
        self.band = error_band(dtype, largest_score(*tensors[:2], case.options["scale"]))

    def wrong(self, rival: Rival) -> str | None:
        """Why the rival may not be timed, or None."""
        *qkv, grad_out = self.tensors
        # Dynamo guards on the switch that poisons: what is compiled here would be compiled again to be timed.
        poison = nullcontext() if rival.compiled else poisoned_memory()
        try:
            with poison, torch.set_grad_enabled(not rival.forward_only):
                if rival.forward_only:
                    results = [rival.attend(*qkv, **self.case.options)]
                else:
                    results = evaluate(rival.attend, *qkv, grad_out, **self.case.options)
        except (Exception, SystemExit) as error:
            return f"cannot run: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        if not all(torch.isfinite(x).all() for x in results):
            return "a NaN or an infinity in the output or a gradient"
        found = errors([self._part(x) for x in results], self.exact, self.case.num_ref_tokens)
        return "; ".join(failures(found, self.naive, self.band)) or None

    def _part(self, x: Tensor) -> Tensor:
        return x[-1:, :, -1:]


def calls(rival: Rival, case: Case, inputs: list[Tensor], grad_out: Tensor) -> dict[str, Callable[[], object]]:
    """What to time: the forward without autograd, the backward alone, and both."""
    attend = partial(layer, rival, num_heads=case.num_heads) if case.projections else rival.attend
    inputs = [x.detach().requires_grad_() for x in inputs]
    run = partial(attend, *inputs, **case.options)

    def forward() -> Tensor:
        with torch.no_grad():
            return run()

    if rival.forward_only:
        return {"forward": forward}
    out = run()
    return {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(out, inputs, grad_out, retain_graph=True),
        "both": lambda: torch.autograd.grad(run(), inputs, grad_out),
    }


def inputs_of(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Inputs of one call and the gradient of its output."""
    if not case.projections:
        *qkv, grad_out = draw(case, dtype, device)
        return qkv, grad_out
    channels = case.num_heads * case.head_dim
    x, grad_out = (torch.randn(case.batch, case.tokens, channels, device=device, dtype=dtype) for _ in range(2))
    qkv, to_out = (torch.randn(n * channels, channels, device=device, dtype=dtype) * channels**-0.5 for n in (3, 1))
    return [x, qkv, to_out], grad_out


def time_rival(rival: Rival, case: Case, dtype: torch.dtype, limits: Limits, options: argparse.Namespace) -> list[dict]:
    """One record per direction."""
    device = options.device
    set_bytes = 4 * case.batch * case.tokens * case.num_heads * case.head_dim * dtype.itemsize
    sets = 1 if device.type == "cpu" else min(16, 1 + L2_BYTES // set_bytes)
    turns = [calls(rival, case, *inputs_of(case, dtype, device)) for _ in range(sets)]
    records = []
    for direction in (name for name in options.directions if name in turns[0]):
        calls_of_turn = [turn[direction] for turn in turns]
        timing = measure(calls_of_turn, device=device, seconds=options.seconds)
        seconds = timing.median_ms / 1000
        actual = case.operations(direction, dense=rival.joined is not None) / seconds / 1e12
        limit = limits.tflops(case.head_dim, direction, padding=device.type == "cuda")
        useful = case.operations(direction, dense=False) / seconds / 1e12
        records.append(
            {"case": asdict(case), "dtype": str(dtype).removeprefix("torch."), "path": rival.name}
            | {"direction": direction, **asdict(timing), "peak_mib": peak_memory(calls_of_turn[0], device)}
            | {"tflops": actual, "dense_equivalent_tflops": case.operations(direction, dense=True) / seconds / 1e12}
            | {"limit_tflops": limit, "percent_of_limit": 100 * useful / limit["limit"]}
            | ({"gpu_right_after": gpu_state(device)} if device.type == "cuda" else {})
            | ({"kernels": kernel_names(calls_of_turn[0])} if device.type == "cuda" else {})
        )
    return records


def run_case(
    case: Case, dtype: torch.dtype, limits: Limits, options: argparse.Namespace, slow: bool
) -> Iterator[list[dict]]:
    """Gate, then time, every rival; those that start slowly only when there is time for them.

    Yields what is known of the case: before a rival that it is begun, and once it is done its records.
    """
    gate = Gate(case, dtype, options.device)
    records: list[dict] = []
    for rival in rivals(options.device, dtype):
        if rival.slow_start and not slow:
            continue
        label = {"case": asdict(case), "path": rival.name}
        yield [*records, label | {"not_timed": "begun, and ended the process or was stopped"}]
        found: list[dict] = []
        try:
            reason = gate.wrong(rival)
            found = time_rival(rival, case, dtype, limits, options) if reason is None else []
            if options.device.type == "cuda":
                torch.cuda.empty_cache()
        except (Exception, SystemExit) as error:  # out of memory, it runs only once, or the CUDA context is broken
            reason = f"not timed: {type(error).__name__}: {error}"
        records += found if reason is None or found else [label | {"not_timed": reason}]
        records = with_speedups(records, ours(options.device))
        yield records


def with_speedups(records: list[dict], path: str) -> list[dict]:
    """Add `our_speedup`: how many times as long as ours each path takes, in the same direction of the same case."""
    mine = {r["direction"]: r["median_ms"] for r in records if r["path"] == path and "median_ms" in r}
    return [
        r | {"our_speedup": r["median_ms"] / mine[r["direction"]]} if r.get("direction") in mine else r for r in records
    ]


def print_case(case: Case, dtype: torch.dtype, records: list[dict]) -> None:
    """A table for people."""
    print(f"\n{case}, {str(dtype).removeprefix('torch.')}")
    header = ("", "path", "median ms", "p20", "p80", "MiB", "TFLOP/s", "dense-eq.", "% of limit", "ours is")
    layout = "{:<9}{:<24}{:>10}{:>11}{:>11}{:>7}{:>9}{:>10}{:>11}{:>8}"
    print(layout.format(*header))
    for direction in DIRECTIONS:
        for r in (r for r in records if r.get("direction") == direction):
            speedup = f"{r['our_speedup']:.2f}x" if "our_speedup" in r else ""
            times = [f"{r[name]:.3f}" for name in ("median_ms", "p20_ms", "p80_ms")]
            rates = [f"{r[name]:.2f}" for name in ("tflops", "dense_equivalent_tflops")]
            percent = f"{r['percent_of_limit']:.0f}"
            print(layout.format(direction, r["path"], *times, f"{r['peak_mib']:.0f}", *rates, percent, speedup))
    for r in (r for r in records if r.get("kernels") and r["direction"] == "forward"):
        print(f"{'':<9}{r['path']:<24}ran {r['kernels'][0][:85]}")
    for r in (r for r in records if "not_timed" in r):
        print(f"{'':<9}{r['path']:<24}{r['not_timed'][:120]}")


def print_limits(limits: Limits, header: dict[str, object]) -> None:
    """What the numbers below are measured on and against."""
    print(f"{header['device']}, torch {header['torch']}, triton {header['triton']}, commit {header['commit'][:12]}")
    state = {name: header[name] for name in ("sm_clock_mhz", "max_sm_clock_mhz", "power_w", "nvml") if name in header}
    print(", ".join(f"{name} {value}" for name, value in state.items()))
    exps = "unknown" if limits.exp_gexps is None else f"{limits.exp_gexps:.2f}e9 exp/s"
    print(f"Limit: the lower of {limits.matrix_tflops:.2f} TFLOP/s in matrix products and {exps} ({limits.source}).")
    print("TFLOP/s: what the path computes. dense-eq.: what the usual path would compute in that time.")


def cases(options: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    """The main cases, with all rivals, and the others."""
    if options.case:
        return options.case, []
    return main_cases(options.device), [] if options.quick else more_cases(options.device)


def run(options: argparse.Namespace) -> dict[str, object]:
    """The whole report as a dictionary, printed as it goes."""
    start, dtype = time.monotonic(), DTYPES[options.dtype]
    header = environment(options.device)
    limits = Limits.of(options.device, dtype)
    print_limits(limits, header)
    main, more = cases(options)
    report = {"environment": header, "limits": asdict(limits), "results": [], "skipped": []}
    for case in main + more:
        elapsed = time.monotonic() - start
        if elapsed > options.budget:
            report["skipped"].append(str(case))
            continue
        before, records = report["results"], []
        try:
            for records in run_case(case, dtype, limits, options, case in main and elapsed < options.budget / 2):
                report["results"] = before + records
                save(report, options.json)
        except torch.OutOfMemoryError:  # float64 scores of one head, where the whole fits
            report["skipped"].append(f"{case}: no memory for the correctness gate")
            continue
        print_case(case, dtype, records)
    if report["skipped"]:
        print(f"\nSkipped {len(report['skipped'])} cases for time or memory.")
    print_headline(report, ours(options.device), main)
    return report


def print_headline(report: dict[str, object], path: str, cases: list[Case]) -> None:
    """Our speed-up over the best other path in each main case."""
    print()
    for direction, case in itertools.product(DIRECTIONS, cases):
        timed = [r for r in report["results"] if r.get("direction") == direction and Case(**r["case"]) == case]
        others = [r for r in timed if r["path"] != path and "our_speedup" in r]
        if others:
            best = min(others, key=lambda r: r["median_ms"])
            print(f"{path} {direction}: {best['our_speedup']:.2f}x the speed of {best['path']} at {case}")


def save(report: dict[str, object], file: Path | None) -> None:
    """Write what there is so far, complete or not at all."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(file)


def plot(report: dict[str, object], file: Path) -> None:
    """Bars of median times, one panel per case and direction."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = [r for r in report["results"] if "median_ms" in r and r["direction"] != "both"]
    panels = list(_grouped(timed))[:16]
    columns = min(4, len(panels)) or 1
    figure, axes = plt.subplots(-(-len(panels) // columns) or 1, columns, figsize=(4.5 * columns, 3.2), squeeze=False)
    figure.set_figheight(3.2 * len(axes))
    for axis, (title, records) in zip(axes.flat, panels, strict=False):
        mine = {"triton", "sdpa"}
        colors = ["tab:orange" if r["path"] in mine else "tab:gray" for r in records]
        axis.barh([r["path"] for r in records], [r["median_ms"] for r in records], color=colors)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("ms")
        axis.invert_yaxis()
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.suptitle(f"PISA attention on {report['environment']['device']}")
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _grouped(records: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    groups: dict[str, list[dict]] = {}
    for r in records:
        groups.setdefault(f"{r['direction']}, {Case(**r['case'])}", []).append(r)
    for title, group in groups.items():
        yield title.replace(", ", "\n", 1), group


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line; `--device` becomes a torch.device that exists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1 or cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    parser.add_argument("--quick", action="store_true", help="the main cases only")
    parser.add_argument("--case", action="append", type=_case, metavar="B,F,N,M,D", help="this case only; repeatable")
    parser.add_argument("--adopters", action="store_true", help="ReferenceNet, StyleAligned and plain layers instead")
    parser.add_argument("--seconds", type=float, default=0.5, help="of measuring per path, case and direction")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case is begun")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report here")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="bars of the times; needs matplotlib")
    options = parser.parse_args(arguments)
    try:
        options.device = torch.device(options.device)
    except RuntimeError:
        parser.error(f"--device {options.device}: not a device; cpu, cuda or cuda:1")
    if options.device.type not in ("cpu", "cuda"):
        parser.error(f"--device {options.device}: only cpu and cuda can be measured")
    if options.device.type == "cuda" and (options.device.index or 0) >= torch.cuda.device_count():
        parser.error(f"--device {options.device}: torch sees no such device here; try --device cpu")
    if options.plot and not importlib.util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib: pip install matplotlib")
    options.dtype = options.dtype or ("float32" if options.device.type == "cpu" else "bfloat16")
    return options


def _case(text: str) -> Case:
    try:
        case = Case(*(int(number) for number in text.split(",")))
        assert min(case.batch, case.num_frames, case.frame_tokens, case.head_dim, 1 + case.num_ref_tokens) > 0
    except (TypeError, ValueError, AssertionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not five positive numbers such as 2,16,4096,4096,40") from None
    return case


def run_adopters(options: argparse.Namespace) -> int:
    """The layers of other models, bench/adopters.py."""
    import adopters  # imports diffusers, which a machine with a GPU may lack

    header = environment(options.device)
    print(f"{header['device']}, torch {header['torch']}, triton {header['triton']}, commit {header['commit'][:12]}")
    report = {"environment": header, "results": adopters.run(options, DTYPES[options.dtype])}
    save(report, options.json)
    print(json.dumps(report))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python bench/attn.py`."""
    options = parse(arguments)
    torch.manual_seed(0)
    if options.adopters:
        return run_adopters(options)
    if options.device.type == "cuda":
        torch.cuda.set_device(options.device)
        compile_merge()
        with torch.cuda.stream(torch.cuda.Stream()):  # graphs are captured here, so backwards must be recorded here
            report = run(options)
    else:
        report = run(options)
    save(report, options.json)
    if options.plot:
        plot(report, options.plot)
    print(json.dumps(report))
    return 0 if any("median_ms" in r and r["path"] == ours(options.device) for r in report["results"]) else 1


if __name__ == "__main__":
    sys.exit(main())
