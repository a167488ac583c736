"""Systems that take turns, a process each, so that what else the machine does meets all
alike.

A benchmark calls `race` with its own path; that starts it once for each system with
`--worker NAME`, where it calls `serve`.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # the checkout, also when it is not installed


def timed(cases: Mapping[str, Callable]) -> Callable[[], dict]:
    """A turn that takes the cases' seconds, by name; each has run once before."""
    for case in cases.values():  # traces and compiles
        case()

    def turn() -> dict:
        told = {}
        for name, case in cases.items():
            started = time.perf_counter()
            case()
            told[name] = time.perf_counter() - started
        return told

    return turn


def serve(turn: Callable) -> None:
    """In a worker: answers each line of standard input with what a turn returns."""
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), flush=True)


def race(file: str, systems: Sequence[str], options) -> dict[str, list]:
    """What the turns of each system returned, one a round.

    Args:
        file: The benchmark.
        systems: Names; those that begin with `hf` run under `options.hf_python`. One
            that ends is told of and left out.
        options: Parsed arguments with `rounds`.
    """
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    workers, answers = {}, {}
    for name in systems:
        python = options.hf_python if name.startswith("hf") else sys.executable
        said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        worker = subprocess.Popen(
            [python, file, *sys.argv[1:], "--worker", name],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        workers[name], answers[name] = (worker, said), []
        if "ready\n" not in iter(worker.stdout.readline, ""):
            _gone(name, workers, answers)
    for _ in range(options.rounds):
        for name, (worker, _) in list(workers.items()):
            try:
                worker.stdin.write("go\n")
                worker.stdin.flush()
                answers[name].append(json.loads(worker.stdout.readline()))
            except (BrokenPipeError, json.JSONDecodeError):
                _gone(name, workers, answers)
    for worker, _ in workers.values():
        worker.stdin.close()
        worker.wait()
    return answers


def _gone(name: str, workers: dict, answers: dict) -> None:
    """Leaves out a system that ended, and tells what it said last."""
    del answers[name]
    worker, said = workers.pop(name)
    worker.kill()
    said.seek(0)
    last = said.read().strip().splitlines()[-1:] or ["it said nothing"]
    print(f"{name}: not here: {last[0]}", file=sys.stderr)


def write(path: str, options, **facts) -> None:
    """Writes what was measured, and on what."""
    about = {"machine": platform.processor(), "cores": os.cpu_count()}
    about |= {"load": os.getloadavg(), "options": vars(options)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(about | facts, indent=1))
