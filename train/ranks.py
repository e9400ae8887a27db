"""Which rank of how many this process is, by the environment of whoever started it.

`deepspeed` and `torchrun` set RANK and the rest themselves. `srun` and `mpirun` start the same command several times:
their tasks are the ranks of one run, not runs of their own.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import MutableMapping

from videomaker.errors import InputError

_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}
_FIRST_PORT, _PORTS = 20_000, 10_000  # from which all tasks choose the same one, by the job's number


def assign_rank(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT unless a launcher did.

    Raises:
        InputError: the tasks do not tell where the first of them runs.
    """
    if "RANK" in environment:
        return
    if (size := _slurm_tasks(environment)) > 1:
        found = {"RANK": environment["SLURM_PROCID"], "LOCAL_RANK": environment.get("SLURM_LOCALID", "0")}
        number = int(environment.get("SLURM_JOB_ID", "0")) * 8 + int(environment.get("SLURM_STEP_ID", "0"))
        found |= {"WORLD_SIZE": str(size), "MASTER_ADDR": _slurm_master(environment)}
    elif int(environment.get(_MPI["WORLD_SIZE"], "1")) > 1:
        found = {name: environment[theirs] for name, theirs in _MPI.items()}
        number = os.getppid()  # of mpirun, the same for all of this machine
        if int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", found["WORLD_SIZE"])) < int(found["WORLD_SIZE"]):
            _require_master(environment, "mpirun over several machines")
        found["MASTER_ADDR"] = "127.0.0.1"
    else:
        found = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        found["MASTER_PORT"] = str(free_port())
        environment.update(found)
        return
    found["MASTER_PORT"] = str(_FIRST_PORT + number % _PORTS)
    environment.update({name: environment.get(name, value) for name, value in found.items()})


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _slurm_tasks(environment: MutableMapping[str, str]) -> int:
    """The number of tasks that `srun` started beside this one; 1 in a batch script, which is no task."""
    if "SLURM_PROCID" not in environment:
        return 1
    if "SLURM_STEP_NUM_TASKS" in environment:
        return int(environment["SLURM_STEP_NUM_TASKS"])
    in_script = environment.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environment
    return 1 if in_script else int(environment.get("SLURM_NTASKS", "1"))


def _slurm_master(environment: MutableMapping[str, str]) -> str:
    """The first machine of the step."""
    machines = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    if int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES", "1")) == 1:
        return "127.0.0.1"
    first = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", machines)
    if not first:
        _require_master(environment, f"SLURM_STEP_NODELIST={machines!r}")
        return environment["MASTER_ADDR"]
    return "".join(part or "" for part in first.groups())


def _require_master(environment: MutableMapping[str, str], who: str) -> None:
    if "MASTER_ADDR" not in environment:
        raise InputError(f"{who} does not say where the first task runs: set MASTER_ADDR to its machine's name")
