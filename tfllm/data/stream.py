"""Running text as one stream of token ids, cut into rows for a language model.

Documents stand one after another with an end token behind each, and rows are cut
without regard to them: attention goes across, as in GPT-3 (Brown et al., 2020), where
the end token alone says that what stands before does not matter. No position is padded.
"""

from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

from tfllm.core.console import table, warn
from tfllm.core.errors import UserError
from tfllm.data.batching import Micro
from tfllm.data.cache import ArrayWriter, cached_arrays
from tfllm.data.columns import spans
from tfllm.data.corpus import BLOCK, MOST_UNKNOWN, Documents, no_text, pieces
from tfllm.data.order import shuffled_index
from tfllm.text import Tokenizer


class Stream(NamedTuple):
    """Encoded text, memory-mapped.

    Attributes:
        token_ids: uint16 or int32 [tokens]: an end token, documents with one behind.
        documents: How many there are.
        bytes: Of their text in UTF-8.
        unknown: Tokens that the vocabulary has not.
    """

    token_ids: np.ndarray
    documents: int
    bytes: int
    unknown: int


def encode_stream(documents: Documents, tokenizer: Tokenizer) -> Stream:
    """Encodes documents, or finds what was encoded before.

    Raises:
        UserError: There is no text, or no token that ends one.
    """
    end = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.sep_id
    if end is None:
        raise UserError("the tokenizer has no token that ends a text")
    key = {"stream": 1, "texts": documents.key, "tokenizer": tokenizer.fingerprint}
    dtype = np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.int32

    def write(writer: ArrayWriter) -> None:
        counts = np.zeros(3, np.int64)
        writer.append("token_ids", np.array([end], dtype))
        stream = iter(documents)
        while texts := list(islice(stream, BLOCK)):
            parts = [pieces(text) for text in texts]
            rows = iter(tokenizer.encode([piece for part in parts for piece in part]))
            ids = []
            for part in parts:
                ids += tokenizer.prefix
                for row in islice(rows, len(part)):
                    ids += row
                ids.append(end)
            size = sum(len(text.encode("utf-8", "replace")) for text in texts)
            counts += len(texts), size, ids.count(tokenizer.unk_id)
            writer.append("token_ids", np.array(ids, dtype))
        if not counts[0]:
            raise no_text(documents)
        writer.append("counts", counts)

    found = cached_arrays(key, write)
    return Stream(found["token_ids"], *map(int, found["counts"]))


def describe(streams: Mapping[str, Stream]) -> dict:
    """Shows how large the splits are and how well the tokenizer fits them.

    Returns:
        For data_report.json: split → numbers by name.
    """
    report = {}
    for name, stream in streams.items():
        tokens = len(stream.token_ids) - 1
        facts = {"documents": stream.documents, "bytes": stream.bytes, "tokens": tokens}
        facts["bytes_a_token"] = stream.bytes / tokens
        facts["unknown_share"] = share = stream.unknown / tokens
        report[name] = facts
        if share > MOST_UNKNOWN:
            warn(f"{name}: the tokenizer does not know {share:.1%} of the tokens")
    rows = [[key, *(r[key] for r in report.values())] for key in report["train"]]
    table("Text", ["", *report], rows)
    return report


class BlockColumns:
    """Rows of a stream, each with the token that follows each of its own.

    Args:
        stream: Encoded text.
        length: Tokens of a row.
        copies: Times the rows go through the text, each cut at other places. One copy
            holds every token; of several, each leaves less than two rows out.
        seed: Of these places.
    """

    def __init__(self, stream: Stream, length: int, copies: int = 1, seed: int = 0):
        last = len(stream.token_ids) - 1  # it has no next one
        self.stream, starts = stream, []
        for copy in range(copies):
            first = shuffled_index(copy % length, length, seed) if copies > 1 else 0
            stop = last - length + 1 if copies > 1 and last - first >= length else last
            starts.append(np.arange(first, stop, length))
        self.starts = np.concatenate(starts)
        self.lengths = np.minimum(length, last - self.starts)
        self.bytes_a_token = stream.bytes / last

    def __len__(self) -> int:
        return len(self.starts)

    def gather(
        self, micro: Micro, pad_values: Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """One micro-batch.

        Returns:
            `[rows, length]`: `token_ids`, `targets` and `padding_mask` int32,
            `target_weights` float32; `weight` float32 `[rows]`.
        """
        shape, sizes = (micro.num_rows, micro.length), self.lengths[micro.indices]
        sources = spans(self.starts[micro.indices], sizes)
        places = spans(micro.rows * micro.length, sizes)
        flat = np.full((3, micro.num_rows * micro.length), 0, np.int32)
        flat[:2] = (pad_values or {}).get("token_ids", 0)
        ids = self.stream.token_ids
        flat[:, places] = ids[sources], ids[sources + 1], np.ones_like(sources)
        names = ("token_ids", "targets", "padding_mask")
        batch = {n: row.reshape(shape) for n, row in zip(names, flat, strict=True)}
        batch["target_weights"] = batch["padding_mask"].astype(np.float32)
        batch["weight"] = np.zeros(micro.num_rows, np.float32)
        batch["weight"][micro.rows] = 1
        return batch

    def examples(self, tokenizer: Tokenizer, count: int, prompt: int) -> list[dict]:
        """Rows, evenly chosen: `text`, their first tokens, and `target`, the rest."""
        full = np.flatnonzero(self.lengths == self.lengths.max())
        chosen = full[np.linspace(0, len(full) - 1, min(count, len(full)), dtype=int)]
        rows = [
            self.stream.token_ids[start : start + size]
            for start, size in zip(
                self.starts[chosen], self.lengths[chosen], strict=True
            )
        ]
        heads = tokenizer.decode([row[:prompt] for row in rows])
        tails = tokenizer.decode([row[prompt:] for row in rows])
        pairs = zip(heads, tails, strict=True)
        return [{"text": head, "target": tail} for head, tail in pairs]
