"""Entry point: `deepspeed train/main.py --config PRESET_OR_YAML [key=value …]`, or `python` for one device."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from videomaker.errors import InputError


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line: a configuration, overrides, and what the launcher adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="PRESET_OR_YAML", help="a preset's name or a YAML file")
    parser.add_argument("--resume", metavar="auto|none|DIR", help="short for checkpoint.resume=…")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # given by the launcher, which also sets LOCAL_RANK
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as optimizer.learning_rate=3e-5")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the training; returns the exit code: 0 done or stopped on request, 1 failed, 2 bad input."""
    from videomaker.train.overrides import load_config, save_config

    options = parse_arguments(arguments)
    overrides = [*options.overrides, *([f"checkpoint.resume={options.resume}"] if options.resume else [])]
    first = os.environ.get("RANK", "0") == "0"
    try:
        config = load_config(options.config, overrides)
        if first:
            print(save_config(config), flush=True)
        if options.dry_run:
            return 0
        train(config)
    except (InputError, OSError) as error:
        return _fail(error, 2)
    except RuntimeError as error:
        if type(error).__module__.startswith("videomaker."):
            return _fail(error, 1)
        raise
    return 0


def train(config) -> None:
    """Runs `config` to its end on this rank, or until it is asked to stop."""
    from torch import distributed as dist
    from videomaker.train.engine import set_numerics, start_distributed
    from videomaker.train.export import export_run
    from videomaker.train.guards import Peers, StopRequest, is_lost_connection
    from videomaker.train.trainer import Trainer, TrainingFailed

    stop = StopRequest()
    device = start_distributed()
    set_numerics(config, device)
    peers = Peers()
    try:
        trainer = Trainer(config, device)
        if trainer.rank == 0:
            _write_run_folder(config, trainer.ds_json)
        finished = trainer.run(stop)
        dist.barrier()
    except RuntimeError as error:
        if is_lost_connection(error):
            raise TrainingFailed(peers.explain(error)) from error
        raise
    dist.destroy_process_group()
    if finished and trainer.rank == 0:
        print(f"exported {export_run(Path(config.output))}")


def _write_run_folder(config, ds_json: dict) -> None:
    import json

    from videomaker.train.overrides import save_config

    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(save_config(config), encoding="utf-8")
    (folder / "deepspeed.json").write_text(json.dumps(ds_json, indent=2), encoding="utf-8")


def _fail(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
