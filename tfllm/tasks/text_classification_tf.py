"""The text classifier, or regressor, as a graph from text to answer."""

import keras
import tensorflow as tf

from tfllm.tasks.dense_tf import dense_ids
from tfllm.tasks.text_classification import TextClassification


class ServedClassifier(tf.Module):
    """Tokenizer, model and label names in one: texts in, labels and scores out.

    Args:
        task: The trained task.
        model: Its model, float32.
    """

    def __init__(self, task: TextClassification, model: keras.Model):
        super().__init__()
        self._task = task
        # A function, not the model: the export tracks the variables by themselves, and
        # a tracked Keras model would write each of them once more.
        self._logits = lambda batch: model(batch, training=False)
        self._inputs = [tensor.name for tensor in model.inputs]
        self.tokenizer = task.tokenizer.graph()
        self.labels = tf.constant(task.labels, tf.string)

    def __call__(self, text: tf.Tensor, text_pair: tf.Tensor | None = None) -> dict:
        """Answers for texts, string `[N]`.

        Returns:
            `label` string `[N]`, `score` float32 `[N]`, and for all K classes, the
            likeliest first, `labels` string and `scores` float32 `[N, K]`. Of several
            labels a text, `prediction` string `[N, K]` has those at or above their
            thresholds, then empty ones. A regression has `score` alone.
        """
        task, limit = self._task, self._task.max_length
        if text_pair is None:
            ids = self.tokenizer.encode(
                text, add_special_tokens=task.special_tokens, max_length=limit
            )
            batch = {}
        else:
            ids, segments = self.tokenizer.encode_pairs(text, text_pair, limit)
            batch = {"segment_ids": dense_ids(segments, 0)}
        batch["token_ids"] = dense_ids(ids, task.tokenizer.pad_id)
        length = tf.shape(batch["token_ids"])[1]
        batch["padding_mask"] = tf.sequence_mask(ids.row_lengths(), length, tf.int32)
        logits = self._logits({name: batch[name] for name in self._inputs})
        if task.problem == "regression":
            return {"score": logits[:, 0] * task.deviation + task.mean}
        more = {}
        if task.problem == "multi_label":
            scores = tf.sigmoid(task.score_scale * logits)
            chosen = scores >= tf.constant(task.thresholds)
            # Of equal values the first come first: the order of the classes is kept.
            first, order = tf.math.top_k(tf.cast(chosen, tf.float32), len(task.labels))
            labels = tf.gather(self.labels, order)
            more = {"prediction": tf.where(first > 0, labels, "")}
        else:
            scores = tf.nn.softmax(task.score_scale * logits)
        scores, order = tf.math.top_k(scores, len(task.labels))
        labels = tf.gather(self.labels, order)
        return more | {
            "label": labels[:, 0],
            "score": scores[:, 0],
            "labels": labels,
            "scores": scores,
        }
