"""The model of sentences as a graph: text in, vector out."""

import keras
import tensorflow as tf

from tfllm.tasks.dense_tf import dense_ids
from tfllm.tasks.embeddings import Embeddings


class ServedEmbedder(tf.Module):
    """Tokenizer and model in one.

    Args:
        task: The trained task.
        model: Its model, float32.
    """

    def __init__(self, task: Embeddings, model: keras.Model):
        super().__init__()
        self._task = task
        # A function, not the model: see `text_classification_tf.ServedClassifier`.
        self._vectors = lambda batch: model(batch, training=False)
        self.tokenizer = task.tokenizer.graph()

    def __call__(self, text: tf.Tensor) -> dict:
        """`embedding`, unit vectors float32 `[N, size]`, of texts, string `[N]`."""
        task = self._task
        ids = self.tokenizer.encode(
            text, add_special_tokens=task.special_tokens, max_length=task.max_length
        )
        batch = {"token_ids": dense_ids(ids, task.tokenizer.pad_id)}
        length = tf.shape(batch["token_ids"])[1]
        batch["padding_mask"] = tf.sequence_mask(ids.row_lengths(), length, tf.int32)
        return {"embedding": self._vectors(batch)}
