"""How badly a decoder guesses each next token, as a layer of its training graph."""

import keras
from keras import ops

from tfllm.layers.chunked_loss import chunked_cross_entropy

LARGE = 4096  # from this vocabulary on, all logits at once are too many


class NextTokenLoss(keras.layers.Layer):
    """Cross-entropy of given next tokens, by the output matrix of an embedding.

    Args:
        embedding: A `TokenEmbedding`, whose weights stay its own.

    Example:
        >>> losses = NextTokenLoss(embedding)(hidden, targets, weights)
    """

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def call(self, hidden, targets, weights):
        """Returns losses in nats, float32 `[batch, length]`.

        Args:
            hidden: `[batch, length, size]`, after the last norm.
            targets: int32 `[batch, length]`.
            weights: `[batch, length]`; where one is 0 the loss may be 0.
        """
        if self.embedding.input_dim < LARGE:
            logits = ops.cast(self.embedding(hidden, reverse=True), "float32")
            return ops.sparse_categorical_crossentropy(targets, logits, True)
        return chunked_cross_entropy(
            hidden,
            output_matrix(self.embedding),
            targets,
            wanted=weights > 0,
            frozen=not _output(self.embedding).trainable,
        )

    def compute_output_spec(self, hidden, targets, weights):
        """The shape of the targets."""
        return keras.KerasTensor(targets.shape, dtype="float32")


def output_matrix(embedding):
    """The matrix that turns hidden states to logits, `[vocabulary, size]`."""
    # A tensor: TensorFlow's custom gradients refuse variables that are read inside.
    matrix = ops.copy(_output(embedding))
    return matrix if embedding.tie_weights else ops.transpose(matrix)


def _output(embedding):
    tied = embedding.tie_weights
    return embedding.embeddings if tied else embedding.reverse_embeddings
