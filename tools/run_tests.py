"""Runs the tests, in an environment that it makes if needed.

python3 tools/run_tests.py               the quick ones, lint, import directions
python3 tools/run_tests.py --slow        the slow ones too (long)
python3 tools/run_tests.py tests/data    arguments go to pytest
"""

import os
import subprocess
import sys

import environment


def main() -> int:
    arguments = sys.argv[1:]
    slow = "--slow" in arguments
    arguments = [a for a in arguments if a != "--slow"]
    python = environment.ensure("all")
    os.chdir(environment.ROOT)
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}
    pytest = [str(python), "-m", "pytest", "-n", str(min(4, os.cpu_count() or 1))]
    pytest += ["--dist", "loadfile"]
    steps = []
    if not arguments:
        steps += [[str(python), "-m", "ruff", "check", "."]]
        steps += [[str(python), "-m", "ruff", "format", "--check", "."]]
        steps += [[str(python.parent / "lint-imports")]]
        arguments = ["--cov=tfllm", "--cov-report=term:skip-covered"]
        arguments += ["--cov-fail-under=85"]
    if slow:
        arguments += ["-m", "slow or not slow"]
    failed = [step for step in steps if subprocess.run(step, env=env).returncode]
    status = subprocess.run([*pytest, *arguments], env=env).returncode
    for step in failed:
        print("failed:", " ".join(step))
    return status or len(failed)


if __name__ == "__main__":
    sys.exit(main())
