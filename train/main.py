"""Entry point: `deepspeed train/main.py --config PRESET_OR_YAML [key=value …]`, or `python` for one device."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from videomaker.errors import InputError

if TYPE_CHECKING:
    from videomaker.train.config import TrainConfig


_LONGEST = 480  # characters of an error: a name of thousands would push the remedy off the screen


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line: a configuration, overrides, and what the launcher adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="PRESET_OR_YAML", help="a preset's name or a YAML file")
    parser.add_argument("--resume", metavar="auto|none|DIR", help="short for checkpoint.resume=…")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--memory", action="store_true", help="with --dry-run: count the memory, loading nothing")
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # given by the launcher, which also sets LOCAL_RANK
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as optimizer.learning_rate=3e-5")
    return parser.parse_intermixed_args(arguments)  # options and overrides in any order


def main(arguments: list[str] | None = None) -> int:
    """Runs the training; returns the exit code: 0 done or stopped on request, 1 failed, 2 bad input."""
    from videomaker.train.checks import check_named, check_run
    from videomaker.train.overrides import differences, load_config, save_config

    options = parse_arguments(arguments)
    overrides = [*options.overrides, *([f"checkpoint.resume={options.resume}"] if options.resume else [])]
    try:
        config = load_config(options.config, overrides)
        if options.dry_run:
            print(save_config(config), flush=True)
            if options.memory:
                _quiet()
                from videomaker.train.memory_report import report

                for line in report(config):
                    print(line, flush=True)
            check_named(config, memory=options.memory)
            return 0
        if options.memory:
            raise InputError("--memory counts without training: give it with --dry-run")
        check_run(config)
        say(f"{config.output}: preset {config.preset or 'none'}; what differs: {differences(config) or 'nothing'}")
        train(config)
    except (InputError, OSError) as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail(KeyboardInterrupt("stopped by Ctrl-C"), 130)
    except RuntimeError as error:
        if type(error).__module__.startswith("videomaker."):
            return _fail(error, 1)
        raise
    return 0


def say(message: str) -> None:
    """Prints a line on the first rank."""
    if os.environ.get("RANK", "0") == "0":
        print(message, flush=True)


def train(config: TrainConfig) -> None:
    """Runs `config` to its end on this rank, or until it is asked to stop."""
    _quiet()  # before anything imports DeepSpeed
    from torch import distributed as dist
    from videomaker.train.engine import set_numerics, start_distributed
    from videomaker.train.export import export_run
    from videomaker.train.guards import EndAtOnce, Launcher, Peers, StopRequest, is_lost_connection
    from videomaker.train.trainer import Trainer, TrainingFailed

    stop, peers = StopRequest(), None
    try:
        with EndAtOnce(Launcher()):
            device = start_distributed(say)
            set_numerics(config, device)
            peers = Peers()
            trainer = Trainer(config, device)
        finished = trainer.run(stop)
        dist.barrier()
    except RuntimeError as error:
        if peers and is_lost_connection(error):
            raise TrainingFailed(peers.explain(error)) from error
        raise
    dist.destroy_process_group()
    if finished and trainer.rank == 0:
        print(f"exported {export_run(Path(config.output))}")


def _quiet() -> None:
    """Keeps what libraries say to programmers off the screen."""
    import torch

    from videomaker.jobs.quiet import quiet_libraries

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    quiet_libraries()


def _fail(error: BaseException, code: int) -> int:
    message = " ".join(str(error).split())
    message = message if len(message) <= _LONGEST else f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
