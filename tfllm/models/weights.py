"""Weights of a Keras model as safetensors, keyed by variable path."""

from pathlib import Path

import keras
import numpy as np

from tfllm.core.errors import UserError
from tfllm.layers.lora import merged, scale_of


def weights_of(model: keras.Model) -> dict[str, np.ndarray]:
    """The weights by path; random states are not weights."""
    named = {v.path: np.asarray(v.value) for v in model.weights}
    if len(named) != len(model.weights):
        paths = [v.path for v in model.weights]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(f"Two weights of the model have one path: {twice}")
    return named


def set_weights(model: keras.Model, values: dict[str, np.ndarray], where=None) -> None:
    """Assigns weights by path.

    Raises:
        UserError: If a weight is missing or left over or has another shape; every one
            is named.
    """
    variables = {v.path: v for v in model.weights}
    problems = [f"missing {path}" for path in variables if path not in values]
    problems += [f"left over {path}" for path in values if path not in variables]
    problems += [
        f"{path} is {values[path].shape}, the model wants {tuple(v.shape)}"
        for path, v in variables.items()
        if path in values and tuple(v.shape) != values[path].shape
    ]
    if problems:
        raise UserError(
            f"the weights do not fit the model: {'; '.join(problems)}", where
        )
    for path, variable in variables.items():
        variable.assign(values[path])


def load_weights(
    model: keras.Model, path: str | Path, adapters: dict | None = None
) -> None:
    """Reads a safetensors file into a model, strictly; see `read_weights`."""
    set_weights(model, read_weights(path, adapters), where=path)


def read_weights(path: str | Path, adapters: dict | None = None) -> dict:
    """Reads weights by path.

    Args:
        path: A safetensors file.
        adapters: `rank` and `alpha` of the adapters in it, which are merged into their
            kernels.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        values = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"cannot read the weights: {error}", path) from None
    if adapters:
        values = merged(values, scale_of(adapters["rank"], adapters["alpha"]))
    return values


def matrix_parameters(model: keras.Model) -> int:
    """Parameters that multiply something at every position of a text.

    Look-up tables (embeddings) and vectors (biases, norms) are left out: twice this
    number is the multiply-adds of a forward pass a token, six times those of training,
    attention scores apart (Kaplan et al., 2020, section 2.1).
    """
    return sum(
        int(np.prod(v.shape))
        for v in model.trainable_variables
        if len(v.shape) >= 2 and not v.path.rsplit("/", 1)[-1].startswith("embedding")
    )
