"""A SavedModel of each kind answers from a process without TensorFlow."""

import json

import pytest
import tensorflow as tf

from .conftest import KINDS, graph, trained
from .texts import fuzzed


@pytest.mark.parametrize("kind", KINDS)
def test_c_api(kind, tmp_path, root):
    c_api = pytest.importorskip("tfllm.serving.c_api")
    tokenizer = trained(kind)
    module = tf.Module()
    module.tokenizer = graph(kind)
    text = tf.TensorSpec([None], tf.string)

    @tf.function(input_signature=[text])
    def encode(text):
        ids = module.tokenizer.encode(text, add_special_tokens=True, max_length=50)
        decoded = module.tokenizer.decode(ids)
        return {"ids": ids.to_tensor(-1), "text": decoded}

    @tf.function(input_signature=[text, text])
    def pairs(first, second):
        ids, segments = module.tokenizer.encode_pairs(first, second, 20)
        return {"ids": ids.to_tensor(-1), "segments": segments.to_tensor(-1)}

    signatures = {"serving_default": encode, "pairs": pairs}
    tf.saved_model.save(module, str(tmp_path / "1"), signatures)
    used = set()
    for function in signatures.values():
        definition = function.get_concrete_function().graph.as_graph_def()
        nodes = [*definition.node]
        nodes += [n for f in definition.library.function for n in f.node_def]
        used |= {node.op for node in nodes}
    served = json.loads((root / "tfllm/serving/server_ops.json").read_text())
    assert used <= set(served["core"].split())
    assert not {op for op in used if "PyFunc" in op or "Sentencepiece" in op}
    texts = [t for t in fuzzed(200, 11) if "\x00" not in t]
    expected = tokenizer.encode(texts, add_special_tokens=True, max_length=50)
    with_model = c_api.Process(tmp_path / "1")
    try:
        assert "tensorflow" not in with_model.modules
        answer = with_model.run("serving_default", {"text": texts})
        got = [[i for i in row if i >= 0] for row in answer["ids"].tolist()]
        assert got == expected
        assert answer["text"].tolist() == tokenizer.decode(expected)
        both = with_model.run("pairs", {"first": texts, "second": texts[::-1]})
        ids, segments = tokenizer.encode_pairs(texts, texts[::-1], 20)
        assert [[i for i in r if i >= 0] for r in both["ids"].tolist()] == ids
        assert [[i for i in r if i >= 0] for r in both["segments"].tolist()] == segments
    finally:
        with_model.close()
