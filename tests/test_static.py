"""Every variant of the kernels compiles: all through Triton's front end, some to machine code. No GPU needed.

`python bench/static.py` compiles all of them to machine code, which takes hours of a core.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def static(*arguments: str) -> subprocess.CompletedProcess:
    """bench/static.py in a process of its own: the tests' own Triton interprets the kernels."""
    command = [sys.executable, str(ROOT / "bench" / "static.py"), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_front_end_takes_every_variant() -> None:
    """Types are checked there and not in the interpreter: a pointer of another dtype in one branch, for example."""
    done = static("--front-end")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 900


def test_the_front_end_sees_a_wrong_type(tmp_path: Path) -> None:
    """The check can fail: a name that is a pointer to float32 in one branch and to bfloat16 in the other."""
    code = """
import sys; sys.path.insert(0, {bench!r})
import triton, triton.language as tl
import static, variants
@triton.jit
def wrong(q, lse, num_frames, X: tl.constexpr):
    if num_frames > 1:
        p = lse
    else:
        p = q
    tl.store(p, 0.0)
class Wrong(variants.Variant):
    function = wrong
    def constants(self, family): return {{"X": 1}}
print(static.front_end(Wrong("backward_key", 64), static.CHIPS[3].target, "sm_90"))
"""
    file = tmp_path / "wrong.py"  # Triton reads the source of its functions from a file
    file.write_text(code.format(bench=str(ROOT / "bench")))
    compiled = {**os.environ, "TRITON_INTERPRET": "0"}  # which other tests of this process may have set
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False, env=compiled)
    assert "Mismatched type" in done.stdout, done.stdout + done.stderr


def test_hopper_kernels_use_wgmma_and_do_not_spill() -> None:
    done = static("--usual", "--arch", "sm_90", "--head-dim", "40", "--jobs", "1", "--json")
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)["kernels"]
    names = {"forward", "forward_training", "backward_query", "backward_key"}
    assert {kernel["kernel"] for kernel in kernels if "wgmma" in kernel["matrix"]} == names
    # About 300; warps that repeat each other's rows would issue twice that.
    assert all(400 > kernel["issued"] >= kernel["loop"] > 100 for kernel in kernels if kernel["kernel"] in names)
    assert all(kernel["issued"] == kernel["loop"] == 0 for kernel in kernels if kernel["kernel"] not in names)
    assert {kernel["tiles"] for kernel in kernels if kernel["kernel"] == "backward_key"} == {"whole", "whole, split"}


def test_launches_bind_and_compile_as_on_a_gpu() -> None:
    """What the operators hand to Triton, and what the tuner asks it, up to the launch."""
    command = [sys.executable, str(ROOT / "tests" / "pretended_gpu.py"), "80"]
    compiled = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=compiled)
    assert done.returncode == 0, done.stderr
    backward = ["pisa_row_statistics", "pisa_backward_query", "pisa_backward_key"]
    launches = [name for name in done.stdout.split() if name != "sum_groups"]
    assert launches == ["pisa_forward", *backward] * 2
