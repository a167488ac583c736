"""Speculative decoding: a small model guesses, the large one reads guesses at once.

As in Leviathan et al. (2023) the large model reads several guessed tokens for the price
of one; what differs is how a guess is judged. Both models choose by the same settings
and the same random number of a row and position (`sampling_tf.uniforms`), and a guess
stands where it is what the large model chooses itself (Daliri et al., 2024). So the
draft changes how fast an answer comes and never the answer, drawn or not, whatever else
is in the batch. Drawn at a high temperature fewer guesses stand than their rule keeps.

Rows go on together: a round ends at the first guess that does not stand in a row that
is still open. Guess number `reach` is judged like the others and nothing is added to
it, so both models have read the same slots at the end of a round, and one counter
serves both caches.
"""

import tensorflow as tf

from tfllm.generation.network_tf import Cache, Network


class Drafted:
    """A network with another one that guesses; stands where a `Network` does.

    Args:
        network: Whose answers are wanted.
        draft: Guesses; has the same vocabulary.
        reach: Tokens that are guessed at a time.
    """

    def __init__(self, network: Network, draft: Network, reach: int):
        self.network, self.draft, self.reach = network, draft, reach
        self.vocabulary_size, self.logits = network.vocabulary_size, network.logits

    def empty(self, rows, capacity) -> Cache:
        """Empty caches, the draft's behind the network's."""
        return sum((n.empty(rows, capacity) for n in (self.network, self.draft)), ())

    def run(self, tokens, start, padding, capacity, caches):
        """`Network.run` of both; hidden states are the network's."""
        own, others = self._split(caches)
        hidden, own = self.network.run(tokens, start, padding, capacity, own)
        _, others = self.draft.run(tokens, start, padding, capacity, others)
        return hidden, own + others

    def look_ahead(self, history, slot, padding, capacity, caches, choose):
        """Guesses, and what the network says to them.

        Args:
            history: int32 `[slots, batch]`, tokens up to `slot`, which no model read.
            slot: int32 scalar.
            padding: See `Network.run`.
            capacity: See `Network.run`.
            caches: Of both.
            choose: Called with logits, a slot and the history; gives the next tokens.

        Returns:
            Logits of the network `[batch, reach, vocabulary]` after the token in `slot`
            and after each guess but the last, the history with the guesses, and caches.
        """
        own, others = self._split(caches)

        def guess(at, history, others):
            hidden, others = self.draft.run(
                tf.gather(history, at)[:, None], at, padding, capacity, others, True
            )
            tokens = choose(self.draft.logits(hidden), at, history)
            at += 1
            history = tf.tensor_scatter_nd_update(history, [[at]], tokens[None])
            return at, history, others

        _, history, others = tf.while_loop(
            lambda at, *_: at < slot + self.reach,
            guess,
            (slot, history, others),
            parallel_iterations=1,
        )
        rows = tf.shape(history)[1]
        tokens = tf.slice(history, [slot, 0], [self.reach, rows])
        hidden, own = self.network.run(
            tf.transpose(tokens), slot, padding, capacity, own
        )
        logits = tf.reshape(
            self.logits(hidden), [rows, self.reach, self.vocabulary_size]
        )
        return logits, history, own + others

    def _split(self, caches: Cache) -> tuple[Cache, Cache]:
        count = self.network.caches
        return caches[:count], caches[count:]
