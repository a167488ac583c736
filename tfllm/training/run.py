"""The run directory: what was asked for, on which machine, with which data."""

import atexit
import dataclasses
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from tfllm.config import from_dict, read_yaml, to_yaml
from tfllm.core.errors import UserError
from tfllm.core.files import atomic_write

# Flags that may differ between a run and the command that goes on with it.
FREE = {"output_dir", "resume", "export", "export_name", "dry_run", "baseline"}
FREE |= {"compare", "log_steps", "save_minutes", "keep_checkpoints"}


class RunDirectory:
    """A run's folder.

    Args:
        path: The folder.
        resumed: Whether it held a run that goes on.
        shared: The run that all workers see, where `path` is one worker's own.

    Attributes:
        extra: Contents of further files by name, which `write_start` writes too.
    """

    def __init__(
        self, path: str | Path, resumed: bool = False, shared: Path | None = None
    ):
        self.path, self.resumed = Path(path), resumed
        self.shared = shared or self.path
        self.extra: dict[str, str] = {}

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.shared / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end and was evaluated."""
        return (self.shared / "eval" / "results.json").exists()

    def results(self) -> dict:
        """The content of `eval/results.json`."""
        return json.loads((self.shared / "eval" / "results.json").read_text("utf-8"))

    def write_start(self, config, data: list[dict], report=None) -> None:
        """Writes config.yaml, command.txt, environment.json and what the data are like.

        Args:
            config: The recipe's configuration, every default resolved.
            data: A dict a file with `path`, `sha256` and `rows`.
            report: The doctor's `Report`, or facts as a dict.
        """
        atomic_write(self.path / "config.yaml", to_yaml(config))
        atomic_write(self.path / "command.txt", shlex.join(sys.argv) + "\n")
        environment = json.dumps(describe_environment() | {"data": data}, indent=1)
        atomic_write(self.path / "environment.json", environment)
        for name, content in self.extra.items():
            atomic_write(self.path / name, content)
        if isinstance(report, dict):
            facts = json.dumps(report, indent=1)
            atomic_write(self.path / "data_report.json", facts)
        elif report:
            report.save(self.path)

    def check_data(self, data: list[dict]) -> None:
        """Raises a `UserError` if a file is not the one that the run began with."""
        path = self.path / "environment.json"
        before = {f["path"]: f["sha256"] for f in json.loads(path.read_text())["data"]}
        for file in data:
            if before.get(file["path"], file["sha256"]) != file["sha256"]:
                raise UserError(
                    "the file has changed since this run began",
                    file["path"],
                    "Put it back, or start another run with another --output_dir",
                )


def open_run(recipe: str, config, name: str) -> tuple[RunDirectory, object]:
    """Finds the directory of a run and the configuration it goes on with.

    Args:
        recipe: The recipe's name, as in `runs/<recipe>/`.
        config: The parsed flags (`output_dir`, `resume` among them).
        name: Short name for a new run.

    Returns:
        The directory, which is not made yet for a new run, and the configuration: the
        saved one for a run that goes on.

    Raises:
        UserError: If the directory holds something else, or if flags contradict the
            run that would go on.
    """
    goes_on = config.resume not in ("auto", "never")
    worker = worker_number() if config.strategy == "multi_worker" else 0
    if config.strategy == "multi_worker" and not (goes_on or config.output_dir):
        raise UserError(
            "with --strategy multi_worker all workers share one run",
            fix="Name the same --output_dir for each, on a file system they share",
        )
    if goes_on and config.output_dir not in (None, config.resume):
        raise UserError("--resume DIR and --output_dir name two directories")
    chosen = config.resume if goes_on else config.output_dir
    if chosen is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        name = re.sub(r"[^\w.-]+", "-", name).strip("-")
        return RunDirectory(Path("runs") / recipe / f"{stamp}-{name}"), config
    path = Path(chosen)
    if worker:
        return _as_worker(config, path)
    if path.exists() and not path.is_dir():
        raise UserError("--output_dir is a file", path, "Name a directory")
    saved = path / "config.yaml"
    if not saved.exists():
        if goes_on:
            raise UserError("there is no run to go on with", path)
        if path.is_dir() and any(path.iterdir()):
            raise UserError(
                "the directory is not empty and holds no run",
                path,
                "Choose another --output_dir",
            )
        return RunDirectory(path), config
    if config.resume == "never":
        raise UserError(
            "the directory already holds a run",
            path,
            "Choose another --output_dir, or leave out --resume never to go on",
        )
    return RunDirectory(path, resumed=True), _agree(config, saved)


def worker_number() -> int:
    """This process's place among the workers of `TF_CONFIG`; 0 is the chief."""
    try:
        settings = json.loads(os.environ["TF_CONFIG"])
        task, cluster = settings["task"], settings["cluster"]
        chiefs = len(cluster.get("chief", []))
        return 0 if task["type"] == "chief" else int(task["index"]) + chiefs
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(
            "--strategy multi_worker needs the environment variable TF_CONFIG",
            fix="docs/distributed.md shows what stands in it",
        ) from None


def _as_worker(config, path: Path) -> tuple[RunDirectory, object]:
    """What a worker that is not the chief writes goes to a folder that is thrown away.

    It reads the shared run's checkpoints, and its configuration once there is a
    checkpoint: before that, the chief may not have written it yet.
    """
    own = tempfile.TemporaryDirectory(prefix="tfllm-worker-")
    atexit.register(own.cleanup)
    if any(path.glob("checkpoints/step-*")) and (path / "config.yaml").exists():
        config = _agree(config, path / "config.yaml")
    return RunDirectory(own.name, shared=path), config


def _agree(config, saved: Path):
    """The saved configuration, unless flags given now contradict it."""
    cls = type(config)
    before = from_dict(cls, read_yaml(cls, saved), where=saved)
    plain, keep, different = cls(), {}, []
    for field in dataclasses.fields(cls):
        name = field.name
        now, then = getattr(config, name), getattr(before, name)
        if name in FREE:
            keep[name] = now
        elif now not in (getattr(plain, name), None, then):
            different.append(f"--{name} {then} then, {now} now")
    if different:
        raise UserError(
            f"the run began with other flags: {'; '.join(different)}",
            saved.parent,
            "Give the same ones, or another --output_dir",
        )
    return dataclasses.replace(before, **keep)


def describe_environment() -> dict:
    """Versions, machine and git commit: what one needs to run it again."""
    packages = ["tensorflow", "keras", "keras-nlp", "tensorflow-text", "tokenizers"]
    packages += ["numpy", "jax"]
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    from tfllm import __version__

    return {
        "tfllm": __version__,
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "device": cpu_name(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def cpu_name() -> str:
    """Name and number of the processors this process may use."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return f"{name}, {cores or os.cpu_count()} cores"


def _git(*arguments: str) -> str | None:
    """Asks git about the checkout that holds this package; `None` without one."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None
