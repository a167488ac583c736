"""Classic text classifiers: fastText, TextCNN and LSTM, as functional graphs."""

import keras
from keras import ops

from tfllm.layers.convolution import ConvolutionBank
from tfllm.layers.dropout import Dropout
from tfllm.layers.lstm_block import LSTMBlock
from tfllm.layers.ngrams import NgramBag
from tfllm.layers.pooling import AttentionPooling, MaskedPooling
from tfllm.layers.token_embedding import TokenEmbedding
from tfllm.models.encoder import token_inputs


def fasttext(config, dtype=None) -> keras.Model:
    """A bag of hashed n-grams and a linear layer (Joulin et al., 2016).

    Without a `hidden_size` the n-grams' vectors are the logits themselves: as many
    parameters as the linear support vector machine that is so hard to beat on few rows.
    The two texts of a pair have one bag each, and the features are both, their
    difference and their product.
    """
    inputs = token_inputs(config.pairs)
    linear = config.hidden_size is None
    bag = NgramBag(
        range(1, config.ngrams + 1),
        config.ngram_buckets,
        config.num_outputs if linear else config.hidden_size,
        dropout=config.token_dropout,
        initializer="zeros" if linear else "uniform",
        use_bias=linear,
        dtype="float32" if linear else dtype,
        name="ngrams",
    )
    mask = inputs["padding_mask"]
    if config.pairs:
        # Each text is seen alone; the other one's tokens are masked out.
        second = mask * inputs["segment_ids"]
        a, b = (bag(inputs["token_ids"], m) for m in (mask - second, second))
        features = ops.concatenate([a, b, ops.absolute(a - b), a * b], axis=-1)
    else:
        features = bag(inputs["token_ids"], mask)
    if linear:
        return keras.Model(inputs, features, name=config.architecture)
    return classifier_head(config, inputs, features, dtype)


def textcnn(config, dtype=None) -> keras.Model:
    """Convolutions of several widths, the maximum over time (Kim, 2014)."""
    inputs = token_inputs(config.pairs)
    hidden = embed(config, inputs, dtype)
    features = ConvolutionBank(
        config.filters,
        config.widths,
        regularizer=l2(config),
        dtype=dtype,
        name="convolutions",
    )(hidden, inputs["padding_mask"])
    return classifier_head(config, inputs, features, dtype)


def lstm(config, dtype=None) -> keras.Model:
    """Stacked bidirectional LSTM layers and attention pooling."""
    inputs = token_inputs(config.pairs)
    hidden = lstm_states(config, inputs, embed(config, inputs, dtype), dtype)
    features = pooled(config, hidden, inputs["padding_mask"], dtype)
    return classifier_head(config, inputs, features, dtype)


def lstm_states(config, inputs, vectors, dtype=None):
    """Hidden states `[batch, length, 2 * hidden_size]` from the tokens' vectors."""
    return LSTMBlock(
        config.hidden_size,
        config.num_layers,
        dropout=config.dropout,
        dtype=dtype,
        name="lstm",
    )(vectors, inputs["padding_mask"])


def embed(config, inputs, dtype=None):
    """Token vectors, plus the segment's for pairs, with word dropout."""
    hidden = TokenEmbedding(
        config.vocabulary_size,
        config.embedding_size,
        dtype=dtype,
        name="token_embedding",
    )(inputs["token_ids"])
    if config.pairs:
        hidden += keras.layers.Embedding(
            2, config.embedding_size, dtype=dtype, name="segment_embedding"
        )(inputs["segment_ids"])
    return Dropout(
        config.token_dropout, shared_axes=(-1,), dtype=dtype, name="token_dropout"
    )(hidden)


def pooled(config, hidden, padding_mask, dtype=None):
    """One vector a text, as `config.pooling` says."""
    if config.pooling == "attention":
        layer = AttentionPooling(dtype=dtype, name="pooling")
    else:
        layer = MaskedPooling(config.pooling, dtype=dtype, name="pooling")
    return layer(hidden, padding_mask)


def classifier_head(config, inputs, features, dtype=None) -> keras.Model:
    """Dropout and a dense layer; logits are float32 under every policy."""
    features = Dropout(config.dropout, dtype=dtype, name="head_dropout")(features)
    logits = keras.layers.Dense(
        config.num_outputs,
        kernel_regularizer=l2(config),
        dtype="float32",
        name="logits",
    )(features)
    return keras.Model(inputs, logits, name=config.architecture)


def l2(config):
    """A fresh regularizer, or None."""
    return keras.regularizers.L2(config.l2) if config.l2 else None
