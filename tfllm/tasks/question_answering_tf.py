"""The reader as a graph from question and context to the answer's characters."""

import keras
import numpy as np
import tensorflow as tf

from tfllm.tasks.dense_tf import dense_ids, substrings
from tfllm.tasks.question_answering import (
    LEAST,
    NEVER,
    QuestionAnswering,
    best_spans,
    is_mark,
)
from tfllm.text.graph.arrays_tf import (
    Rows,
    lengths_of,
    next_true,
    ranges,
    rank_in,
    rows_of,
)
from tfllm.text.graph_tf import joined

ROWS = 16  # windows that the model reads at once: more take memory, not less time


class ServedReader(tf.Module):
    """Tokenizer, windows, model and choice in one.

    Args:
        task: The trained task.
        model: Its model, float32.
    """

    def __init__(self, task: QuestionAnswering, model: keras.Model):
        super().__init__()
        self._task = task
        # A function, not the model: see `text_classification_tf.ServedClassifier`.
        self._logits = lambda batch: model(batch, training=False)
        self._inputs = [tensor.name for tensor in model.inputs]
        self.tokenizer = task.tokenizer.graph()
        codes = map(chr, range(0x110000))
        kinds = np.array([1 if c.isspace() else 2 * is_mark(c) for c in codes])
        edges = np.flatnonzero(np.diff(kinds, prepend=-1))
        # Code points from each edge on are: 0 neither, 1 a space, 2 a mark.
        self.edges = tf.constant(edges, tf.int32)
        self.kinds = tf.constant(kinds[edges], tf.int32)

    def __call__(self, question: tf.Tensor, context: tf.Tensor) -> dict:
        """Answers questions, string `[N]`, from their contexts, string `[N]`.

        Returns:
            `answer` string, `start` and `end` int32 (code points of the context as it
            came) and `score` float32, its probability; all `[N]`. No answer is an empty
            one at -1, and `score` how likely that is. `cut` int32 `[N]` counts the
            tokens of the context that were not read.
        """
        task = self._task
        asked = self.tokenizer.encode(question)[:, : task.max_question_length]
        ids, starts, ends = self.tokenizer.encode_with_offsets(context)
        size_q, size = (tf.cast(x.row_lengths(), tf.int32) for x in (asked, ids))
        room = task.tokenizer.budget(task.tokenizer.pair, task.max_length) - size_q
        step = task.step(room, tf.minimum, tf.maximum)
        windows = 1 + (tf.maximum(0, size - room) + step - 1) // step
        windows = tf.minimum(windows, task.max_windows)
        splits = tf.concat([[0], tf.cumsum(windows)], 0)
        row = rows_of(splits)
        first = (tf.range(tf.size(row)) - tf.gather(splits, row)) * tf.gather(step, row)
        count = tf.minimum(tf.gather(room, row), tf.gather(size, row) - first)
        begin = task.lead + tf.gather(size_q, row)

        base = tf.cast(ids.row_splits, tf.int32)
        at = tf.gather(base, row) + first  # of the window's tokens, among all
        place, inside = ranges(at, at + count)
        asked = tf.gather(asked, row)
        full, segments = joined(
            task.tokenizer.pair,
            [
                Rows(asked.values, tf.cast(asked.row_splits, tf.int32)),
                Rows(tf.gather(ids.values, place), inside),
            ],
        )
        batch = {
            "token_ids": dense_ids(full, task.tokenizer.pad_id),
            "segment_ids": dense_ids(segments, 0),
        }
        length = tf.shape(batch["token_ids"])[1]
        mask = tf.sequence_mask(full.row_lengths(), length, tf.int32)
        batch = {name: (batch | {"padding_mask": mask})[name] for name in self._inputs}
        nowhere, share, spans = self._read(batch, begin, count)

        none = tf.math.segment_min(nowhere, row)
        best = tf.math.segment_max(share, row)
        number = tf.range(tf.size(row))
        ours = tf.equal(share, tf.gather(best, row))
        chosen = tf.math.segment_min(tf.where(ours, number, tf.size(row)), row)
        found = best > NEVER / 2
        if task.impossible:
            found &= none - tf.maximum(best, LEAST) <= task.threshold
        spans = tf.gather(spans + (at - begin)[:, None], chosen)
        spans = tf.where(found[:, None], spans, 0)
        # One more, so that there is something to gather where there are no tokens.
        start = tf.gather(tf.concat([starts.values, [0]], 0), spans[:, 0])
        end = tf.gather(tf.concat([ends.values, [0]], 0), spans[:, 1])
        parts = (tf.where(found, x, 0) for x in (start, end))
        parts = self._trimmed(context, *parts)
        found &= parts[1] > parts[0]  # white space alone is no answer
        read = tf.math.segment_max(first + count, row)
        return {
            "answer": substrings(context, tf.range(tf.size(context)), *parts),
            "start": tf.where(found, parts[0], -1),
            "end": tf.where(found, parts[1], -1),
            "score": tf.exp(tf.where(found, best, none)),
            "cut": size - read,
        }

    def _read(self, batch: dict, begin, count):
        """Of each window: log-probabilities that there is nothing and of the best part,
        and the places of its first and last token, `[W, 2]`."""
        task, total = self._task, tf.size(begin)

        def read(done, *arrays):
            part = slice(done, done + ROWS)
            logits = self._logits({k: v[part] for k, v in batch.items()})
            limits = begin[part], count[part], task.max_answer_length, 1
            nowhere, share, first, last = best_spans(logits, *limits)
            told = nowhere, share[:, 0], tf.concat([first, last], 1)
            number = done // ROWS
            written = (a.write(number, x) for a, x in zip(arrays, told, strict=True))
            return done + ROWS, *written

        shapes = ((tf.float32, [None]), (tf.float32, [None]), (tf.int32, [None, 2]))
        arrays = [
            tf.TensorArray(*(kind, 0, True), infer_shape=False, element_shape=shape)
            for kind, shape in shapes
        ]
        _, *arrays = tf.while_loop(
            # Without a window there is one turn, so that there is something to join.
            lambda done, *_: (done < total) | tf.equal(done, 0),
            read,
            (0, *arrays),
            parallel_iterations=1,
        )
        return tuple(array.concat() for array in arrays)

    def _trimmed(self, context, start, end):
        """`question_answering.trimmed` of a part of each context."""
        chars = tf.strings.unicode_decode(context, "UTF-8")
        splits = tf.cast(chars.row_splits, tf.int32)
        base, size = splits[:-1], lengths_of(splits)
        interval = rank_in(self.edges, chars.values + 1) - 1
        kinds = tf.concat([tf.gather(self.kinds, interval), [0]], 0)
        letters = next_true(tf.not_equal(kinds, 2))
        end = tf.minimum(tf.gather(letters, base + end) - base, size)
        words = tf.not_equal(kinds, 1)
        start = tf.minimum(tf.gather(next_true(words), base + start) - base, end)
        backwards = next_true(words[::-1])  # the last one is a word, of no context
        last = tf.size(kinds) - 1
        before = last - tf.gather(backwards, last - tf.maximum(base + end - 1, 0))
        end = tf.where(end > start, tf.maximum(start, before + 1 - base), end)
        return start, end
