"""How badly a decoder guesses each next token, as a layer of its training graph."""

import keras
from keras import ops

from tfllm.layers.chunked_loss import chunked_cross_entropy

LARGE = 4096  # from this vocabulary on, all logits at once are too many


class NextTokenLoss(keras.layers.Layer):
    """Cross-entropy of given next tokens, by the output matrix of an embedding.

    Args:
        embedding: A `TokenEmbedding`, whose weights stay its own.
        label_smoothing: Share of the target that is spread over the vocabulary while
            training (Szegedy et al., 2016).

    Example:
        >>> losses = NextTokenLoss(embedding)(hidden, targets, weights)
    """

    def __init__(self, embedding, label_smoothing=0.0, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding
        self.label_smoothing = label_smoothing

    def call(self, hidden, targets, weights, training=False):
        """Returns losses in nats, float32 `[batch, length]`.

        Args:
            hidden: `[batch, length, size]`, after the last norm.
            targets: int32 `[batch, length]`.
            weights: `[batch, length]`; where one is 0 the loss may be 0.
            training: Whether labels are smoothed.
        """
        losses = self._unsmoothed(hidden, targets, weights)
        if not training or not self.label_smoothing:
            return losses
        # A share of the target's logit becomes the mean logit, which is that of the
        # mean row of the matrix: logits are linear.
        matrix = ops.cast(output_matrix(self.embedding), hidden.dtype)
        rows = ops.take(matrix, targets, axis=0) - ops.mean(matrix, axis=0)
        extra = ops.sum(ops.cast(hidden * rows, "float32"), axis=-1)
        return losses + self.label_smoothing * extra * ops.cast(weights > 0, "float32")

    def _unsmoothed(self, hidden, targets, weights):
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

    def compute_output_spec(self, hidden, targets, weights, training=False):
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
