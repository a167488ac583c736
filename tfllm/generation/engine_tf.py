"""The loop as compiled functions that are traced once, whatever is asked of them."""

import tensorflow as tf

from tfllm.generation import loop_tf as loop
from tfllm.generation.beam_tf import Beams
from tfllm.generation.network_tf import Network
from tfllm.generation.sampling_tf import LOW


class Engine:
    """Runs `loop_tf` on arrays.

    Without XLA every size is open: one trace serves all batches and lengths. With it
    sizes are rounded up to a few (`rounded`), each compiled once.

    Args:
        network: The decoder.
        xla: Whether to compile; `network` was made for it then.

    Attributes:
        traces: How many functions were traced so far.
    """

    def __init__(self, network: Network, xla: bool = False):
        self.network, self.xla = network, xla
        self.traces, self._functions = 0, {}

    def rounded(self, rows: int, slots: int, space: int) -> tuple[int, int, int]:
        """The sizes to use for so many rows, slots of prompts and new tokens."""
        if not self.xla:
            return rows, int(loop.padded_length(slots)) if slots > 1 else 1, space
        slots = int(loop.padded_length(slots))
        chunk = loop.CHUNK if slots - 1 > loop.CHUNK else loop.BUCKET
        whole = (1 << max(0, (slots - 2) // chunk).bit_length()) * chunk
        return 1 << (rows - 1).bit_length(), whole + 1, -(-max(space, 1) // 128) * 128

    def start(
        self, prompts, space: int, scored: bool = False, beams=None, source=()
    ) -> loop.State:
        """`loop_tf.start`; of a `PairNetwork`, `source` is what it reads first."""
        settled = space if self.xla else None

        def run(prompts, space, *source):
            self.traces += 1
            space = space if settled is None else settled
            context = self.network.read(*source) if source else ()
            return loop.start(self.network, prompts, space, scored, context, beams)

        key = ("start", settled, scored, beams)
        arrays = (tf.constant(x, tf.int32) for x in source)
        prompts = tf.constant(prompts, tf.int32)
        return self._run(key, run, prompts, tf.constant(space), *arrays)

    def advance(
        self,
        state: loop.State,
        settings: dict,
        ends,
        count: int,
        scored: bool = False,
        beams: Beams | None = None,
    ) -> loop.State:
        """`loop_tf.advance`; the state that is given is used up."""

        def run(state, settings, ends, count):
            self.traces += 1
            settings = dict(settings)
            if "banned" in settings:
                settings["bias"] = self._bias(settings.pop("banned"))
            if beams:
                settings = {
                    k: tf.repeat(v, beams.width, 0) for k, v in settings.items()
                }
            return loop.advance(
                self.network, state, settings, ends, count, scored, beams
            )

        key = ("advance", tuple(sorted(settings)), scored, beams)
        settings = {k: tf.convert_to_tensor(v) for k, v in settings.items()}
        ends = tf.constant(ends, tf.int32)
        return self._run(key, run, state, settings, ends, tf.constant(count))

    def _bias(self, banned):
        """float32 `[batch, vocabulary]` from ids `[batch, n]`, -1 for none."""
        size = self.network.vocabulary_size
        hit = tf.one_hot(banned, size, on_value=True, off_value=False, dtype=tf.bool)
        return tf.where(tf.reduce_any(hit, 1), LOW, 0.0)

    def _run(self, key, function, *arguments):
        if key not in self._functions:
            signature = None
            if not self.xla:
                signature = tf.nest.map_structure(
                    lambda x: tf.TensorSpec([None] * x.shape.rank, x.dtype), arguments
                )
            self._functions[key] = tf.function(
                function,
                input_signature=signature,
                jit_compile=self.xla,
                autograph=False,
            )
        return self._functions[key](*arguments)
