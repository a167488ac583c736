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


def start(
    network: Network,
    prompts,
    space,
    scored: bool = False,
    context: Cache = (),
    beams: Beams | None = None,
) -> State:
    """Reads the prompts.

    Args:
        network: The decoder.
        prompts: int32 `[batch, slots]`, ends aligned, -1 before a prompt; as many slots
            as `padded_length` says.
        space: int32 scalar, slots for tokens to be made.
        scored: Whether `scores` gets the log-probability of every token of the prompts
            but the first.
        context: What a `PairNetwork` made of the sources.
        beams: For beam search: each row stands `width` times in the batch.
    """
    rows, slots = tf.unstack(tf.shape(prompts))
    kept = ()
    if beams is not None:
        kept = beams.begin(rows, slots + space)
        rows *= beams.width
        prompts, *context = (tf.repeat(x, beams.width, 0) for x in (prompts, *context))
    space += network.reach - 1  # slots of guesses that did not stand
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
        (zero, scores, network.empty(rows, capacity) + tuple(context)),
        parallel_iterations=1,
    )
    history = tf.pad(tf.transpose(prompts), [[0, space], [0, 0]], constant_values=-1)
    done = tf.zeros([rows], tf.bool)
    return State(first, first, history, padding, done, scores, caches, kept)


def advance(
    network: Network,
    state: State,
    settings: dict,
    ends,
    count,
    scored: bool = False,
    beams: Beams | None = None,
) -> State:
    """Makes `count` more tokens, or as many as are left; a draft may make a few more.

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
    limit = tf.minimum(state.slot + count, capacity - network.reach)
    forced, limits = settings.get("forced"), settings["max_new_tokens"]
    if forced is not None:
        space = [[0, 0], [0, capacity]]
        forced = tf.transpose(tf.pad(forced, space, constant_values=-1))

    def adjusted(logits, history):
        logits = penalised(logits, history, first, settings)
        return logits + settings["bias"] if "bias" in settings else logits

    def choose(logits, slot):
        tokens = chosen(logits, slot - first, settings)
        if forced is None:
            return tokens
        return tf.where(forced[slot - first] >= 0, forced[slot - first], tokens)

    def keep(logits, slot, history, done, scores):
        """Adds the next tokens."""
        logits = adjusted(logits, history)
        tokens, slot = choose(logits, slot), slot + 1
        if scored:
            found = -tf.nn.sparse_softmax_cross_entropy_with_logits(tokens, logits)
            found = tf.where(done, 0.0, found)[None]
            scores = tf.tensor_scatter_nd_update(scores, [[slot]], found)
        tokens = tf.where(done, -1, tokens)
        ended = tf.reduce_any(tokens[:, None] == ends, 1)
        done = done | ended | (slot - first >= limits)
        history = tf.tensor_scatter_nd_update(history, [[slot]], tokens[None])
        return slot, history, done, scores

    def turn(slot, history, done, scores, caches, kept):
        tokens = tf.gather(history, slot)[:, None]
        hidden, caches = network.run(tokens, slot, padding, capacity, caches, True)
        logits = network.logits(hidden)
        if beams is None:
            return *keep(logits, slot, history, done, scores), caches, kept
        logits, made = adjusted(logits, history), slot - first
        slot += 1
        parents, tokens, done, kept = beams.choose(
            logits, slot, made, history, done, kept, limits, ends
        )
        history = tf.gather(history, parents, axis=1)
        history = tf.tensor_scatter_nd_update(history, [[slot]], tokens[None])
        moved = tuple(
            tf.reshape(
                tf.gather(tf.reshape(c, [tf.size(parents), -1]), parents), tf.shape(c)
            )
            for c in caches[: network.caches]
        )  # a row's beams have the same context
        caches = moved + caches[network.caches :]
        return slot, history, done, scores, caches, kept

    def round_(begin, history, done, scores, caches, kept):
        """Several tokens: guesses that the network chooses, too, and one of its own."""
        logits, guesses, caches = network.look_ahead(
            history, begin, padding, capacity, caches,
            lambda x, slot, history: choose(adjusted(x, history), slot),
        )  # fmt: skip

        def judge(slot, history, done, scores, stood):
            here = tf.gather(logits, slot - begin, axis=1)
            slot, history, done, scores = keep(here, slot, history, done, scores)
            stood = tf.reduce_all(done | (history[slot] == guesses[slot]))
            return slot, history, done, scores, stood

        *made, _ = tf.while_loop(
            lambda slot, history, done, scores, stood: (
                stood & (slot < begin + network.reach) & ~tf.reduce_all(done)
            ),
            judge,
            (begin, history, done, scores, tf.constant(True)),
            parallel_iterations=1,
        )
        return *made, caches, kept

    done = state.done | (limits <= 0)
    slot, history, done, scores, caches, kept = tf.while_loop(
        lambda slot, history, done, *_: (slot < limit) & ~tf.reduce_all(done),
        turn if network.reach == 1 else round_,
        (state.slot, state.history, done, state.scores, state.caches, state.beams),
        parallel_iterations=1,
    )
    return State(slot, first, history, padding, done, scores, caches, kept)
