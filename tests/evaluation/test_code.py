import json
import subprocess
import sys
import time

import pytest

from tfllm.cli.main import main
from tfllm.core.errors import UserError
from tfllm.evaluation.code import (
    PROBLEM,
    SAMPLE,
    evaluate,
    pass_at_k,
    read_lines,
    run_program,
    write_lines,
)

PROBLEMS = [
    {"task_id": name, "prompt": f"def {name}(x):\n", "entry_point": name,
     "test": "def check(f):\n    assert f(2) == 4"}
    for name in ("double", "square")
]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("print('hello')", "passed"),
        ("import os; open('a', 'w').close(); os.remove('a')", "passed"),
        ("import asyncio; asyncio.run(asyncio.sleep(0))", "passed"),
        ("assert 1 == 2, 'no'", "failed: AssertionError: no"),
        ("raise SystemExit(0)", "failed: SystemExit: 0"),
        ("import os; os._exit(0)", "failed: the process ended with 0"),
        ("import ctypes; ctypes.string_at(0)", "failed: the process ended with -11"),
        ("input()", "failed: EOFError: EOF when reading a line"),
        ("x = (", "failed: SyntaxError: '(' was never closed (program, line 1)"),
        ("x = bytearray(1 << 31)", "failed: MemoryError: "),
        ("while True: pass", "timed out"),
        ("import time; time.sleep(60)", "timed out"),
        ("import subprocess; subprocess.run(['true'])",
         "failed: PermissionError: subprocess.Popen is not allowed"),
        ("import os; os.fork()", "failed: PermissionError: os.fork is not allowed"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))",
         "failed: PermissionError: socket.getaddrinfo is not allowed"),
        ("import socket; socket.socket().connect(('127.0.0.1', 9))",
         "failed: PermissionError: socket.connect is not allowed"),
        ("open('/x', 'w')", "failed: PermissionError: open of /x is not allowed"),
        ("import shutil; shutil.rmtree('/x')",
         "failed: PermissionError: shutil.rmtree of /x is not allowed"),
    ],
)  # fmt: skip
def test_what_becomes_of_programs(program, result):
    started = time.monotonic()
    assert run_program(program, seconds=2.0) == result
    assert time.monotonic() - started < 30


def test_what_a_program_started_ends_with_it(tmp_path):
    """A process that left its session, made behind Python's back, dies too."""
    own = "import ctypes; print(ctypes.CDLL(None).unshare(0x70000000))"
    done = subprocess.run([sys.executable, "-c", own], capture_output=True, text=True)
    if done.stdout.strip() != "0":
        pytest.skip("this system gives no process ids of one's own")
    left = tmp_path / "left"
    program = f"""
import ctypes
libc = ctypes.CDLL(None)
if libc.fork() == 0:
    libc.setsid()
    libc.usleep(700_000)
    libc.creat({str(left).encode()!r}, 0o644)
"""
    assert run_program(program) == "passed"
    time.sleep(1.5)
    assert not left.exists()


def test_pass_at_k_counts_all_choices():
    from math import comb

    for samples, passed, k in ((10, 3, 1), (10, 3, 5), (10, 8, 3), (4, 0, 2)):
        expected = 1 - comb(samples - passed, k) / comb(samples, k)
        assert pass_at_k(samples, passed, k) == pytest.approx(expected)


def test_samples_of_humaneval(shared, tmp_path, capsys):
    """The checker's own sample file scores what its README says."""
    folder, samples = shared / "humaneval", tmp_path / "samples.jsonl"
    samples.write_text((folder / "example_samples.jsonl").read_text())
    command = ["code-eval", str(folder / "example_problem.jsonl"), str(samples)]
    assert main(command) == 2
    assert "--run_code" in capsys.readouterr().err
    assert main([*command, "--run_code"]) == 0
    value = json.loads(capsys.readouterr().out.splitlines()[-2])["pass@1"]
    assert str(value).startswith("0.4999")
    rows = read_lines(f"{samples}_results.jsonl", SAMPLE)
    assert [row["passed"] for row in rows] == [False] * 3 + [True] * 3
    assert rows[1]["result"] == "timed out"


def test_the_solutions_of_humaneval_pass(shared, tmp_path):
    problems = read_lines(shared / "humaneval/HumanEval.jsonl.gz", PROBLEM)
    assert len(problems) == 164
    chosen = problems[::20]
    rows = [
        {"task_id": p["task_id"], "completion": text}
        for p in chosen
        for text in (p["canonical_solution"], "    return None\n")
    ]
    write_lines(tmp_path / "samples.jsonl.gz", rows)
    rows = read_lines(tmp_path / "samples.jsonl.gz", SAMPLE)
    metrics, rows = evaluate(chosen, rows, (1, 2, 3), seconds=20)
    assert metrics == {"pass@1": 0.5, "pass@2": 1.0}
    assert [row["passed"] for row in rows] == [True, False] * len(chosen)


def test_files_that_do_not_fit(tmp_path):
    sample = {"task_id": "double", "completion": "    return 2 * x"}
    with pytest.raises(UserError, match="1 of 2 problems have no sample"):
        evaluate(PROBLEMS, [sample])
    with pytest.raises(UserError, match="no problem 'other'"):
        evaluate(PROBLEMS, [sample | {"task_id": "other"}])
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(sample) + '\n\n{"task_id": 3}\n')
    with pytest.raises(UserError, match=r"samples.jsonl:3: .* task_id, completion"):
        read_lines(path, SAMPLE)


def test_a_model_fills_functions(shared, tmp_path, capsys):
    write_lines(tmp_path / "problems.jsonl", PROBLEMS)
    command = ["code-eval", *(str(tmp_path / f"{n}.jsonl") for n in ("problems", "x"))]
    command += ["--model", str(shared / "models/stories260K"), "--max_new_tokens", "9"]
    command += ["--num_samples", "2", "--temperature", "1", "--batch_size", "3"]
    assert main([*command, "--run_code"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-2]) == {"pass@1": 0.0}
    made = read_lines(tmp_path / "x.jsonl", SAMPLE)
    assert [row["task_id"] for row in made] == ["double"] * 2 + ["square"] * 2
    assert len({row["completion"] for row in made}) == 4
