"""Makes the checkout's virtual environment; standard library only.

Used by quickstart.py and run_tests.py. Set TFLLM_VENV to have it elsewhere than .venv.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def ensure(extras: str) -> Path:
    """Makes the environment and installs tfllm[extras] into it, unless it is there.

    Returns:
        Its Python.
    """
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"tfllm needs Python 3.11 to 3.13, this is {found} ({sys.executable})")
    venv = Path(os.environ.get("TFLLM_VENV", ROOT / ".venv")).absolute()
    folder = "Scripts" if os.name == "nt" else "bin"
    python = venv / folder / "python"
    files = (ROOT / "setup.py").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    wanted = hashlib.sha256(files + extras.encode()).hexdigest()
    done = venv / f".tfllm-{extras.replace(',', '-')}"
    if done.exists() and done.read_text() == wanted and python.exists():
        return python
    if not python.exists():
        print(f"Making {venv}", flush=True)
        _run([sys.executable, "-m", "venv", str(venv)], "python -m venv failed")
    print(f"Installing tfllm[{extras}] (a few minutes the first time)", flush=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    _run([*pip, "-e", f"{ROOT}[{extras}]"], "pip could not install; see above")
    done.write_text(wanted)
    return python


def _run(command: list[str], problem: str) -> None:
    # Warnings of pip about its own settings help nobody here.
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\nerror: {problem}")
