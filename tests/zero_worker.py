"""What each rank of tests/test_train_zero.py runs: a scenario on a tiny model."""

import argparse
import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed as dist
from videomaker.train.checkpoint_files import RecordingWriter
from videomaker.train.config import TrainConfig
from videomaker.train.engine import start_distributed
from videomaker.train.guards import StopRequest
from videomaker.train.overrides import load_config
from videomaker.train.trainer import Trainer


def call_after(trainer: Trainer, step: int, action) -> None:
    """Calls `action` on this rank when training has done `step` steps."""
    take = trainer._optimizer_step

    def optimizer_step(*arguments):
        if trainer.step == step:
            action()
        return take(*arguments)

    trainer._optimizer_step = optimizer_step


def frozen_hash(trainer: Trainer) -> str:
    digest = hashlib.sha256()
    for parameter in trainer.learner.parameters():
        if not parameter.requires_grad:
            digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def stages(folder: Path, device: torch.device) -> None:
    """Ten steps with every ZeRO stage, and again from the checkpoint in the middle."""
    for stage in (0, 1, 2, 3):
        config = load_config(str(folder / "config.yaml"), [f"zero.stage={stage}", f"output={folder}/zero{stage}"])
        trainer = Trainer(config, device)
        before = frozen_hash(trainer) if stage < 3 else None
        trainer.run(StopRequest())
        if stage < 3:
            assert frozen_hash(trainer) == before
        middle = f"{folder}/zero{stage}/checkpoints/step-00000005"
        again = replace(config.checkpoint, every=0, resume=middle)
        Trainer(replace(config, output=f"{folder}/zero{stage}-again", checkpoint=again), device).run(StopRequest())


def lora_run(folder: Path, stage: int, name: str = "") -> TrainConfig:
    lora = ["method.lora.rank=2", "optimizer.learning_rate=0.01", "steps=6", "checkpoint.every=3"]
    output = f"output={folder}/lora{stage}{name}"
    return load_config(str(folder / "config.yaml"), [f"zero.stage={stage}", output, *lora])


def lora(folder: Path, device: torch.device) -> None:
    """Six steps of adapters with ZeRO 0, 1 and 2."""
    for stage in (0, 1, 2):
        trainer = Trainer(lora_run(folder, stage), device)
        before = frozen_hash(trainer)
        trainer.run(StopRequest())
        assert frozen_hash(trainer) == before


def kill_lora(folder: Path, device: torch.device) -> None:
    """The run with ZeRO 2 once more, both ranks killed in the middle of step 5."""
    trainer = Trainer(lora_run(folder, 2, "-killed"), device)
    call_after(trainer, 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    trainer.run(StopRequest())


def resume_lora(folder: Path, device: torch.device) -> None:
    """The killed run goes on."""
    trainer = Trainer(lora_run(folder, 2, "-killed"), device)
    assert trainer.step == 3
    trainer.run(StopRequest())


def killed_run(folder: Path) -> TrainConfig:
    return load_config(str(folder / "config.yaml"), [f"output={folder}/killed", "checkpoint.every=3"])


def die_while_saving(folder: Path, device: torch.device) -> None:
    """Rank 1 is killed while it writes the checkpoint of step 6."""
    trainer = Trainer(killed_run(folder), device)

    def arm():
        write = RecordingWriter._write

        def write_half(self, path, content):
            if dist.get_rank() == 1:
                path.write_bytes(b"half a file")
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, path, content)

        RecordingWriter._write = write_half

    call_after(trainer, 5, arm)
    trainer.run(StopRequest())


def stop_in_the_middle(folder: Path, device: torch.device) -> None:
    """Resumes the killed run; rank 1 gets SIGTERM at step 7."""
    trainer = Trainer(killed_run(folder), device)
    if dist.get_rank() == 1:
        call_after(trainer, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not trainer.run(StopRequest())


def run_scenario(scenario: str, folder: Path) -> None:
    """What a rank does, however it was started."""
    device = start_distributed()
    globals()[scenario](folder, device)
    dist.barrier()


def run_rank(rank: int, port: int, scenario: str, folder: Path) -> None:
    """A rank without a launcher, in a process forked from one that has imported all this; what it says is in a file."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    said = os.open(folder / f"{scenario}-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    run_scenario(scenario, folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("scenario")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    run_scenario(options.scenario, options.folder)


if __name__ == "__main__":
    main()
