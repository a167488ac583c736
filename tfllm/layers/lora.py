"""Low-rank adapters: a frozen dense layer learns a small difference.

Hu et al., 2021 (arXiv 2106.09685). Keras' own `enable_lora` has no dropout, leaves the
bias trainable, and zeroes both factors when weights are loaded; this one is two weights
and a few lines.
"""

import fnmatch
from collections.abc import Sequence

import keras
from keras import ops

from tfllm.core.errors import UserError
from tfllm.layers.dropout import Dropout

A, B = NAMES = "lora_a", "lora_b"


def scale_of(rank: int, alpha: float | None) -> float:
    """What `A B` is multiplied with: `alpha / rank`; without an `alpha` it is 2."""
    return 2.0 if alpha is None else alpha / rank


def add_adapters(
    model: keras.Model,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = ("*",),
    head: Sequence[str] = ("logits",),
) -> None:
    """Freezes a model but for its head, and gives its blocks' dense layers adapters.

    A layer then computes `x W + b + (alpha / rank) dropout(x) A B`; with B zero at
    first, the model starts as it was.

    Args:
        model: A built model whose blocks' weights have paths below `block_…/`.
        rank: Columns of A, rows of B.
        alpha: Numerator of the scale; None for `2 * rank`.
        dropout: On what goes into A.
        targets: Names of dense layers in the blocks, as file names are matched:
            `query`, `value`, `*`.
        head: Layers outside of the blocks that are trained whole.

    Raises:
        UserError: A target matches no layer.
    """
    scale = scale_of(rank, alpha)
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Dense)
        and layer.kernel.path.startswith("block_")
    ]
    names = sorted({layer.name for layer in layers})
    for target in targets:
        if not fnmatch.filter(names, target):
            raise UserError(
                f"--lora_targets {target} matches no layer",
                fix=f"Layers with a matrix are {', '.join(names)}",
            )
    for variable in model.weights:
        variable.trainable = variable.path.split("/")[0] in head
    for layer in layers:
        if any(fnmatch.fnmatchcase(layer.name, target) for target in targets):
            _adapt(layer, rank, scale, dropout)


def _adapt(dense: keras.layers.Dense, rank: int, scale: float, rate: float) -> None:
    inputs, outputs = dense.kernel.shape
    parent = dense.kernel.path.rpartition("/")[0]
    dense._tracker.unlock()
    sizes = {A: (inputs, rank), B: (rank, outputs)}
    starts = {A: keras.initializers.HeUniform(), B: "zeros"}
    for name, shape in sizes.items():
        weight = dense.add_weight(name=name, shape=shape, initializer=starts[name])
        weight._path = f"{parent}/{name}"  # made outside the parents' name scope
        setattr(dense, name, weight)
    dense.lora_dropout = Dropout(rate, dtype=dense.dtype_policy, name="lora_dropout")
    dense.lora_dropout.build((None,) * 3)
    dense._tracker.lock()
    dense.lora_scale, plain = scale, dense.call

    def call(inputs, training=False):
        small = ops.matmul(dense.lora_dropout(inputs, training=training), dense.lora_a)
        return plain(inputs) + ops.matmul(small, dense.lora_b) * scale

    dense.call = call


def merged(values: dict, scale: float) -> dict:
    """Weights by path with every adapter added to its kernel.

    Args:
        values: Arrays by path.
        scale: `alpha / rank`.
    """
    plain = {k: v for k, v in values.items() if k.rpartition("/")[2] not in (A, B)}
    for path, first in values.items():
        parent, _, name = path.rpartition("/")
        if name == A:
            change = scale * (first @ values[f"{parent}/{B}"])
            plain[f"{parent}/kernel"] = plain[f"{parent}/kernel"] + change
    return plain
