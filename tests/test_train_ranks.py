"""Which rank a process is: of srun's tasks, of mpirun's, of a launcher's, or of one alone."""

import pytest
from videomaker.train.ranks import assign_rank

from videomaker.errors import InputError


def slurm(rank, **more):
    return {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 4), "SLURM_NTASKS": "8", "SLURM_JOB_ID": "4711",
            "SLURM_NNODES": "2", "SLURM_NODELIST": "gpu[07-08]", **more}  # fmt: skip


def test_the_tasks_of_srun_are_the_ranks_of_one_run():
    found = [slurm(rank, SLURM_STEP_NUM_TASKS="8", SLURM_STEP_ID="0") for rank in range(8)]
    for environment in found:
        assign_rank(environment)
    assert [environment["RANK"] for environment in found] == [str(rank) for rank in range(8)]
    assert [environment["LOCAL_RANK"] for environment in found] == list("01230123")
    shared = {(env["WORLD_SIZE"], env["MASTER_ADDR"], env["MASTER_PORT"]) for env in found}
    assert len(shared) == 1
    assert next(iter(shared))[:2] == ("8", "gpu07")


@pytest.mark.parametrize(
    ("machines", "first"),
    [("gpu[07-08]", "gpu07"), ("a[1,3-4]-ib,b2", "a1-ib"), ("left,right", "left"), ("n-1", "n-1")],
)
def test_the_first_machine_is_the_master(machines, first):
    environment = slurm(0, SLURM_NODELIST=machines)
    assign_rank(environment)
    assert environment["MASTER_ADDR"] == first


def test_a_batch_script_is_no_task():
    environment = slurm(0, ENVIRONMENT="BATCH")
    assign_rank(environment)
    assert environment["WORLD_SIZE"] == "1"


def test_mpirun_starts_one_run_too():
    environment = {f"OMPI_COMM_WORLD_{name}": value for name, value in
                   {"RANK": "1", "SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}.items()}  # fmt: skip
    assign_rank(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["MASTER_ADDR"]) == ("1", "2", "127.0.0.1")
    with pytest.raises(InputError, match="MASTER_ADDR"):
        assign_rank({**{k: v for k, v in environment.items() if "OMPI" in k}, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})


def test_a_launcher_and_a_process_alone_are_left_as_they_are():
    given = {"RANK": "3", "WORLD_SIZE": "4"}
    assign_rank(given)
    assert given == {"RANK": "3", "WORLD_SIZE": "4"}
    alone = {}
    assign_rank(alone)
    assert (alone["RANK"], alone["WORLD_SIZE"]) == ("0", "1")
