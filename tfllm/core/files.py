"""Files that are whole or not there: atomic writes, hashes, the cache folder."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Writes a file beside its place and renames it, so no reader sees a half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yields a new folder beside `path`; on success it takes the place of `path`.

    An existing `path` is replaced only once the new one is complete; on an error the
    new folder is removed and the old one stays. All files are flushed to the disk
    before the rename, so that a power cut leaves one or the other.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.new-"))
    try:
        os.chmod(new, 0o777 & ~_umask())
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _fsync(file)
        _fsync(new)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old-"))
            os.replace(path, old / "old")
            os.replace(new, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(new, path)
        _fsync(path.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def sha256(content: str | bytes | Path) -> str:
    """Hexadecimal SHA-256 of a text, of bytes, or of the file at a `Path`."""
    if isinstance(content, Path):
        with open(content, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    data = content.encode("utf-8") if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()


def cache_directory() -> Path:
    """The folder for what can be made anew: `$TFLLM_CACHE`, else ~/.cache/tfllm."""
    chosen = os.environ.get("TFLLM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "tfllm"


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
