"""A linear-chain conditional random field (Lafferty et al., 2001) in `keras.ops`.

A path of tags scores the sum of what each tag gets at its place (emissions) and of what
each tag gets after the one before it (transitions). All sums run in log space and in
float32. The loops are those of Keras' recurrent layers, which train under XLA, on JAX,
and run in a server: places are `[batch, length]`, real ones first.
"""

import keras
import numpy as np
from keras import ops

BLOCKED = -1e4  # the score of what must not be: far below all others, yet finite


class CRF(keras.layers.Layer):
    """Scores of tags to scores of paths, the best path, and how likely it is.

    Args:
        moves: `[K, K]` of bool, whether the second tag may follow the first.
        starts: `[K]` of bool, whether a path may begin with the tag.
        learned: Whether transitions are learned; otherwise only what must not be is
            left out, and the tags of a path are independent but for that.
    """

    def __init__(self, moves, starts, learned=True, **kwargs):
        super().__init__(**kwargs)
        self.moves, self.starts = (
            np.asarray(x, bool).tolist() for x in (moves, starts)
        )
        self.learned = learned

    def build(self, *_):
        """Makes the weights."""
        if self.learned:
            size = len(self.starts)
            shapes = {"transitions": (size, size), "first": (size,), "last": (size,)}
            for name, shape in shapes.items():
                weight = self.add_weight(name=name, shape=shape, initializer="zeros")
                setattr(self, name, weight)

    def call(self, emissions, mask):
        """Decodes.

        Args:
            emissions: `[batch, length, K]`.
            mask: int `[batch, length]`, ones, then zeros.

        Returns:
            What `log_likelihood` takes: `emissions` `[batch, length, K]`, which hold
            the scores of the ends of a path too, and `transitions` `[K, K]`. The best
            path: `tags` int32 `[batch, length]` and its probability `score`
            `[batch]`. The log of the probability of its part from place s to place e
            is `before[s] + along[e] - along[s] + after[e]`, each `[batch, length]`.
        """
        emissions = ops.cast(emissions, "float32")
        mask = ops.cast(mask, "float32")
        transitions = _blocked(self.moves)
        first = ops.pad(
            ops.ones_like(mask[:, :1]), ((0, 0), (0, ops.shape(mask)[1] - 1))
        )
        emissions = emissions + first[..., None] * _blocked(self.starts)
        if self.learned:
            transitions = transitions + ops.cast(self.transitions, "float32")
            last = mask - ops.pad(mask[:, 1:], ((0, 0), (0, 1)))
            emissions = emissions + first[..., None] * ops.cast(self.first, "float32")
            emissions = emissions + last[..., None] * ops.cast(self.last, "float32")
        tags = viterbi(emissions, transitions, mask)
        chances = path_chances(emissions, transitions, mask, tags)
        scores = {"emissions": emissions, "transitions": transitions}
        return scores | {"tags": tags} | chances

    def get_config(self):
        """Returns the constructor's arguments."""
        own = {name: getattr(self, name) for name in ("moves", "starts", "learned")}
        return super().get_config() | own


def log_likelihood(emissions, transitions, mask, tags):
    """Log of the probability of paths, `[batch]`; 0 for rows without a place.

    Args:
        emissions, transitions, mask: See `CRF`.
        tags: int `[batch, length]`; what stands at padding does not count.
    """
    mask = ops.cast(mask, "float32")
    score = path_scores(emissions, transitions, mask, tags)[:, -1]
    return (score - log_partition(emissions, transitions, mask)) * mask[:, 0]


def log_partition(emissions, transitions, mask):
    """Log of the sum over all paths of the exponential of their score, `[batch]`."""
    return ops.logsumexp(_forward(emissions, transitions, mask)[1], axis=-1)


