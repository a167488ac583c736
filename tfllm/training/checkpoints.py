"""Checkpoints that are whole or not there, and the last good one found again.

A checkpoint is a folder `step-NNNNNN` with the weights, everything else that training
changes, and the configuration that made it. It is written beside its place, flushed and
renamed; a list of checksums tells a damaged one, and then the one before it is used.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tfllm.core.console import warn
from tfllm.core.errors import UserError
from tfllm.core.files import atomic_directory, sha256

WEIGHTS, TRAINING = "model.safetensors", "training.safetensors"
ADAPTERS = "adapters.safetensors"
STATE, CONFIG, CHECKSUMS = "state.json", "config.json", "checksums.json"


class Checkpoints:
    """The checkpoints of a run.

    Args:
        directory: The run's `checkpoints/` folder.
        keep: How many of the last ones stay beside `best`.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self.directory, self.keep = Path(directory), keep

    def save(
        self,
        name: str,
        *,
        weights: dict[str, np.ndarray],
        state: dict,
        config: dict,
        training: dict[str, np.ndarray] | None = None,
        adapters: dict[str, np.ndarray] | None = None,
    ) -> Path:
        """Writes `name` (`step-000100` or `best`) and removes what is too old.

        `adapters` are those of the weights that were trained, in a file of their own.

        Raises:
            UserError: If the disk is full or not writable; it names the newest
                checkpoint that is still good.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        path = self.directory / name
        try:
            with atomic_directory(path) as new:
                save_file(_plain(weights), new / WEIGHTS)
                if training is not None:
                    save_file(_plain(training), new / TRAINING)
                if adapters:
                    save_file(_plain(adapters), new / ADAPTERS)
                (new / STATE).write_text(json.dumps(state, indent=1))
                (new / CONFIG).write_text(
                    json.dumps(config, indent=1, ensure_ascii=False), "utf-8"
                )
                sums = {file.name: sha256(file) for file in sorted(new.iterdir())}
                (new / CHECKSUMS).write_text(json.dumps(sums, indent=1))
        except (OSError, SafetensorError) as error:
            raise self.failure(error, path) from None
        if name.startswith("step-"):
            # One that claims to be newer was damaged, or training would be there.
            steps = self._steps()
            here = steps.index(path)
            for old in steps[:here] + steps[here + self.keep :]:
                shutil.rmtree(old, ignore_errors=True)
        return path

    def failure(self, error: Exception, path: str | Path | None) -> UserError:
        """What to say when something could not be written (a full disk, mostly)."""
        last = next(self.good(), None)
        return UserError(
            f"could not be written: {getattr(error, 'strerror', None) or error}",
            path,
            f"The last good checkpoint is {last}" if last else "There is no checkpoint",
        )

    def good(self) -> Iterator[Path]:
        """Undamaged checkpoints, the newest first; a damaged one is told and passed."""
        for path in self._steps():
            problem = damage(path)
            if problem is None:
                yield path
            else:
                warn(f"{path}: {problem}; the checkpoint before it is used")

    def tidy(self) -> None:
        """Removes what a killed process left half-written; brings back what it moved.

        Only between the two renames that replace a checkpoint is there neither the old
        one nor the new one in its place; a process killed right there leaves the old
        one aside.
        """
        for aside in self.directory.glob(".*.old-*/old"):
            place = self.directory / aside.parent.name[1:].split(".old-")[0]
            if not place.exists():
                aside.replace(place)
        for left in self.directory.glob(".*.new-*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self.directory.glob(".*.old-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _steps(self) -> list[Path]:
        named = (
            (int(match[1]), path)
            for path in self.directory.glob("step-*")
            if (match := re.fullmatch(r"step-(\d+)", path.name))
        )
        return [path for _, path in sorted(named, reverse=True)]


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or `None`."""
    try:
        sums = json.loads((path / CHECKSUMS).read_text())
        wrong = [name for name, s in sums.items() if sha256(path / name) != s]
    except (OSError, ValueError, AttributeError) as error:
        return f"damaged ({error})"
    return f"damaged ({', '.join(wrong)} changed)" if wrong else None


def read(path: Path) -> tuple[dict, dict, dict]:
    """Reads a checkpoint: (weights, the rest of the variables, state)."""
    from safetensors.numpy import load_file

    training = path / TRAINING
    return (
        load_file(path / WEIGHTS),
        load_file(training) if training.exists() else {},
        json.loads((path / STATE).read_text()),
    )


def _plain(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Not `ascontiguousarray`, which makes a scalar a vector.
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
