"""Training over two processes: ZeRO stages, lost ranks, other world sizes, other launchers."""

import csv
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
import yaml
from clips import write_clips
from safetensors.torch import load_file
from tiny import tiny_pipeline
from videomaker.train.engine import free_port
from zero_worker import run_rank

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, six clips and the configuration that every run below starts from."""
    folder = tmp_path_factory.mktemp("zero")
    tiny_pipeline().save_pretrained(folder / "model")
    manifest = write_clips(folder / "clips")
    config = {
        "preset": "smoke",
        "steps": 10,
        "batch_size": 2,
        "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.9},
        "zero": {"stage": 2},
        "checkpoint": {"every": 5},
        "model": {"path": str(folder / "model"), "attention_backend": "naive"},
        "data": {"manifest": str(manifest), "num_frames": 2, "height": 16, "width": 16, "highlight": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def stages(folder) -> Path:
    """Ten steps with each ZeRO stage, and the second five again from the checkpoint, in one launch."""
    done = launch("stages", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def launch(scenario: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs a scenario of zero_worker.py on two ranks, beside whatever training has the launcher's usual port."""
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"]
    worker = [str(ROOT / "tests" / "zero_worker.py"), scenario, str(folder)]
    return run([*launcher, "--master_port", str(free_port()), *worker])


@pytest.fixture(scope="module")
def ranks(folder):
    """Runs a scenario on two ranks, which ends when the first fails: their exit statuses.

    They are forked from a process that has imported everything: each launch of `deepspeed` imports it four times.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zero_worker"])

    def start(scenario: str) -> list[int | None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            patch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)  # of the process that imports
            port = free_port()
            pair = [context.Process(target=run_rank, args=(rank, port, scenario, folder)) for rank in (0, 1)]
            for process in pair:
                process.start()
        while running := [process for process in pair if process.exitcode is None]:
            if any(process.exitcode for process in pair):
                wait([process.sentinel for process in running], timeout=20)  # it may notice by itself
                for process in running:
                    process.kill()
            wait([process.sentinel for process in running], timeout=500)
        return [process.exitcode for process in pair]

    return start


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)


def curve(run_folder: Path) -> dict[int, float]:
    with (run_folder / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def test_every_zero_stage_gives_the_same_curve(stages):
    expected = curve(stages / "zero0")
    assert list(expected) == list(range(1, 11))
    assert len(set(expected.values())) == 10
    for stage in (1, 2, 3):
        assert curve(stages / f"zero{stage}") == pytest.approx(expected, rel=1e-5)


def test_every_zero_stage_gives_the_same_weights_and_average(stages):
    for name in ("trained", "ema"):
        expected, *others = (
            load_file(stages / f"zero{stage}" / "checkpoints" / "step-00000010" / f"{name}.safetensors")
            for stage in (0, 1, 2, 3)
        )
        for other in others:
            # Ten steps at a rate of 1e-3 move a weight by at most 1e-2; Adam's division turns rounding of the
            # smallest gradients, summed in another order, into up to a percent of that.
            torch.testing.assert_close(other, expected, rtol=0, atol=1e-4)
        assert any(value.any() for value in expected.values())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(stages, stage):
    whole, resumed = curve(stages / f"zero{stage}"), curve(stages / f"zero{stage}-again")
    assert resumed == {step: loss for step, loss in whole.items() if step > 5}


def test_a_killed_rank_costs_nothing_but_time(stages, ranks):
    expected = curve(stages / "zero2")

    # Rank 1 is killed while it writes the checkpoint of step 6: no half checkpoint has a name.
    assert any(ranks("die_while_saving"))
    checkpoints = stages / "killed" / "checkpoints"
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-00000003"]
    assert (checkpoints / "latest").read_text() == "step-00000003"

    # Resumed, the run goes on where it stood; SIGTERM to one rank saves and ends all with 0.
    assert ranks("stop_in_the_middle") == [0, 0]
    assert (checkpoints / "latest").read_text() == "step-00000008"
    assert curve(stages / "killed") == {step: loss for step, loss in expected.items() if step <= 8}

    # One rank takes over from two. The same clips and noise, summed in another order.
    single = run([sys.executable, "train/main.py", "--config", str(stages / "config.yaml"), f"output={stages}/killed"])
    assert single.returncode == 0, single.stderr[-3000:]
    assert curve(stages / "killed") == pytest.approx(expected, rel=1e-5)
    average = load_file(checkpoints / "step-00000010" / "ema.safetensors")
    uninterrupted = load_file(stages / "zero2" / "checkpoints" / "step-00000010" / "ema.safetensors")
    torch.testing.assert_close(average, uninterrupted, rtol=0, atol=1e-4)
    assert not list(checkpoints.glob(".*"))


def test_adapters_train_with_zero_and_outlive_a_kill(folder, ranks):
    """LoRA on two ranks: every stage the same, the adapters alone in the checkpoint, the same bits after kill -9."""
    assert ranks("lora") == [0, 0]
    assert any(ranks("kill_lora"))
    assert ranks("resume_lora") == [0, 0]
    expected = curve(folder / "lora0")
    assert len(set(expected.values())) == 6
    for stage in (1, 2):
        assert curve(folder / f"lora{stage}") == pytest.approx(expected, rel=1e-5)
    assert curve(folder / "lora2-killed") == curve(folder / "lora2")
    for name in ("trained", "ema"):
        ends = [
            folder / run / "checkpoints" / "step-00000006" / f"{name}.safetensors" for run in ("lora2", "lora2-killed")
        ]
        whole, resumed = map(load_file, ends)
        assert whole and all(".lora_A." in key or ".lora_B." in key for key in whole)
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_torchrun_starts_the_same_run(stages):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    arguments = ["--config", str(stages / "config.yaml"), f"output={stages}/torchrun", "steps=3", "checkpoint.every=0"]
    done = run([*launcher, str(free_port()), "train/main.py", *arguments])
    assert done.returncode == 0, done.stderr[-3000:]
    assert curve(stages / "torchrun") == {step: loss for step, loss in curve(stages / "zero2").items() if step <= 3}


def test_a_world_size_that_does_not_fit_is_refused_before_anything_starts(folder):
    done = run([sys.executable, "train/main.py", "--config", str(folder / "config.yaml"), "micro_batch_size=3"])
    assert done.returncode == 2
    assert "batch_size=2 does not fit 1 device" in done.stderr.splitlines()[-1]


def test_a_process_leaves_its_group_before_it_ends():
    """Else Gloo's threads abort it now and then. Who registers first is called last, and sees what the others left."""
    program = """
import atexit
from torch import distributed
atexit.register(lambda: print("in a group:", distributed.is_initialized()))
from videomaker.train.engine import start_distributed
start_distributed()
raise SystemExit(2)
"""
    done = run([sys.executable, "-P", "-c", program])
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "in a group: False"
