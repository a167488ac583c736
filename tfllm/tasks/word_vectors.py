"""Vectors of words from the words around them: skip-gram, CBOW and GloVe, in NumPy.

A step of `training.trainer_tf` moves every row of a table; here a block of running text
moves only the rows of its words. What makes it fast is that a block is looked up once:
the scores of all pairs within a window are the band of a matrix product of the block's
own rows, cut into chunks, and the words of a chunk share what they are told apart from
(Ji et al., 2016). Everything is a pure function of the seed and the block's number.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tfllm.core.errors import UserError
from tfllm.data.order import shuffled
from tfllm.data.stream import Stream
from tfllm.text import Tokenizer
from tfllm.text.flags import LETTER

METHODS = ("skip_gram", "cbow", "glove")
CHUNK = 32  # words of a block that share negative samples, and as many of these
X_MAX, ALPHA = 10.0, 0.75  # GloVe's weights, as its authors set them for small text
PIECE = 1 << 20  # words whose pairs are counted at once
HELD_OUT = 1 << 16  # words of held-out text that are measured
Tables = dict[str, np.ndarray]


@dataclass
class Words:
    """Running text as numbers of words.

    Attributes:
        ids: int32 `[words]`.
        documents: int32 `[words]`, which document each stands in.
    """

    ids: np.ndarray
    documents: np.ndarray

    @classmethod
    def of(cls, stream: Stream, tokenizer: Tokenizer) -> "Words":
        """Those of encoded text; what has no letter or digit is left out.

        Raises:
            UserError: There are no two words.
        """
        ids = np.asarray(stream.token_ids, np.int32)
        kept = word_mask(tokenizer)[ids]
        if np.count_nonzero(kept) < 2:
            raise UserError("there are no words in the text")
        documents = np.cumsum(
            ids == ids[0], dtype=np.int32
        )  # an end token stands first
        return cls(ids[kept], documents[kept])

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, begin: int, size: int) -> "Words":
        """So many words from one on."""
        end = begin + size
        return Words(self.ids[begin:end], self.documents[begin:end])


def word_mask(tokenizer: Tokenizer) -> np.ndarray:
    """bool `[vocabulary_size]`: which tokens are words."""
    special = set(tokenizer.special_ids)
    return np.array(
        [
            i not in special and bool(LETTER.search(token))
            for i, token in enumerate(tokenizer.tokens)
        ]
    )


@dataclass
class WordVectors:
    """How vectors of words are learned.

    Args:
        vocabulary_size: Rows of the tables.
        words: Training text.
        method: `skip_gram` or `cbow` with negative sampling (Mikolov et al., 2013), or
            `glove` (Pennington et al., 2014).
        size: Numbers of a vector.
        window: Farthest words that are seen; each word draws its own reach up to it.
        negatives: Negative samples of a pair.
        subsample: Words are left out the more often, the more their share of the text
            is above this; 0: none.
        block: Words of a block, or pairs (GloVe).
        seed: Of everything that is drawn.
    """

    vocabulary_size: int
    words: Words
    method: str = "skip_gram"
    size: int = 100
    window: int = 5
    negatives: int = 5
    subsample: float = 1e-3
    block: int = 2048
    seed: int = 0

    def tables(self) -> Tables:
        """The arrays that training begins with."""
        draw = np.random.default_rng([self.seed, 1])
        shape = (self.vocabulary_size, self.size + (self.method == "glove"))
        inside = ((draw.random(shape, np.float32) - 0.5) / self.size).astype("float32")
        outside = np.zeros(shape, np.float32)
        if self.method == "glove":
            outside = (draw.random(shape, np.float32) - 0.5) / np.float32(self.size)
        tables = {"inside": inside, "outside": outside}
        return tables | {f"{k}_squares": np.ones(shape, "float32") for k in tables}

    def vectors(self, tables: Tables) -> np.ndarray:
        """What the tables say of the words, float32 `[vocabulary_size, size]`."""
        if self.method == "glove":
            return (tables["inside"] + tables["outside"])[:, : self.size]
        return tables["inside"]

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each word stands in the text."""
        return np.bincount(self.words.ids, minlength=self.vocabulary_size)

    @cached_property
    def noise(self) -> np.ndarray:
        """The distribution function of negative samples: counts to the power 3/4."""
        sums = np.cumsum(self.counts**0.75)
        return sums / sums[-1]

    @cached_property
    def kept(self) -> np.ndarray:
        """How often each word stays, as word2vec has it; a share."""
        if not self.subsample:
            return np.ones(self.vocabulary_size)
        ratio = self.subsample * len(self.words) / np.maximum(1, self.counts)
        return np.minimum(1, np.sqrt(ratio) + ratio)

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """GloVe's words, words near them, and how often, nearer ones counting more."""
        return count_pairs(self.words, self.window, self.vocabulary_size)

    @property
    def blocks(self) -> int:
        """Blocks of an epoch."""
        glove = self.method == "glove"
        return -(-len(self.pairs[0] if glove else self.words) // self.block)

    def step(self, tables: Tables, number: int, rate: float) -> dict:
        """Learns from a block; moves the tables.

        Args:
            tables: What `tables` made.
            number: The block's number, over all epochs.
            rate: Learning rate.

        Returns:
            `loss`, the mean over pairs; `tokens`, words (pairs for GloVe) of the block;
            `grad_norm`.
        """
        epoch, place = divmod(number, self.blocks)
        if self.method == "glove":
            if getattr(self, "_epoch", None) != epoch:
                self._order = shuffled(len(self.pairs[0]), self.seed, epoch)
                self._epoch = epoch
            chosen = self._order[place * self.block : (place + 1) * self.block]
            loss, grads = glove_gradients(tables, *(x[chosen] for x in self.pairs))
            tokens = count = len(chosen)
        else:
            place = int(shuffled(self.blocks, self.seed, epoch)[place])
            begin = place * self.block
            loss, count, grads, tokens = self._text(
                tables, self.words, begin, [self.seed, 2, epoch, place]
            )
        squares = 0.0
        for name, (rows, grad) in grads.items():
            rows, grad = summed(rows, grad)
            squares += float(np.vdot(grad, grad))
            # AdaGrad (Duchi et al., 2011), as GloVe has it. Plain steps, as word2vec
            # takes them word by word, diverge where a block has a word many times.
            sums = tables[f"{name}_squares"]
            sums[rows] += grad * grad
            tables[name][rows] -= np.float32(rate) * grad / np.sqrt(sums[rows])
        return {
            "loss": loss / max(1, count),
            "tokens": tokens,
            "grad_norm": squares**0.5,
        }

    def _text(self, tables: Tables, words: Words, begin: int, seeds: list[int]):
        draw = np.random.default_rng(seeds)
        part = words.part(begin, self.block)
        ids, documents, size = part.ids, part.documents, len(part)
        stays = draw.random(size) < self.kept[ids]
        ids, documents = ids[stays], documents[stays]
        rest = -len(ids) % CHUNK if len(ids) else CHUNK
        ids = np.append(ids, np.zeros(rest, ids.dtype))
        documents = np.append(documents, np.arange(-1, -1 - rest, -1))  # each alone
        reach = draw.integers(1, self.window + 1, len(ids))
        drawn = np.searchsorted(self.noise, draw.random(len(ids)), side="right")
        inside, outside = tables["inside"], tables["outside"]
        learn = cbow_gradients if self.method == "cbow" else skip_gram_gradients
        loss, count, first, second, noise = learn(
            inside[ids],
            outside[ids],
            outside[drawn],
            *(reach, documents, self.window, self.negatives),
        )
        both = np.append(ids, drawn), np.concatenate([second, noise])
        return loss, count, {"inside": (ids, first), "outside": both}, size

    def loss(self, tables: Tables, words: Words) -> float:
        """Mean loss of the pairs of other text, always with the same samples."""
        if self.method == "glove":
            part = words.part(0, PIECE)
            pairs = count_pairs(part, self.window, self.vocabulary_size)
            return glove_gradients(tables, *pairs)[0] / max(1, len(pairs[0]))
        sums = np.zeros(2)
        for begin in range(0, min(len(words), HELD_OUT), self.block):
            sums += self._text(tables, words, begin, [0, begin])[:2]
        return float(sums[0] / max(1, sums[1]))


def skip_gram_gradients(
    first, second, noise, reach, documents, window: int, negatives: int
) -> tuple:
    """Loss and gradients of a block: each word tells the words around it.

    The loss of a word i near a word j is `-log s(u_i · v_j)` and `-log s(-u_i · v_n)`
    for each negative sample n; the mean over a chunk's samples times `negatives` stands
    for as many of one's own.

    Args:
        first: Vectors u of the words `[T, size]`, T a multiple of `CHUNK`.
        second: Their vectors v `[T, size]`.
        noise: Vectors v of the negative samples `[T, size]`, a chunk's in its place.
        reach: int `[T]`, how far word j is told from.
        documents: int `[T]`; pairs are of one document.
        window: The farthest reach.
        negatives: Samples a pair.

    Returns:
        Sum of losses, number of pairs, and the gradients of the first three arguments.
    """
    near = _near(reach, documents, window)
    cut = first.reshape(-1, CHUNK, first.shape[1])
    around = _around(second, window)
    other = noise.reshape(cut.shape)
    score, grad = _logistic(np.matmul(cut, around.transpose(0, 2, 1)), 1)
    pairs = near.sum(-1, dtype=np.float32)
    weight = (pairs * np.float32(negatives / CHUNK))[..., None]
    noise_score, noise_grad = _logistic(np.matmul(cut, other.transpose(0, 2, 1)), 0)
    loss = np.vdot(score, near) + np.sum(noise_score.sum(-1, keepdims=True) * weight)
    grad *= near
    noise_grad *= weight
    shape = first.shape
    return (
        float(loss),
        int(pairs.sum()),
        (np.matmul(grad, around) + np.matmul(noise_grad, other)).reshape(shape),
        _back(np.matmul(grad.transpose(0, 2, 1), cut), window),
        np.matmul(noise_grad.transpose(0, 2, 1), cut).reshape(shape),
    )


def cbow_gradients(
    first, second, noise, reach, documents, window: int, negatives: int
) -> tuple:
    """As `skip_gram_gradients`: the mean of the words around tells the word itself."""
    near = _near(reach, documents, window, rows=True)
    shape = (-1, CHUNK, first.shape[1])
    other, own = noise.reshape(shape), second.reshape(shape)
    count = near.sum(-1, keepdims=True, dtype=np.float32)
    near /= np.maximum(1, count)
    there = (count > 0).astype(np.float32)
    mean = np.matmul(near, _around(first, window))
    score, grad = _logistic(np.sum(mean * own, -1, keepdims=True), 1)
    noise_score, noise_grad = _logistic(np.matmul(mean, other.transpose(0, 2, 1)), 0)
    weight = there * np.float32(negatives / CHUNK)
    loss = np.vdot(score, there) + np.sum(noise_score.sum(-1, keepdims=True) * weight)
    grad *= there
    noise_grad *= weight
    inner = grad * own + np.matmul(noise_grad, other)
    return (
        float(loss),
        int(there.sum()),
        _back(np.matmul(near.transpose(0, 2, 1), inner), window),
        (grad * mean).reshape(first.shape),
        np.matmul(noise_grad.transpose(0, 2, 1), mean).reshape(first.shape),
    )


def glove_gradients(tables: Tables, words, others, counts) -> tuple[float, dict]:
    """Loss, half the weighted squared error of log counts, and gradients by table."""
    first, second = tables["inside"][words], tables["outside"][others]
    size = first.shape[1] - 1  # the last number of a row is its bias
    guess = np.einsum("ij,ij->i", first[:, :size], second[:, :size])
    off = guess + first[:, size] + second[:, size] - np.log(counts)
    weighted = np.minimum(1, (counts / X_MAX) ** ALPHA) * off
    grads = []
    for vectors in (second, first):
        vectors[:, size] = 1
        grads.append(vectors * weighted[:, None])
    loss = 0.5 * float(np.vdot(weighted, off))
    return loss, {"inside": (words, grads[0]), "outside": (others, grads[1])}


def count_pairs(words: Words, window: int, vocabulary_size: int) -> tuple:
    """How often words stand near each other, 1/d for a distance of d.

    Returns:
        int64 words, int64 words near them, float32 counts; both orders of each pair.
    """
    keys, sums = np.zeros(0, np.int64), np.zeros(0)
    for begin in range(0, len(words), PIECE):
        part = words.part(begin, PIECE + window)
        ids, documents = part.ids.astype(np.int64), part.documents
        parts, weights = [keys], [sums]
        for distance in range(1, min(window, len(ids) - 1) + 1):
            most = min(PIECE, len(ids) - distance)
            near = documents[:most] == documents[distance : distance + most]
            a, b = ids[:most][near], ids[distance : distance + most][near]
            parts += [a * vocabulary_size + b, b * vocabulary_size + a]
            weights += [np.full(len(a), 1 / distance)] * 2
        keys, inverse = np.unique(np.concatenate(parts), return_inverse=True)
        sums = np.bincount(inverse, np.concatenate(weights), len(keys))
    return (*np.divmod(keys, vocabulary_size), sums.astype(np.float32))


def summed(rows: np.ndarray, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows, and the sum of the gradients of each."""
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    return rows[starts], np.add.reduceat(grad[order], starts, axis=0)


def _logistic(scores: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy and its slope."""
    small = np.exp(-np.abs(scores))
    rest = np.where(scores >= 0, 1, small) / (1 + small)  # the logistic function
    losses = np.log1p(small) + np.maximum(-scores if target else scores, 0)
    return losses, rest - np.float32(target)


def _around(rows: np.ndarray, window: int) -> np.ndarray:
    """For each chunk the rows from `window` before to `window` after it; no copy."""
    wide = np.zeros((len(rows) + 2 * window, rows.shape[1]), rows.dtype)
    wide[window : window + len(rows)] = rows
    view = np.lib.stride_tricks.sliding_window_view(wide, CHUNK + 2 * window, axis=0)
    return view[::CHUNK].transpose(0, 2, 1)


def _back(parts: np.ndarray, window: int) -> np.ndarray:
    """Sums `_around`'s rows where they come from; `[T, size]`."""
    chunks, wide, size = parts.shape
    whole = np.zeros((chunks * CHUNK + wide, size), parts.dtype)
    for begin in range(0, wide, CHUNK):
        width = min(CHUNK, wide - begin)
        places = whole[begin : begin + chunks * CHUNK].reshape(chunks, CHUNK, size)
        places[:, :width] += parts[:, begin : begin + width]
    return whole[window : window + chunks * CHUNK]


def _near(reach, documents, window: int, rows=False) -> np.ndarray:
    """1 where a chunk's word and one around it are a pair `[chunks, CHUNK, wide]`.

    The reach is that of the word around or, with `rows`, that of the chunk's word.
    """
    distance = np.abs(
        np.arange(CHUNK + 2 * window) - window - np.arange(CHUNK)[:, None]
    )
    wide = {"reach": reach, "documents": documents}
    filled = {"reach": 0, "documents": -(1 << 30)}
    for name, values in wide.items():
        padded = np.pad(values, window, constant_values=filled[name])
        view = np.lib.stride_tricks.sliding_window_view(padded, CHUNK + 2 * window)
        wide[name] = view[::CHUNK, None]
    far = reach.reshape(-1, CHUNK, 1) if rows else wide["reach"]
    near = (distance > 0) & (distance <= far)
    near &= documents.reshape(-1, CHUNK, 1) == wide["documents"]
    return near.astype(np.float32)
