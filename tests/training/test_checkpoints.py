"""Checkpoints: whole or not there, damaged ones noticed."""

import errno

import numpy as np
import pytest

from tfllm.core.errors import UserError
from tfllm.core.files import atomic_directory
from tfllm.training import checkpoints as module
from tfllm.training.checkpoints import Checkpoints, read


def save(checkpoints, name, value):
    return checkpoints.save(
        name,
        weights={"a/kernel": np.full((2, 3), value, "float32")},
        training={"optimizer/0": np.int64(value)},
        state={"step": value},
        config={"task": "t"},
    )


def test_round_trip_and_retention(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        save(checkpoints, f"step-{step:06d}", step)
    save(checkpoints, "best", 2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best", "step-000003", "step-000010"]
    weights, training, state = read(next(checkpoints.good()))
    assert weights["a/kernel"].tolist() == [[10.0] * 3] * 2
    assert training["optimizer/0"].shape == () and training["optimizer/0"] == 10
    assert state == {"step": 10}


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: (path / "model.safetensors").write_bytes(b"half"),
        lambda path: (path / "training.safetensors").unlink(),
        lambda path: (path / "checksums.json").write_text("{"),
        lambda path: (path / "state.json").write_text('{"step": 99}'),
    ],
)
def test_a_damaged_one_is_passed_over(tmp_path, harm, capsys):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, "step-000001", 1)
    harm(save(checkpoints, "step-000002", 2))
    assert next(checkpoints.good()).name == "step-000001"
    assert "step-000002" in capsys.readouterr().out


def test_full_disk_keeps_the_last_good_one(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, "step-000001", 1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(UserError, match=r"No space left.*step-000001"):
        save(checkpoints, "step-000002", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_tidy_after_a_kill_between_two_renames(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, "best", 1)
    # What SIGKILL leaves right after the old `best` was moved away.
    aside = tmp_path / ".best.old-x"
    aside.mkdir()
    (tmp_path / "best").rename(aside / "old")
    (tmp_path / ".step-000007.new-y").mkdir()
    checkpoints.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert module.damage(tmp_path / "best") is None


def test_atomic_directory_leaves_nothing_after_an_error(tmp_path):
    place = tmp_path / "there"
    with atomic_directory(place) as new:
        (new / "file").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(place) as new:
        (new / "file").write_text("new")
        raise RuntimeError
    assert (place / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
