"""The tagger as a graph from text to spans of its characters."""

import keras
import tensorflow as tf

from tfllm.tasks.dense_tf import dense_ids, substrings
from tfllm.tasks.token_classification import TokenClassification, begins_word
from tfllm.text.graph.arrays_tf import indices, lengths_of, rank_in, rows_of, shifted

SPACES = [code for code in range(0x110000) if chr(code).isspace()]


class ServedTagger(tf.Module):
    """Tokenizer, model and names in one.

    Args:
        task: The trained task.
        model: Its model, float32.
    """

    def __init__(self, task: TokenClassification, model: keras.Model):
        super().__init__()
        self._task = task
        # A function, not the model: see `text_classification_tf.ServedClassifier`.
        self._answers = lambda batch: model(batch, training=False)
        self.tokenizer = task.tokenizer.graph()
        self.begins_word = tf.constant(begins_word(task.tokenizer))
        tags = task.model.tags
        self.types = tf.constant([tag[2:] for tag in tags])
        self.begins = tf.constant([tag[0] in "BS" for tag in tags])
        self.goes_on = tf.constant([tag[0] in "IE" for tag in tags])
        self.spaces = tf.constant(SPACES)
        self.intents = tf.constant(task.intents, tf.string)

    def __call__(self, text: tf.Tensor) -> dict:
        """Finds spans in texts, string `[N]`.

        Returns:
            Of the `count` int32 `[N]` spans of each text: `tokens` string, what each
            reads; `tags` string, its type; `starts` and `ends` int32, its code points
            in the text as it came; `scores` float32, its probability; all `[N, spans]`,
            empty and 0 beyond a text's own. `score` float32 `[N]` is the probability
            of all of it; `cut` int32 `[N]` counts the tokens that were not read.
            Where texts have an intent, `intent` string and `intent_score` float32.
        """
        batch, rows, start, end, cut = self._read(text)
        answers = self._answers(batch)
        count = rows.row_lengths()
        tags = tf.RaggedTensor.from_tensor(answers["tags"], count).values
        splits = tf.cast(rows.row_splits, tf.int32)
        row = rows_of(splits)
        begins = tf.gather(self.begins, tags)
        same_row = tf.equal(row, shifted(row, -1, -1))
        more = same_row & tf.gather(self.goes_on, shifted(tags, -1, 0))
        first = indices(begins)
        last = indices((tags > 0) & ~more)
        place = first - tf.gather(splits, tf.gather(row, first))
        width = last - first
        at = tf.stack([tf.gather(row, first), place], 1)
        behind = at + tf.stack([tf.zeros_like(width), width], 1)
        logs = tf.gather_nd(answers["along"], behind)
        logs += tf.gather_nd(answers["before"], at) - tf.gather_nd(answers["along"], at)
        logs += tf.gather_nd(answers["after"], behind)
        start, end = tf.gather(start, first), tf.gather(end, last)
        found = {
            "tokens": substrings(text, tf.gather(row, first), start, end),
            "tags": tf.gather(self.types, tf.gather(tags, first)),
            "starts": start,
            "ends": end,
            "scores": tf.exp(logs),
        }
        of_text = rank_in(first, splits)
        ragged = {
            name: tf.RaggedTensor.from_row_splits(values, of_text, validate=False)
            for name, values in found.items()
        }
        pads = {"tokens": "", "tags": "", "scores": 0.0}
        outputs = {k: dense_ids(v, pads.get(k, 0)) for k, v in ragged.items()}
        outputs |= {"count": lengths_of(of_text), "score": answers["score"], "cut": cut}
        if self._task.intents:
            shares = tf.nn.softmax(answers["intent"])
            outputs["intent"] = tf.gather(self.intents, tf.argmax(shares, -1))
            outputs["intent_score"] = tf.reduce_max(shares, -1)
        return outputs

    def _read(self, text):
        """The model's inputs; a ragged row of words a text, where each word starts and
        ends; and how many tokens are left out. As `TokenClassification.read`."""
        task, (prefix, suffix) = self._task, ([], [])
        budget = task.max_length
        if task.special_tokens:
            template = task.tokenizer.single
            budget = task.tokenizer.budget(template, budget)
            items = [item for item, _ in template.items]
            middle = items.index("A")
            prefix, suffix = items[:middle], items[middle + 1 :]
        ids, starts, ends = self.tokenizer.encode_with_offsets(text)
        full = tf.cast(ids.row_lengths(), tf.int32)
        ids, starts, ends = (part[:, :budget] for part in (ids, starts, ends))
        splits = tf.cast(ids.row_splits, tf.int32)
        row, start, end = rows_of(splits), starts.values, ends.values
        same_row = tf.equal(row, shifted(row, 1, -1))
        touches = same_row & (start <= shifted(end, 1, -1))
        first = indices(~touches | tf.gather(self.begins_word, ids.values))
        word = rank_in(first, tf.range(tf.size(row)) + 1) - 1
        end = tf.math.segment_max(end, word)
        start, own = tf.gather(start, first), tf.gather(row, first)
        chars = tf.strings.unicode_decode(text, "UTF-8")
        at = tf.gather(tf.cast(chars.row_splits, tf.int32), own) + start
        letter = tf.gather(tf.concat([chars.values, [0]], 0), at)
        space = tf.reduce_any(tf.equal(letter[:, None], self.spaces), 1)
        start += tf.cast(space & (end - start > 1), tf.int32)
        place = len(prefix) + first - tf.gather(splits, own)
        places = tf.RaggedTensor.from_row_splits(
            place, rank_in(first, splits), validate=False
        )
        count = tf.size(text)
        parts = [tf.tile([part], [count, 1]) for part in (prefix, suffix) if part]
        if parts:
            ids = tf.concat([parts[0], ids, *parts[1:]], 1)
        dense = dense_ids(ids, task.tokenizer.pad_id)
        batch = {
            "token_ids": dense,
            "padding_mask": tf.sequence_mask(
                ids.row_lengths(), tf.shape(dense)[1], tf.int32
            ),
            "places": dense_ids(places, -1),
        }
        kept = lengths_of(splits)
        return batch, places, start, end, full - kept