def path_scores(emissions, transitions, mask, tags):
    """The score of paths up to each place, `[batch, length]`."""
    tags = ops.cast(tags, "int32")
    single = ops.take_along_axis(emissions, tags[..., None], axis=-1)[..., 0]
    pairs = tags[:, :-1] * emissions.shape[-1] + tags[:, 1:]
    moves = ops.take(ops.reshape(transitions, (-1,)), pairs)
    return ops.cumsum((single + ops.pad(moves, ((0, 0), (1, 0)))) * mask, axis=1)


def path_chances(emissions, transitions, mask, tags) -> dict:
    """What `CRF` returns of how likely paths and their parts are."""
    alphas, last = _forward(emissions, transitions, mask)

    def step(score, beta):
        return ops.logsumexp(transitions + (score + beta)[:, None, :], axis=-1)

    betas, _ = _loop(
        step, *_following(emissions, mask), ops.zeros_like(last), backwards=True
    )
    place = ops.cast(tags, "int32")[..., None]
    total = ops.logsumexp(last, axis=-1, keepdims=True)
    before = ops.take_along_axis(alphas, place, axis=-1)[..., 0] - total
    after = ops.take_along_axis(ops.flip(betas, axis=1), place, axis=-1)[..., 0]
    along = path_scores(emissions, transitions, mask, tags)
    score = ops.exp((along[:, -1] - total[:, 0]) * mask[:, 0])
    return {"before": before, "along": along, "after": after, "score": score}


def viterbi(emissions, transitions, mask):
    """The path of the highest score: tags int32 `[batch, length]`, 0 at padding."""
    scores, more = _following(emissions, mask)

    def step(score, best):
        ways = best[:, :, None] + transitions
        return ops.max(ways, axis=1) + score, ops.argmax(ways, axis=1)

    def back(pointers, tag):
        return ops.take_along_axis(pointers, ops.cast(tag, "int32"), axis=-1)

    pointers, best = _loop(step, scores, more, emissions[:, 0])
    last = ops.cast(ops.argmax(best, axis=-1), "float32")[:, None]
    # Where nothing follows, a place keeps the tag that the path ends with.
    tags, _ = _loop(back, pointers, more, last, backwards=True)
    return ops.cast(ops.flip(tags[..., 0], axis=1) * mask, "int32")


def _forward(emissions, transitions, mask):
    """Log sums over all paths to each place and tag, and those to the last place."""

    def step(score, alpha):
        return ops.logsumexp(alpha[:, :, None] + transitions, axis=1) + score

    start = emissions[:, 0]
    alphas, last = _loop(step, *_following(emissions, mask), start)
    return ops.concatenate([start[:, None], alphas[:, :-1]], axis=1), last


def _following(emissions, mask):
    """The scores at the next place, and whether there is one."""
    scores = ops.concatenate([emissions[:, 1:], emissions[:, :1]], axis=1)
    return scores, ops.pad(mask[:, 1:], ((0, 0), (0, 1)))


def _loop(step, inputs, more, state, backwards=False):
    """Takes a step a place, where there is one, else the state stays as it is.

    Args:
        step: (input, state) → the new state, perhaps with another output.
        inputs: `[batch, length, size]`.
        more: `[batch, length]`, whether there is a step to take.
        state: float32 `[batch, size]`.
        backwards: Whether to begin at the end.

    Returns:
        The outputs, in the order of the steps, and the last state.
    """

    def masked(both, states):
        found = step(both[:, :-1], states[0])
        new, output = found if isinstance(found, tuple) else (found, None)
        state = ops.where(both[:, -1:] > 0, new, states[0])
        return state if output is None else ops.cast(output, "float32"), [state]

    both = ops.concatenate([inputs, more[..., None]], axis=-1)
    run = keras.src.backend.rnn
    _, outputs, states = run(masked, both, [state], go_backwards=backwards)
    return outputs, states[0]


def _blocked(allowed):
    return ops.convert_to_tensor(np.where(allowed, 0.0, BLOCKED).astype("float32"))
