"""What `make gpu` runs: the cases of every stage, each a command with a time limit; nothing here needs torch."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).resolve().parent
# In the order of their worth, for lent time may end before they do; cases of a later turn follow all of an earlier one.
# How many of a stage's cases run side by side: one where time or memory is measured.
STAGES = {
    "parity": 4,
    "features": 4,
    "memcheck": 2,
    "attention": 1,
    "inference": 1,
    "train": 1,
    "tune": 1,
    "fuzz": 4,
    "compile": 1,  # its cases use all cores themselves, and no GPU
}
LAYERS = ((4096, 40), (1024, 80), (256, 160), (64, 160))  # tokens and head dim of SD 1.5 at 512 x 512
ODD = ((784, 80), (333, 40), (45, 160), (111, 64), (63, 128))  # partial tiles
FEATURES = (
    *("deterministic", "checkpointing", "reentrant", "reentrant, D = 160", "compiled", "tf32 switch", "other shapes"),
    *("CUDA graph", "other stream", "other device"),  # on a GPU only, from here on
)
KERNELS = ("forward", "forward_training", "backward_query", "backward_key")
# Batch, frames, tokens, reference tokens, head dim: one video, long references, other numbers of frames.
MORE_CASES = (
    *("1,16,4096,4096,40", "2,16,4096,16384,40", "2,32,1024,1024,80", "2,8,1024,1024,80", "1,24,1024,1024,80"),
    *("1,1,1024,1024,80", "1,16,2304,2304,40", "1,16,1024,1024,64", "1,16,1024,1024,128"),
)
SEEDS, HELD_SEEDS = 48, 12  # of a case of the fuzz; in a row that share their kernels, for compiling takes the time
TUNED = "tuned"  # folder of what the tuner found, in the run's
ANSWER = 120  # seconds until a GPU that says nothing is taken for none
LAST_STEP = 50  # seconds that importing torch and a step begun in time may take beside four others
DRY_RUN_LIMIT = 900  # the interpreter is slow, and so are the machines of a CI


@dataclass(frozen=True)
class Device:
    """A GPU, or the stand-in of a dry run."""

    name: str
    chip: str  # as bench/static.py calls it
    is_dry: bool = False
    count: int = 1

    @classmethod
    def find(cls, environment: dict[str, str], *, dry_run: bool) -> "Device | None":
        """The first GPU, asked for in a process of its own so that this one holds no CUDA context; None without one."""
        if dry_run:
            return cls("dry run", "sm_90", is_dry=True)
        code = (
            "import torch; c = torch.cuda\n"
            "if c.is_available() and torch.ones(1, device='cuda').item():\n"
            "    print(c.get_device_name(), *c.get_device_capability(), c.device_count(), sep='|')"
        )
        command = [sys.executable, "-c", code]
        try:
            found = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=False, env=environment, timeout=ANSWER
            )
        except subprocess.TimeoutExpired:
            return None
        name, *numbers = found.stdout.strip().rpartition("\n")[2].split("|")
        return cls(name, f"sm_{numbers[0]}{numbers[1]}", count=int(numbers[2])) if name else None


@dataclass(frozen=True)
class Case:
    """One process: `record` is what it writes as JSON, `missing` why it cannot run."""

    stage: str
    name: str
    command: list[str] = field(hash=False)
    record: Path
    limit: int
    missing: str | None = None
    turn: int = 0  # 0: what the README quotes and what it stands on, 1: other shapes, 2: more of the same
    goes_on: bool = False  # its record is also its state, whose "left" counts what the next command has to do
    after: tuple[str, ...] = ()  # cases of the same stage whose results it needs
    variables: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Maker:
    """Makes the cases of one stage on one device."""

    stage: str
    device: Device
    folder: Path

    def script(
        self, name: str, script: str, *arguments: str, limit: int, goes_on: bool = False, **fields: object
    ) -> Case:
        """A case that runs a script of this folder; one that goes on ends by itself in time to keep what it has."""
        limit = DRY_RUN_LIMIT if self.device.is_dry else limit
        seconds = ("--seconds", str(limit - LAST_STEP)) if goes_on else ()
        command = [sys.executable, str(BENCH / script), *arguments, *seconds]
        return self.case(name, command, limit, goes_on=goes_on, **fields)

    def check(self, name: str, check: str, *arguments: str, limit: int, **fields: object) -> Case:
        """A case that runs one of bench/gpu_checks.py."""
        return self.script(name, "gpu_checks.py", check, *arguments, *self.dry, limit=limit, **fields)

    def case(self, name: str, command: list[str], limit: int, **fields: object) -> Case:
        """Any command."""
        limit = DRY_RUN_LIMIT if self.device.is_dry else limit
        return Case(self.stage, name, command, self.record(name), limit, **fields)

    def record(self, name: str) -> Path:
        """The file for a case's own JSON; what goes on does so on the same GPU."""
        device, case = (re.sub("[^0-9A-Za-z]", "-", text) for text in (self.device.name, f"{self.stage}-{name}"))
        return self.folder / "cases" / device / f"{case}.json"

    @property
    def dry(self) -> list[str]:
        """The option of a dry run."""
        return ["--dry-run"] * self.device.is_dry

    def compile(self) -> Iterator[Case]:
        """Every variant of the kernels by this machine's own Triton and ptxas; registers, stack, inner loops."""
        if self.device.is_dry:
            front_end = ("--front-end", "--most", "8", "--arch", "sm_90")
            yield self.script("front end", "static.py", *front_end, limit=0, turn=2)
            return
        front_end = ("--front-end", "--arch", self.device.chip)
        yield self.script("front end", "static.py", *front_end, limit=120, turn=2)
        for head_dim in ("40", "80", "160", "64", "128"):
            name = f"machine code, D = {head_dim}"
            usual = ("--layout", "separate", "--mode", "pisa", "reference", "--output", str(self.record(name)))
            kernels = ("--arch", self.device.chip, "--head-dim", head_dim)
            yield self.script(name, "static.py", *kernels, *usual, limit=150, turn=2)

    def parity(self) -> Iterator[Case]:
        """Against float64: layers of SD 1.5 and odd sizes, every dtype, PISA and reference attention; the tests."""
        if self.device.is_dry:
            yield self.check("pisa 9x16", "pisa", "--case", "1,2,9,9,16", "--dtype", "float16", limit=0)
            yield self.check("reference 9x16", "reference", "--case", "1,2,9,9,16", "--dtype", "float16", limit=0)
            return
        for kind, (tokens, head_dim) in ((kind, x) for x in (*LAYERS, *ODD) for kind in ("pisa", "reference")):
            for dtype in ("bfloat16", "float16", "float32"):
                shape = f"2,16,{tokens},{tokens},{head_dim}"
                arguments, turn = ("--case", shape, "--dtype", dtype), int((tokens, head_dim) in ODD)
                yield self.check(f"{kind} {shape} {dtype}", kind, *arguments, limit=80, turn=turn)
        files = ("tests/test_op.py", "tests/test_launch.py", "tests/test_reference_attention.py")
        parts = {"test_parity, float32": ("tests/test_parity.py", "-k", "float32"),
                 "test_parity, half": ("tests/test_parity.py", "-k", "not float32"), "operators": files}  # fmt: skip
        for name, arguments in parts.items():
            pytest = [sys.executable, "-P", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments]
            yield self.case(name, pytest, 200, missing=_missing("pytest"), turn=1)

    def features(self) -> Iterator[Case]:
        """What PyTorch does around an operator must not change its bits."""
        for name in FEATURES[: -3 if self.device.is_dry else None]:
            alone = "there is one GPU" if name == "other device" and self.device.count == 1 else None
            yield self.check(name, "feature", "--case", name, limit=100, missing=alone)

    def attention(self) -> Iterator[Case]:
        """Times and memory against every rival."""
        if self.device.is_dry:
            yield self._attention("1,2,16,16,16", 0)
            return
        for tokens, head_dim in LAYERS:
            yield self._attention(f"2,16,{tokens},{tokens},{head_dim}", 180)
        for shape in MORE_CASES:
            yield self._attention(shape, 150, turn=2)

    def _attention(self, shape: str, limit: int, prefix: str = "", **fields: object) -> Case:
        name = prefix + shape
        quick = ["--device", "cpu", "--seconds", "0.01"] if self.device.is_dry else ["--seconds", "0.3"]
        arguments = ["--case", shape, "--json", str(self.record(name)), *quick]
        return self.script(name, "attn.py", *arguments, limit=limit, **fields)

    def fuzz(self) -> Iterator[Case]:
        """Random sizes, strides and magnitudes, a chunk of seeds a case."""
        size, chunks = (2, 1) if self.device.is_dry else (SEEDS, 4)
        for first in range(0, size * chunks, size):
            seeds = ("--first", str(first), "--count", str(size))
            yield self.check(f"pisa, {size} from {first}", "fuzz", *seeds, limit=150)
            name = f"reference, {size} from {first}"
            options = ("--hold", str(HELD_SEEDS), "--json", str(self.record(name)))
            yield self.script(name, "fuzz.py", *seeds, *options, limit=150, goes_on=True)

    def memcheck(self) -> Iterator[Case]:
        """A forward and a backward with partial tiles under compute-sanitizer."""
        program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        missing = None if program or self.device.is_dry else "compute-sanitizer is not installed"
        for tool in ("memcheck", "racecheck"):
            check = [sys.executable, str(BENCH / "gpu_checks.py"), "small", *self.dry]
            # Not calls of the driver that torch or Triton try and whose refusal they expect.
            usual = ("--error-exitcode", "9", "--report-api-errors", "no")
            sanitizer = [] if self.device.is_dry else [program or "", "--tool", tool, *usual]
            # torch's pool would hide accesses beyond a tensor.
            variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
            yield self.case(tool, [*sanitizer, *check], 150, missing=missing, variables=variables)

    def tune(self) -> Iterator[Case]:
        """The fastest exact configuration of each kernel, then the times with it; kept in the run's folder."""
        variables = {"XDG_CACHE_HOME": str(self.folder / TUNED)}
        shapes = ["1,2,9,9,16"] if self.device.is_dry else [f"2,16,{n},{n},{d}" for n, d in LAYERS[:3]]
        for turn, shape in enumerate(shapes):
            usual = {"turn": min(turn, 1), "variables": variables}
            names = {kernel: f"{kernel}, {shape}" for kernel in KERNELS[: 1 if self.device.is_dry else None]}
            for kernel, name in names.items():
                arguments = ("--case", shape, "--kernel", kernel, "--json", str(self.record(name)))
                # The forward of training has the tiles of the forward.
                after = (names["forward"],) if kernel == "forward_training" else ()
                yield self.check(name, "tune", *arguments, limit=240, goes_on=True, after=after, **usual)
            if not self.device.is_dry:
                yield self._attention(shape, 180, "tuned ", after=tuple(names.values()), **usual)

    def inference(self) -> Iterator[Case]:
        """A video of Stable Diffusion 1.5 at full size with random weights: ours, the usual attention, plain."""
        tiny = ["--device", "cpu", "--frames", "2", "--steps", "1", "--seconds", "0"]
        full = ["--seconds", "1", "--profile", "--budget", "150"]
        for path in ("ours",) if self.device.is_dry else ("ours", "usual", "plain"):
            arguments = ["--paths", path, "--json", str(self.record(path)), *(tiny if self.device.is_dry else full)]
            missing = _missing("diffusers", "transformers")
            yield self.script(path, "inference.py", *arguments, limit=240, missing=missing)

    def train(self) -> Iterator[Case]:
        """A step of training with every kind of checkpointing, fused attention and the usual one."""
        tiny = ["--device", "cpu", "--frames", "2", "--steps", "1", "--warmup", "0"] if self.device.is_dry else []
        missing = _missing("diffusers", "transformers", "deepspeed")
        arguments = ["--json", str(self.record("step")), *tiny]
        yield self.script("step", "train.py", *arguments, limit=300, missing=missing)


def cases_of(stage: str, device: Device, folder: Path) -> list[Case]:
    """The cases of a stage, in order."""
    return list(getattr(Maker(stage, device, folder), stage)())


def _missing(*packages: str) -> str | None:
    absent = [name for name in packages if not importlib.util.find_spec(name)]
    return f"not installed: {', '.join(absent)}" if absent else None
