"""The masked language model as a graph: text with masks in, text filled in out."""

import keras
import tensorflow as tf

from tfllm.tasks.dense_tf import dense_ids
from tfllm.tasks.masked_lm import BEST, MaskedLM


class ServedMaskedLM(tf.Module):
    """Tokenizer and model in one.

    Args:
        task: The trained task.
        model: Its model, float32.
    """

    def __init__(self, task: MaskedLM, model: keras.Model):
        super().__init__()
        self._task = task
        # A function, not the model: see `text_classification_tf.ServedClassifier`.
        self._logits = lambda batch: model(batch, training=False)["masked_lm"]
        self._inputs = [tensor.name for tensor in model.inputs]
        self.tokenizer = task.tokenizer.graph()
        tokens = task.tokenizer.tokens
        self.tokens = tf.constant(tokens)
        self.pieces = tf.constant([token.removeprefix("##") for token in tokens])
        self.allowed = tf.constant(~task.masking.special, tf.float32)
        self.mask = tf.constant(tokens[task.tokenizer.mask_id])

    def __call__(self, text: tf.Tensor) -> dict:
        """Fills in the masks (`[MASK]`, as the tokenizer writes it) of texts `[N]`.

        Returns:
            `text` string `[N]`, where each mask is replaced by the likeliest token;
            `score` float32 `[N]`, the mean probability of these; and, for the `count`
            int32 `[N]` masks of each text, `tokens` string and `scores` float32
            `[N, masks, 5]`, the likeliest first, empty and 0 beyond a text's own. A
            mask that stands behind the longest text the model reads stays as it is.
        """
        task = self._task
        ids = self.tokenizer.encode(
            text,
            add_special_tokens=True,
            max_length=task.max_length,
            parse_special=True,
        )
        numbers = tf.ragged.range(ids.row_lengths())
        places = tf.ragged.boolean_mask(numbers, ids == task.tokenizer.mask_id)
        count = tf.cast(places.row_lengths(), tf.int32)
        places = tf.cast(dense_ids(places, 0), tf.int32)
        dense = dense_ids(ids, task.tokenizer.pad_id)
        batch = {
            "token_ids": dense,
            "padding_mask": tf.sequence_mask(
                ids.row_lengths(), tf.shape(dense)[1], tf.int32
            ),
            "segment_ids": tf.zeros_like(dense),
            "mask_places": places,
            "draws": tf.zeros_like(places, tf.float32),
        }
        logits = self._logits({name: batch[name] for name in self._inputs})
        scores, best = tf.math.top_k(tf.nn.softmax(logits) * self.allowed, BEST)
        here = tf.sequence_mask(count, tf.shape(places)[1])[..., None]
        scores = tf.where(here, scores, 0.0)
        tokens = tf.where(here, tf.gather(self.tokens, best), "")
        words = tf.gather(self.pieces, best[..., 0])
        mean = tf.reduce_sum(scores[..., 0], 1) / tf.cast(
            tf.maximum(1, count), "float32"
        )
        return {
            "text": self._filled(text, words, count),
            "score": mean,
            "tokens": tokens,
            "scores": scores,
            "count": count,
        }

    def _filled(self, text, words, count):
        """The texts as they came, `words[:, k]` where the k-th of `count` masks was."""
        parts = tf.strings.split(text, self.mask)
        row = parts.value_rowids()
        number = tf.ragged.range(parts.row_lengths()).flat_values
        last = number == tf.gather(parts.row_lengths(), row) - 1
        known = number < tf.cast(tf.gather(count, row), number.dtype)
        place = tf.minimum(number, tf.cast(tf.shape(words)[1], number.dtype) - 1)
        word = tf.gather_nd(words, tf.stack([row, place], axis=1))
        between = tf.where(last, "", tf.where(known, word, self.mask))
        whole = parts.with_values(tf.strings.join([parts.flat_values, between]))
        return tf.strings.reduce_join(whole.to_tensor(""), axis=1)
