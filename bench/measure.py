"""Measuring: times, memory, what the machine is and what it could do at best."""

import itertools
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

EXPS_PER_CLOCK = 16  # per SM: the special function units of sm_80 to sm_120
MIB = 2**20


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, 20th and 80th percentile."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    samples: int
    timer: str


def measure(calls: Sequence[Callable[[], object]], *, device: torch.device, seconds: float) -> Timing:
    """Time one call, taking turns over `calls`, which do the same on different memory so that no cache serves them.

    On a GPU the turns are captured in a CUDA graph, so that the launches cost nothing; where that fails, with events.
    """
    turn = lambda: [call() for call in calls]
    turn()
    if device.type == "cpu":
        samples, timer = _times(turn, _cpu_time, seconds), "clock"
    else:
        turn()
        replay, timer = _capture(turn)
        samples = _times(replay, _cuda_times, seconds)
    p20, median, p80 = (float(value) / len(calls) for value in np.percentile(samples, (20, 50, 80)))
    return Timing(median, p20, p80, len(samples), timer)


def _times(run: Callable[[], object], timer: Callable[..., list[float]], seconds: float) -> list[float]:
    once = timer(run, 1)[0] / 1000
    return timer(run, int(min(max(seconds / max(once, 1e-6), 3), 200)))


def _cpu_time(run: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return times


def _cuda_times(run: Callable[[], object], repeats: int) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in itertools.pairwise(events)]


def _capture(turn: Callable[[], object]) -> tuple[Callable[[], object], str]:
    """The turn as a CUDA graph on the current stream, where the forward of a backward must have run too."""
    graph = torch.cuda.CUDAGraph()
    try:
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            turn()
        graph.replay()
        torch.cuda.synchronize()
    except Exception:
        torch.cuda.synchronize()
        return turn, "events"
    return graph.replay, "graph"


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """MiB that `call` allocates at most beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    sizes = (event.nbytes() for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(sizes), default=0) / MIB


def kernel_names(call: Callable[[], object]) -> list[str]:
    """The CUDA kernels that `call` ran, those that took the most time first; empty where they cannot be traced."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        rows = sorted(profile.key_averages(), key=lambda row: -row.self_device_time_total)
    except Exception:
        return []
    return [row.key for row in rows if row.self_device_time_total > 0][:5]


def gpu_state(device: torch.device) -> dict[str, float | str]:
    """Clocks, power and temperature now, from nvidia-ml-py; empty without it."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except Exception as error:
        return {"nvml": f"unavailable: {error}"}
    state: dict[str, float | str] = {}
    readings = {
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
    }
    for name, read in readings.items():
        with suppress(nvml.NVMLError):  # some are not readable in a container or on a slice of a GPU
            state[name] = read()
    return state


def environment(device: torch.device) -> dict[str, object]:
    """The header of every result: machine, versions, commit, time."""
    header = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _cpu_name(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        header |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            **gpu_state(device),
        }
    return header


@dataclass(frozen=True)
class Limits:
    """The two units that bound attention: 1e12 multiply-adds · 2 per second, and 1e9 exponentials per second."""

    matrix_tflops: float
    exp_gexps: float | None
    source: str

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> "Limits":
        """Matrix rate measured by a large product; exponentials from the clock on a GPU, measured on a CPU."""
        matrix = _matmul_tflops(device, dtype)
        if device.type == "cpu":
            return cls(matrix, _cpu_gexps(dtype), "both measured: matmul, and exp in cache")
        clock = gpu_state(device).get("max_sm_clock_mhz") or _smi_max_clock(device)
        sms = torch.cuda.get_device_properties(device).multi_processor_count
        exps = EXPS_PER_CLOCK * sms * clock / 1000 if clock else None
        return cls(matrix, exps, f"matmul measured; {EXPS_PER_CLOCK} exp per clock on {sms} SMs at {clock or '?'} MHz")

    def tflops(self, head_dim: int, direction: str, *, padding: bool) -> dict[str, float | None]:
        """What each unit allows and the lower of the two, in useful TFLOP/s, counting D as it is.

        Products that contract over D pad it to a multiple of 16, those whose result is D wide to 8 (on a GPU).
        """
        over_d, d_wide, exps = {"forward": (1, 1, 1), "backward": (2, 3, 1), "both": (3, 4, 2)}[direction]
        padded = over_d * _round_up(head_dim, 16) + d_wide * _round_up(head_dim, 8)
        useful = (over_d + d_wide) * head_dim
        matrix = self.matrix_tflops * (useful / padded if padding else 1)
        exp = self.exp_gexps and self.exp_gexps * 2 * useful / exps / 1000
        return {"matrix": matrix, "exp": exp, "limit": min(matrix, exp or matrix)}


def _matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    timing = measure([lambda: a @ b], device=device, seconds=0.5)
    return 2 * size**3 / timing.p20_ms / 1e9


def _cpu_gexps(dtype: torch.dtype) -> float:
    x = torch.randn(2**17 * torch.get_num_threads()).to(dtype)
    out = torch.empty_like(x)
    timing = measure([lambda: torch.exp(x, out=out)] * 50, device=x.device, seconds=0.5)
    return x.numel() / timing.p20_ms / 1e6


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _smi_max_clock(device: torch.device) -> float | None:
    index = device.index if device.index is not None else torch.cuda.current_device()
    command = ["nvidia-smi", f"--id={index}", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout)
    return None


def _commit() -> str:
    """HEAD, marked where what is measured or the benchmark differs from it."""
    root = Path(__file__).resolve().parents[1]
    with suppress(OSError, subprocess.SubprocessError):
        changes = _git(root, "status", "--porcelain", "-uno", "--", "kernels", "videomaker", "train", "bench")
        return _git(root, "rev-parse", "HEAD") + ("+changes" if changes else "")
    return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def _cpu_name() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
