"""The decoding loop: one `while` in the graph, for Python, the server and XLA alike.

A prompt is read but for its last token; then each turn of the loop reads one token and
chooses the next. All that a later call wants to go on is in `State`.
"""

from typing import NamedTuple

import tensorflow as tf

from tfllm.generation.beam_tf import Beams
from tfllm.generation.network_tf import Cache, Network
from tfllm.generation.sampling_tf import chosen, penalised

CHUNK = 128  # tokens of a prompt that are read at once, which bounds the memory
BUCKET = 16  # prompts are padded to multiples of it, so that few shapes occur


class State(NamedTuple):
    """Where decoding stands.

    Attributes:
        slot: int32 scalar, the slot of the last token.
        first: int32 scalar, the slot of a prompt's last token.
        history: int32 `[slots, batch]`: the tokens, -1 where there is none: before a
            prompt, after an end, and where nothing was made yet.
        padding: int32 `[batch]`, empty slots before a prompt.
        done: bool `[batch]`.
        scores: float32 `[slots, batch]`, log-probabilities of tokens that were made.
        caches: Keys and values.
        beams: What beam search keeps.
    """

    slot: tf.Tensor
    first: tf.Tensor
    history: tf.Tensor
    padding: tf.Tensor
    done: tf.Tensor
    scores: tf.Tensor
    caches: Cache
    beams: tuple = ()


def padded_length(longest):
    """How many slots prompts take that have at most so many tokens.

    All but the last token are read in equal chunks.
    """
    rest = tf.maximum(longest - 1, 1)
    unit = tf.where(rest > CHUNK, CHUNK, BUCKET)
    return (rest + unit - 1) // unit * unit + 1


def start(network: Network, prompts, space, scored: bool = False) -> State:
    """Reads the prompts.

    Args:
        network: The decoder.
        prompts: int32 `[batch, slots]`, ends aligned, -1 before a prompt; as many slots
            as `padded_length` says.
        space: int32 scalar, slots for tokens to be made.
        scored: Whether `scores` gets the log-probability of every token of the prompts
            but the first.
    """
    rows, slots = tf.unstack(tf.shape(prompts))
    first, capacity = slots - 1, slots + space
    chunk = tf.where(first > CHUNK, CHUNK, first)
    padding = tf.reduce_sum(tf.cast(prompts < 0, tf.int32), 1)
    scores = tf.zeros([capacity, rows])

    def turn(slot, scores, caches):
        tokens = tf.slice(prompts, [0, slot], [rows, chunk])
        hidden, caches = network.run(tokens, slot, padding, capacity, caches)
        if scored:
            logits = network.logits(hidden)
            target = tf.slice(prompts, [0, slot + 1], [rows, chunk])
            target = tf.maximum(target, 0)
            found = -tf.nn.sparse_softmax_cross_entropy_with_logits(
                tf.reshape(target, [-1]), logits
            )
            found = tf.reshape(found, [rows, chunk])
            real = slot + tf.range(chunk) >= padding[:, None]
            found = tf.transpose(tf.where(real, found, 0.0))
            lines = slot + 1 + tf.range(chunk)
            scores = tf.tensor_scatter_nd_update(scores, lines[:, None], found)
        return slot + chunk, scores, caches

    zero = tf.constant(0)
    _, scores, caches = tf.while_loop(
        lambda slot, *_: slot < first,
        turn,
        (zero, scores, network.empty(rows, capacity)),
        parallel_iterations=1,
    )
    history = tf.pad(tf.transpose(prompts), [[0, space], [0, 0]], constant_values=-1)
    done = tf.zeros([rows], tf.bool)
    return State(first, first, history, padding, done, scores, caches)


def advance(
    network: Network,
    state: State,
    settings: dict,
    ends,
    count,
    scored: bool = False,
    beams: Beams | None = None,
) -> State:
    """Makes up to `count` more tokens.

    Args:
        network: The decoder.
        state: From `start`, or from here.
        settings: Tensors by name: `max_new_tokens` int32 `[batch]`, those of
            `sampling_tf`, `bias` float32 `[batch or 1, vocabulary]` to be added to the
            logits, and `forced` int32 `[batch, n]`, the tokens that an answer begins
            with, -1 behind them.
        ends: int32 `[n]`, tokens that end a row.
        count: int32 scalar.
        scored: Whether to keep log-probabilities.
        beams: For beam search, whose rows stand `width` times in the batch.
    """
    first, padding = state.first, state.padding
    capacity = tf.shape(state.history)[0]
    limit = tf.minimum(state.slot + count, capacity - 1)
    forced, limits = settings.get("forced"), settings["max_new_tokens"]
    if forced is not None:
        space = [[0, 0], [0, capacity]]
        forced = tf.transpose(tf.pad(forced, space, constant_values=-1))

    def turn(slot, history, done, scores, caches, kept):
        tokens = tf.gather(history, slot)
        hidden, caches = network.run(
            tokens[:, None], slot, padding, capacity, caches, single=True
        )
        logits, made = network.logits(hidden), slot - first
        logits = penalised(logits, history, first, settings)
        if "bias" in settings:
            logits += settings["bias"]
        slot += 1
        if beams is not None:
            parents, tokens, done, kept = beams.choose(
                logits, slot, made, history, done, kept, limits, ends
            )
            history = tf.gather(history, parents, axis=1)
            caches = tuple(
                tf.reshape(
                    tf.gather(tf.reshape(c, [tf.size(parents), -1]), parents),
                    tf.shape(c),
                )
                for c in caches
            )
        else:
            tokens = chosen(logits, made, settings)
            if forced is not None:
                tokens = tf.where(forced[made] >= 0, forced[made], tokens)
            if scored:
                found = -tf.nn.sparse_softmax_cross_entropy_with_logits(tokens, logits)
                found = tf.where(done, 0.0, found)[None]
                scores = tf.tensor_scatter_nd_update(scores, [[slot]], found)
            tokens = tf.where(done, -1, tokens)
            ended = tf.reduce_any(tokens[:, None] == ends, 1)
            done = done | ended | (made + 1 >= limits)
        history = tf.tensor_scatter_nd_update(history, [[slot]], tokens[None])
        return slot, history, done, scores, caches, kept

    done = state.done | (limits <= 0)
    slot, history, done, scores, caches, kept = tf.while_loop(
        lambda slot, history, done, *_: (slot < limit) & ~tf.reduce_all(done),
        turn,
        (state.slot, state.history, done, state.scores, state.caches, state.beams),
        parallel_iterations=1,
    )
    return State(slot, first, history, padding, done, scores, caches, kept)
