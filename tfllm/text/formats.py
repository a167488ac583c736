"""Reading the tokenizers of others: every file that holds a vocabulary."""

import gzip
import json
from pathlib import Path

from tfllm.core.errors import UserError
from tfllm.text import definition as defs
from tfllm.text.tokenizer import Tokenizer


def load(path: str | Path, *, pad_token: str | None = None, **options) -> Tokenizer:
    """Reads a tokenizer.

    Args:
        path: A directory or a file.
        pad_token: The token for padding; added at the end if it is a new one.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    definition = json.loads(_read(path))
    roles = _configured_roles(path.parent)
    return Tokenizer(definition, roles)


def _configured_roles(directory: Path) -> dict[str, str]:
    file = directory / "tokenizer_config.json"
    if not file.is_file():
        return {}
    settings, roles = json.loads(_read(file)), {}
    for role in defs.ROLE_NAMES:
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token:
            roles[role] = token
    return roles


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read it: {error.strerror or error}", path) from None
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
