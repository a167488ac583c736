"""Gradient checkpointing: a layer's inner tensors are computed again on the way back.

`keras.remat` around a layer with dropout draws another mask the second time, and the
gradients are wrong. Here the random states are read, and moved on, outside of what is
computed twice, and handed in as plain tensors: both times see the same masks (Chen et
al., 2016, arXiv 1604.06174).
"""

import keras
from keras import ops


def recompute(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Makes a layer forget its inner tensors in training; returns the same layer.

    Weights, paths and outputs stay what they were. Each random generator in the layer
    is expected to draw once a call, as `layers.dropout.Dropout` does.

    Args:
        layer: Built or not. Its `call` takes `training`; its other arguments are
            tensors, nests of tensors, or `None`.
    """
    plain = layer.call

    def call(*args, training=False, **kwargs):
        if not training:
            return plain(*args, training=training, **kwargs)
        weights = {id(v) for v in layer.weights}
        seeds = [v for v in layer.variables if id(v) not in weights]
        variables = [*layer.weights, *seeds]
        # Full precision: the layer casts for itself, as it does without this.
        values = [ops.copy(_value(v)) for v in variables]
        for seed in seeds:
            one = ops.convert_to_tensor([0, 1], dtype=seed.dtype)
            seed.assign(ops.add(seed.value, one))
        inputs = keras.tree.flatten((args, kwargs))
        given = [x for x in inputs if x is not None]

        def run(*flat):
            state, rest = flat[: len(variables)], iter(flat[len(variables) :])
            full = [None if x is None else next(rest) for x in inputs]
            new_args, new_kwargs = keras.tree.pack_sequence_as((args, kwargs), full)
            mapping = list(zip(variables, state, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return plain(*new_args, training=True, **new_kwargs)

        return keras.remat(run)(*values, *given)

    layer.call = call
    return layer


def _value(variable):
    with keras.src.backend.AutocastScope(None):
        return variable.value
