"""The large fuzz of what people hand over: `python bench/fuzz_inputs.py --count 4000 --jobs 2`.

Every case runs in a process of its own with limits. It fails when it ends in a traceback, hangs, is killed, changes or
leaves behind files, is accepted though nothing good can come of it, is refused though it is good, is refused only after
the model began to work, or is refused without one clear line. A case's name says its kind, seed and number, which make
it again: `--only records:0:17`. Results go to `--out`, a line a case; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import time
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "NO_COLOR": "1",
    "COLUMNS": "400",
}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzzing import KINDS, generator, zygote
from fuzzing.world import World, make_world


def main() -> int:
    """Runs what is left to run; exit code 1 when a case failed or a process was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4000, help="cases in all, spread over the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", metavar="NAME", help="one case, with what it printed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no case is begun")
    parser.add_argument("--out", type=Path, default=Path("outputs/fuzz"), help="folder for the results and good inputs")
    options = parser.parse_args()
    world = make_world(options.out / "world")
    zygote.import_libraries()
    if options.only:
        outcome = zygote.run_case(options.only, generator(options.only, world))
        print(json.dumps(vars(outcome), indent=2))
        return int(bool(outcome.wrong))
    results = options.out / f"results-{options.seed}.jsonl"
    each = -(-options.count // len(options.kinds))
    names = [f"{kind}:{options.seed}:{number}" for number in range(each) for kind in options.kinds]
    done = {outcome["name"] for outcome in _outcomes(results)}
    lost = _run_all([name for name in names if name not in done], world, results, options.jobs, options.seconds)
    return _report(_outcomes(results), names) or int(lost > 0)


def _run_all(names: list[str], world: World, results: Path, jobs: int, seconds: float) -> int:
    """Shares the cases out to `jobs` processes, which write a line for each; Ctrl-C leaves what is done.

    Returns how many of them ended before their cases did, killed for memory for instance.
    """
    until = time.monotonic() + seconds
    workers = []
    for job in range(jobs):
        worker = os.fork()
        if worker == 0:
            for name in names[job::jobs]:
                if time.monotonic() > until:
                    break
                outcome = zygote.run_case(name, generator(name, world))
                with results.open("a") as file:  # one write, which no other process's comes into
                    file.write(zygote.as_json(outcome) + "\n")
                if outcome.wrong:
                    print(f"{outcome.wrong:34} {name:26} {outcome.what[:120]}", flush=True)
            os._exit(0)
        workers.append(worker)
    lost = sum(os.waitpid(worker, 0)[1] != 0 for worker in workers)
    if lost:
        print(f"{lost} of {jobs} processes ended before their cases did: the same command goes on")
    return lost


def _outcomes(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def _report(outcomes: list[dict], names: list[str]) -> int:
    wrong = collections.Counter(x["wrong"].split(":")[0] for x in outcomes if x["wrong"])
    kinds = collections.Counter(x["name"].split(":")[0] for x in outcomes)
    left = len(set(names) - {x["name"] for x in outcomes})
    summary = {
        "cases": len(outcomes), "left": left, "failed": sum(wrong.values()), "why": dict(wrong), "kinds": dict(kinds),
    }  # fmt: skip
    print(json.dumps(summary))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
