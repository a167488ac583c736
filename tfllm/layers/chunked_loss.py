"""Cross-entropy of a large vocabulary that never makes `[tokens, vocabulary]`.

The logits of a language model are its largest tensor by far: 8 texts of 1,024 tokens
over 50,257 words are 1.6 GB in float32, and the gradient as much again. Here they are
made for a few hundred tokens at a time, in the forward pass and, once more, on the way
back; what is kept is one number a token.
"""

from keras import ops


def chunked_cross_entropy(
    hidden, matrix, targets, bias=None, chunk_size=256, wanted=None, frozen=False
):
    """Losses of next tokens, in nats.

    Args:
        hidden: `[…, size]`, the last hidden states; their dtype is that of the matrix
            products, sums are float32.
        matrix: `[vocabulary, size]`: the output matrix, often the token embedding.
        targets: int `[…]`, token ids; where there is no target any valid id will do
            and the loss is to be masked.
        bias: `[vocabulary]` or `None`.
        chunk_size: Tokens whose logits exist at one time.
        wanted: bool `[…]`, where there is a target. Elsewhere the loss is 0 and costs
            nothing: tokens with a target are put together first.
        frozen: The matrix and the bias get no gradient, and none is computed.

    Returns:
        float32 `[…]`.
    """
    size = hidden.shape[-1]
    shape = ops.shape(targets)
    flat = ops.reshape(hidden, (-1, size))
    targets = ops.cast(ops.reshape(targets, (-1,)), "int32")
    count = ops.shape(targets)[0]
    chunks = (count + chunk_size - 1) // chunk_size
    used = chunks
    if wanted is not None:
        real = ops.cast(ops.reshape(wanted, (-1,)), "int32")
        total = ops.sum(real)
        places = ops.where(
            real > 0, ops.cumsum(real) - 1, total - 1 + ops.cumsum(1 - real)
        )
        order = ops.argsort(places)
        flat, targets = ops.take(flat, order, axis=0), ops.take(targets, order)
        used = (total + chunk_size - 1) // chunk_size
    missing = chunks * chunk_size - count
    flat = ops.reshape(ops.pad(flat, [[0, missing], [0, 0]]), (-1, chunk_size, size))
    targets = ops.reshape(ops.pad(targets, [[0, missing]]), (-1, chunk_size))
    matrix = ops.convert_to_tensor(matrix)
    if bias is None:
        bias = ops.zeros((matrix.shape[0],), "float32")
    bias = ops.convert_to_tensor(bias)
    losses = _losses(flat, matrix, bias, targets, used, frozen)
    losses = ops.reshape(losses, (-1,))[:count]
    if wanted is not None:
        losses = ops.take(losses, places) * ops.cast(real, "float32")
    return ops.reshape(losses, shape)


def _losses(hidden, matrix, bias, targets, used, frozen):
    vocabulary = matrix.shape[0]

    def logits_of(part, weights, bias):
        logits = ops.matmul(part, ops.transpose(weights))
        return ops.cast(logits, "float32") + ops.cast(bias, "float32")

    @ops.custom_gradient
    def run(hidden, matrix, bias):
        weights = ops.cast(matrix, hidden.dtype)

        def forward(i, losses):
            i = _after(losses[0, 0], i)
            logits = logits_of(hidden[i], weights, bias)
            picked = ops.take_along_axis(logits, targets[i][:, None], axis=-1)[:, 0]
            part = ops.logsumexp(logits, axis=-1) - picked
            return ops.slice_update(losses, (i, 0), part[None])

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream

            def backward(i, sums):
                moved, *rest = sums
                i = _after(moved[0, 0, 0] if frozen else rest[0][0, 0], i)
                part = hidden[i]
                shares = ops.softmax(logits_of(part, weights, bias), axis=-1)
                shares -= ops.one_hot(targets[i], vocabulary, dtype="float32")
                shares *= upstream[i][:, None]
                low = ops.cast(shares, part.dtype)
                back = ops.matmul(low, weights)[None]
                moved = ops.slice_update(moved, (i, 0, 0), back)
                if frozen:
                    return (moved,)
                down = ops.cast(ops.matmul(ops.transpose(low), part), "float32")
                return moved, rest[0] + down, rest[1] + ops.sum(shares, axis=0)

            zeros = [ops.zeros(x.shape, "float32") for x in (matrix, bias)]
            start = (ops.zeros_like(hidden), *([] if frozen else zeros))
            moved, *sums = ops.fori_loop(0, used, backward, start)
            sums = sums or zeros
            return (
                moved,
                ops.cast(sums[0], matrix.dtype),
                ops.cast(sums[1], bias.dtype),
            )

        losses = ops.zeros(ops.shape(targets), "float32")
        return ops.fori_loop(0, used, forward, losses), gradient

    return run(hidden, matrix, bias)


def _after(value, index):
    """`index`, once `value` is there.

    TensorFlow runs ten rounds of a loop at once where nothing forbids it, and then ten
    chunks are there together.
    """
    zero = ops.minimum(ops.cast(ops.isnan(value), "int32"), 0)
    return ops.cast(index, "int32") + zero
