"""What saves memory changes nothing else."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfllm.layers.attention import AttentionBias
from tfllm.layers.chunked_loss import chunked_cross_entropy
from tfllm.layers.recompute import recompute
from tfllm.layers.transformer_block import TransformerBlock

ON_JAX = """
import sys; sys.modules["tensorflow"] = None
import jax, keras, numpy as np
from keras import ops
from tfllm.layers.chunked_loss import chunked_cross_entropy
r = np.random.default_rng(0)
h, m = (r.normal(size=s).astype("float32") for s in ((3, 7, 8), (29, 8)))
t = r.integers(0, 29, (3, 7))
def plain(h, m):
    return -jax.nn.log_softmax(h @ m.T)[np.arange(3)[:, None], np.arange(7), t].sum()
def chunked(h, m):
    return chunked_cross_entropy(h, m, t, chunk_size=4).sum()
ours, theirs = jax.jit(jax.grad(chunked, (0, 1)))(h, m), jax.grad(plain, (0, 1))(h, m)
for a, b in zip(ours, theirs):
    np.testing.assert_allclose(a, b, atol=1e-5)
"""


@pytest.mark.parametrize("jit_compile", [False, True])
def test_chunked_loss_and_its_gradients(jit_compile):
    random = np.random.default_rng(0)
    hidden = tf.constant(random.normal(size=(3, 7, 8)), tf.float32)
    matrix = tf.Variable(random.normal(size=(29, 8)), dtype=tf.float32)
    bias = tf.Variable(random.normal(size=29), dtype=tf.float32)
    targets = tf.constant(random.integers(0, 29, (3, 7)), tf.int32)
    weights = tf.constant(random.random((3, 7)), tf.float32)

    def plain():
        logits = tf.matmul(hidden, matrix, transpose_b=True) + bias
        return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)

    def chunked():
        return chunked_cross_entropy(hidden, matrix, targets, bias, chunk_size=4)

    @tf.function(jit_compile=jit_compile)
    def gradients(losses):
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            found = losses()
            total = tf.reduce_sum(found * weights)
        return found, tape.gradient(total, [hidden, matrix, bias])

    ours, theirs = gradients(chunked), gradients(plain)
    for a, b in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
        np.testing.assert_allclose(a, tf.convert_to_tensor(b), atol=2e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_chunked_loss_only_where_it_is_wanted(share, frozen, jit_compile):
    random = np.random.default_rng(1)
    hidden = tf.constant(random.normal(size=(3, 7, 8)), tf.float32)
    matrix = tf.Variable(random.normal(size=(29, 8)), dtype=tf.float32)
    targets = tf.constant(random.integers(0, 29, (3, 7)), tf.int32)
    wanted = tf.constant(random.random((3, 7)) < share)

    @tf.function(jit_compile=jit_compile)
    def gradients(**options):
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            losses = chunked_cross_entropy(
                hidden, matrix.value(), targets, chunk_size=4, **options
            )
            total = tf.reduce_sum(losses * tf.cast(wanted, tf.float32))
        return losses, tape.gradient(total, [hidden, matrix])

    ours, theirs = gradients(wanted=wanted, frozen=frozen), gradients()
    np.testing.assert_allclose(ours[0], np.where(wanted, theirs[0], 0), atol=2e-5)
    np.testing.assert_allclose(ours[1][0], theirs[1][0], atol=2e-5)
    truth = 0 if frozen else tf.convert_to_tensor(theirs[1][1])
    np.testing.assert_allclose(tf.convert_to_tensor(ours[1][1]), truth, atol=2e-5)


def test_chunked_loss_never_makes_all_logits():
    tokens, vocabulary = 4096, 5003
    signature = [tf.TensorSpec([tokens, 8]), tf.TensorSpec([vocabulary, 8])]

    @tf.function(input_signature=signature)
    def gradients(hidden, matrix):
        with tf.GradientTape() as tape:
            tape.watch([hidden, matrix])
            targets = tf.zeros([tokens], tf.int32)
            losses = chunked_cross_entropy(hidden, matrix, targets, chunk_size=256)
        return tape.gradient(losses, [hidden, matrix])

    graph = gradients.get_concrete_function().graph.as_graph_def(add_shapes=True)
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    sizes = [
        np.prod([max(1, d.size) for d in shape.dim] or [1])
        for node in nodes
        for shape in node.attr["_output_shapes"].list.shape
    ]
    assert max(sizes) < tokens * vocabulary / 8


def test_chunked_loss_on_jax(root):
    pytest.importorskip("jax")
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", ON_JAX], env=environment, check=True)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_recomputed_block_has_the_same_gradients_with_dropout(dtype):
    random = np.random.default_rng(0)
    hidden = tf.constant(random.normal(size=(2, 5, 8)), tf.float32)
    mask = tf.constant([[1] * 5, [1] * 3 + [0] * 2])

    def run(wrap):
        keras.utils.set_random_seed(5)
        blocks = [
            TransformerBlock(
                8, 2, 16, dropout=0.4, attention_dropout=0.3, name=f"b{i}", dtype=dtype
            )
            for i in range(2)
        ]
        states = keras.Input((None, 8), name="hidden")
        padding = keras.Input((None,), dtype="int32", name="mask")
        bias = AttentionBias(dtype=dtype)(padding)
        output = states
        for block in blocks:
            output = block(output, bias=bias)
        model = keras.Model([states, padding], output)
        for block in blocks if wrap else []:
            recompute(block)

        @tf.function
        def gradients():
            with tf.GradientTape() as tape:
                outputs = tf.cast(model([hidden, mask], training=True), "float32")
                loss = tf.reduce_sum(outputs**2)
            trained = [v.value for v in model.trainable_variables]
            return outputs, tape.gradient(loss, trained)

        results = [gradients() for _ in range(2)]
        paths = [v.path for v in model.weights]
        seeds = [v.numpy() for v in model.variables if "seed" in v.path]
        return tf.nest.flatten(results), paths, seeds

    (plain, paths, seeds), (again, new_paths, new_seeds) = run(False), run(True)
    assert paths == new_paths
    np.testing.assert_array_equal(seeds, new_seeds)
    half = len(plain) // 2
    assert not np.array_equal(plain[0], plain[half])  # another mask at each step
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 if dtype == "float32" else 1e-2)
