"""Programs that a model wrote, judged by running their tests: pass@k of HumanEval.

Each runs in a process of its own (`code_child.py`) with limits of time and memory, in a
temporary folder, without the network, and is killed with whatever it started. That
keeps blunders in check; against malice use a container besides. POSIX only.
"""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tfllm.core.errors import UserError
from tfllm.core.files import atomic_write

# Where the text after a function's body begins (Chen et al., 2021).
STOPS = (
    "\nclass ",
    "\ndef ",
    "\n#",
    "\nif ",
    "\nprint(",
    "\n@",
    "\nimport ",
    "\nfrom ",
)
PROBLEM = ("task_id", "prompt", "entry_point", "test")
SAMPLE = ("task_id", "completion")
STARTING = 30  # seconds that a busy machine may take to start a process
CHILD = Path(__file__).with_name("code_child.py")


def read_lines(path: str | Path, fields: Sequence[str]) -> list[dict]:
    """The objects of a JSONL file, compressed by gzip or not.

    Args:
        path: The file.
        fields: Strings that each object must have: `PROBLEM` or `SAMPLE`.

    Raises:
        UserError: Says in which line what is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("there is no such file", path)
    data, rows = path.read_bytes(), []
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    for number, line in enumerate(data.decode("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [n for n in fields if not isinstance(row[n], str)]
        except (ValueError, TypeError, KeyError):
            missing = fields
        if missing:
            raise UserError(
                f"this is no JSON object with {', '.join(fields)}", f"{path}:{number}"
            )
        rows.append(row)
    return rows


def write_lines(path: str | Path, rows: Iterable[dict]) -> None:
    """Writes a JSONL file, whole or not at all; `.gz` compresses it."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    data = "".join(lines).encode("utf-8")
    atomic_write(path, gzip.compress(data) if str(path).endswith(".gz") else data)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """How likely one of `k` samples passes, told from more of them without bias.

    `1 - C(samples - passed, k) / C(samples, k)` (Chen et al., 2021).
    """
    if samples - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))


def run_program(program: str, seconds: float = 3.0, memory: int = 1 << 30) -> str:
    """Runs a Python program.

    Args:
        program: Its source.
        seconds: It is killed after so many.
        memory: Bytes of address space that it may have.

    Returns:
        `passed`, `timed out` or `failed: …`.
    """
    command = [sys.executable, "-IB", str(CHILD), str(seconds), str(memory)]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder,
                 "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        source = program.encode("utf-8", "surrogatepass")
        try:
            told, _ = process.communicate(source, seconds + STARTING)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "timed out"
    return told.decode().partition("\n")[0] or "failed: the process died"


def evaluate(
    problems: Iterable[dict],
    samples: Sequence[dict],
    ks: Sequence[int] = (1, 10, 100),
    *,
    seconds: float = 3.0,
    memory: int = 1 << 30,
    workers: int | None = None,
    advance: Callable = lambda: None,
) -> tuple[dict[str, float], list[dict]]:
    """Runs samples against the tests of their problems.

    Args:
        problems: Rows with `PROBLEM`'s fields.
        samples: Rows with `SAMPLE`'s fields, some for each problem.
        ks: pass@k is told for those of which each problem has as many samples.
        seconds: See `run_program`.
        memory: See `run_program`.
        workers: Programs that run at once; None for one a core.
        advance: Called after each.

    Returns:
        `{"pass@1": …}`, and the samples with `result` and `passed`.

    Raises:
        UserError: Samples of unknown problems, or problems without samples.
    """
    problems = {problem["task_id"]: problem for problem in problems}
    counts = {name: [0, 0] for name in problems}
    for sample in samples:
        if sample["task_id"] not in problems:
            raise UserError(f"there is no problem '{sample['task_id']}'")
        counts[sample["task_id"]][0] += 1
    empty = [name for name, (made, _) in counts.items() if not made]
    if empty or not problems:
        raise UserError(
            f"{len(empty)} of {len(problems)} problems have no sample: {empty[:3]}"
        )

    def judged(sample: dict) -> dict:
        problem = problems[sample["task_id"]]
        body = problem["prompt"] + sample["completion"]
        check = f"check({problem['entry_point']})"
        result = run_program(f"{body}\n{problem['test']}\n{check}\n", seconds, memory)
        advance()
        return sample | {"result": result, "passed": result == "passed"}

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        rows = list(pool.map(judged, samples))
    for row in rows:
        counts[row["task_id"]][1] += row["passed"]
    least = min(made for made, _ in counts.values())
    metrics = {
        f"pass@{k}": math.fsum(pass_at_k(*pair, k) for pair in counts.values())
        / len(counts)
        for k in ks
        if k <= least
    }
    return metrics, rows
