"""What every layer must do, in one call."""

import keras
import numpy as np
from keras import ops


def check_layer(layer, arrays: dict, *, trains=True, padding=True, mask="padding_mask"):
    """Builds, calls, serialises, trains and pads a layer.

    Args:
        layer: A fresh layer.
        arrays: Arguments of its call by name, in order, batch first.
        trains: It has weights and every one of them gets a gradient.
        padding: More padding must not change the answer at real places; `arrays`
            then holds `mask`, and axis 1 of the arrays of its shape is time.
        mask: Name of the padding mask.

    Returns:
        The eager output as numpy.
    """
    tensors = {name: ops.convert_to_tensor(array) for name, array in arrays.items()}
    output = ops.convert_to_numpy(layer(**tensors))
    assert np.isfinite(output).all()

    # Symbolic, with unknown batch and length: the same shape and values.
    length = next(iter(arrays.values())).shape[1]
    inputs = {
        name: keras.Input(
            tuple(None if size == length else size for size in shape[1:]),
            dtype=str(arrays[name].dtype),
            name=name,
        )
        for name, shape in ((name, array.shape) for name, array in arrays.items())
    }
    model = keras.Model(inputs, layer(**inputs))
    assert model.output.shape[-1] in (None, output.shape[-1])
    again = ops.convert_to_numpy(model(tensors))
    np.testing.assert_allclose(again, output, rtol=1e-5, atol=1e-5)

    # Serialised: the copy has the same weights by path, and the same answer.
    copy = type(layer).from_config(layer.get_config())
    copy(**tensors)
    assert [v.path for v in copy.variables] == [v.path for v in layer.variables]
    assert len({v.path for v in layer.variables}) == len(layer.variables)
    copy.set_weights(layer.get_weights())
    same = ops.convert_to_numpy(copy(**tensors))
    np.testing.assert_allclose(same, output, rtol=1e-5, atol=1e-5)

    # Mixed precision: nearly the same, in the compute dtype, with float32 weights.
    config = layer.get_config()
    config["dtype"] = "mixed_bfloat16"
    mixed = type(layer).from_config(config)
    low = mixed(**tensors)
    if "float" in str(output.dtype):
        assert keras.backend.standardize_dtype(low.dtype) == "bfloat16"
        assert all(v.dtype == "float32" for v in mixed.trainable_variables)
        mixed.set_weights(layer.get_weights())
        low = ops.convert_to_numpy(ops.cast(mixed(**tensors), "float32"))
        scale = np.abs(output).max() + 1e-6
        assert np.abs(low - output).max() / scale < 0.06

    if trains:
        _check_training(model, layer, tensors, output)
    if padding:
        _check_padding(layer, arrays, output, mask)
    return output


def _check_training(model, layer, tensors, output):
    before = [ops.convert_to_numpy(v) for v in layer.trainable_variables]
    # A random target: one of zeros has no gradient behind a norm.
    target = np.random.default_rng(0).normal(size=output.shape)
    model.compile("sgd", "mse")
    model.train_on_batch(tensors, target.astype("float32"))
    for variable, old in zip(layer.trainable_variables, before, strict=True):
        moved = np.abs(ops.convert_to_numpy(variable) - old).max()
        assert moved > 0, f"{variable.path} did not move"
        assert np.isfinite(moved), variable.path


def _check_padding(layer, arrays, output, mask, extra=3):
    output = ops.convert_to_numpy(layer(**arrays))  # after training
    shape = arrays[mask].shape

    def pad(array):
        if array.shape[:2] != shape:
            return array
        filler = np.ones((shape[0], extra, *array.shape[2:]), array.dtype)
        return np.concatenate([array, filler], axis=1)

    longer = {name: pad(array) for name, array in arrays.items()}
    longer[mask][:, shape[1] :] = 0
    padded = ops.convert_to_numpy(layer(**longer))
    if padded.shape[1] != output.shape[1]:  # one vector a token
        padded = padded[:, : shape[1]]
        real = arrays[mask].astype(bool)
        padded, output = padded[real], output[real]
    np.testing.assert_allclose(padded, output, rtol=1e-4, atol=1e-5)
