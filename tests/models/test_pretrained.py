"""Checkpoints of others: equal to their references, strict, and never a pickle."""

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file

from tests.models import hf_reference
from tests.models.plain_cache import Cache
from tfllm.core.errors import UserError
from tfllm.models.decoder import (
    DecoderConfig,
    decoder,
    hidden_model,
    layers_of,
    run,
    to_logits,
)
from tfllm.models.encoder import EncoderConfig, encoder
from tfllm.models.pretrained import open_checkpoint, presets, save_hf
from tfllm.text import Tokenizer

RNG = np.random.default_rng(0)


def opened(preset):
    try:
        return open_checkpoint(preset)
    except UserError as error:
        if "cannot be fetched" in str(error):
            pytest.skip(str(error))
        raise


def outputs(model, ids, mask=None, segments=None):
    ids = np.asarray(ids, "int32")
    arrays = {
        "token_ids": ids,
        "padding_mask": np.ones_like(ids),
        "segment_ids": 0 * ids,
    }
    if mask is not None:
        arrays |= {"padding_mask": mask.astype("int32")}
    arrays |= {"source_ids": ids, "source_mask": arrays["padding_mask"]}
    if segments is not None:
        arrays |= {"segment_ids": segments.astype("int32")}
    found = model({name: arrays[name] for name in model.input})
    found = found if isinstance(found, dict) else {"logits": found}
    return {name: ops.convert_to_numpy(x) for name, x in found.items()}


def greedy(checkpoint, model, ids, count):
    """Ids after a prompt, with a cache; and the logits after the prompt."""
    config, layers, first = checkpoint.config, layers_of(model), None
    capacity, new = len(ids) + count, list(ids)
    caches = [Cache(capacity, config, rows=1) for _ in range(config.num_layers)]
    known = 0
    while len(ids) + count > known:
        places = np.arange(known, len(new), dtype="int32")
        hidden = run(
            config,
            layers,
            np.array([new[known:]], "int32"),
            (np.arange(capacity) < len(new)).astype("int32")[None],
            positions=places[None],
            places=places,
            caches=caches,
        )
        logits = ops.convert_to_numpy(to_logits(layers, hidden))[0, -1]
        first, known = logits if first is None else first, len(new)
        new.append(int(logits.argmax()))
    return new[len(ids) : len(ids) + count], first


# -- real models ----------------------------------------------------------------------


def test_minilm(shared):
    checkpoint = opened("minilm-l6")
    assert checkpoint.family == "bert"
    assert checkpoint.config.pooler
    model, tokenizer = checkpoint.build(), checkpoint.tokenizer()
    path = shared / "models/all_minilm_l6_v2/expected_fp32.json"
    expected, embeddings = json.loads(path.read_text()), []
    for row in expected["sentences"]:
        assert tokenizer.encode([row["text"]], add_special_tokens=True) == [row["ids"]]
        hidden = outputs(model, [row["ids"]])["hidden"][0]
        np.testing.assert_allclose(hidden[0, :8], row["cls_hidden_first8"], atol=1e-4)
        mean = hidden.mean(0)
        embeddings.append(mean / np.linalg.norm(mean))
        first = embeddings[-1][:16]
        np.testing.assert_allclose(first, row["embedding_first16"], atol=1e-4)
    cosines = np.array(embeddings) @ np.array(embeddings).T
    np.testing.assert_allclose(cosines, expected["cosine"], atol=1e-4)


@pytest.fixture(scope="module")
def smollm2():
    folder = Path(__file__).parents[3] / "shared/data/models"
    path = folder / "smollm2_135m_instruct_q4_1/expected_fp32_dequantised.json"
    if not path.is_file():
        pytest.skip("the data sets are not beside this checkout")
    checkpoint = opened("smollm2-135m-instruct")
    return checkpoint, checkpoint.build(), json.loads(path.read_text())


@pytest.mark.slow
def test_smollm2_first_logits_and_tokenizer(smollm2):
    checkpoint, model, expected = smollm2
    assert checkpoint.config.head_size is None
    assert checkpoint.config.num_kv_heads == 3
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.pad_id not in (None, tokenizer.eos_id)
    assert tokenizer.vocabulary_size == checkpoint.config.vocabulary_size
    for row in expected["generations"]:
        ids = row["prompt_ids"]
        assert tokenizer.encode([row["prompt"]], parse_special=True) == [ids]
        logits = outputs(model, [ids])["logits"][0, -1]
        best = np.argsort(-logits)[:5]
        assert best.tolist() == [token for token, _ in row["top5_first_step"]]
        wanted = [value for _, value in row["top5_first_step"]]
        np.testing.assert_allclose(logits[best], wanted, atol=1e-4)


@pytest.mark.slow
def test_smollm2_greedy_ids_and_perplexity(smollm2):
    checkpoint, model, expected = smollm2
    for row in expected["generations"]:
        wanted = row["greedy_ids"]
        assert greedy(checkpoint, model, row["prompt_ids"], len(wanted))[0] == wanted
    probe = expected["wikitext_probe"]
    ids = checkpoint.tokenizer().encode([probe["text"]])[0][:1024]
    assert ids[:32] == probe["ids_first_32"]
    logits = outputs(model, [ids])["logits"][0, :-1].astype("float64")
    logits -= logits.max(-1, keepdims=True)
    right = logits[np.arange(len(ids) - 1), ids[1:]]
    loss = (np.log(np.exp(logits).sum(-1)) - right).mean()
    assert loss == pytest.approx(probe["first_1024_token_mean_nll"], abs=1e-4)


def test_stories(shared, tmp_path):
    folder = shared / "models/stories260K"
    checkpoint = open_checkpoint(folder)
    assert checkpoint.source.name == "stories260K.bin"
    model = checkpoint.build()
    expected = json.loads((folder / "expected_greedy.json").read_text())
    wanted = expected["greedy_token_ids"]
    ids, first = greedy(checkpoint, model, wanted[:1], 20)
    np.testing.assert_allclose(
        first[:16], expected["first_step_logits_after_bos"], atol=1e-4
    )
    assert ids == wanted[1:21]
    full = outputs(model, [wanted])["logits"][0]
    assert full[:-1].argmax(-1).tolist() == wanted[1:]
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.decode([wanted])[0].strip() == expected["text"].strip()
    # As a Hugging Face directory it is the same model.
    save_hf(model, checkpoint.config, "llama", tmp_path / "hf", tokenizer)
    again = open_checkpoint(tmp_path / "hf")
    np.testing.assert_array_equal(outputs(again.build(), [wanted])["logits"][0], full)
    assert again.tokenizer().definition == tokenizer.definition
    settings = json.loads((tmp_path / "hf/config.json").read_text())
    assert settings["bos_token_id"] == tokenizer.bos_id


def test_llama2c_files_that_are_broken_or_of_version_1(shared, tmp_path):
    source = shared / "models/stories260K/stories260K.bin"
    data, path = source.read_bytes(), tmp_path / "x.bin"
    for broken in (b"", b"nothing", data[:-8], data + b"\0\0\0\0", b"24ka\2\0\0\0" * 9):
        path.write_bytes(broken)
        with pytest.raises(UserError):
            open_checkpoint(path)
    wanted = open_checkpoint(source)
    head = b"24ka" + struct.pack("<i", 1) + data[:28] + b"\1"
    names = list(wanted.tensors)
    norms = [n for n in names if "norm" in n]
    rest = [n for n in names if n not in norms]
    pieces = {n: wanted.tensors[n].read() for n in names}
    for name, heads in (("q_proj", 8), ("k_proj", 4)):  # back to neighbouring pairs
        for key in [n for n in names if name in n]:
            rows = pieces[key].reshape(heads, 2, -1, 64).swapaxes(1, 2)
            pieces[key] = rows.reshape(pieces[key].shape)
    order = sorted(norms, key=lambda n: ("post" in n) + 2 * ("layers" not in n)) + rest
    path.write_bytes(
        head.ljust(256, b"\0")
        + b"".join(pieces[n].astype("<f4").tobytes() for n in order)
    )
    found = open_checkpoint(path)
    assert found.config == wanted.config
    for name in names:
        a, b = found.tensors[name].read(), wanted.tensors[name].read()
        np.testing.assert_array_equal(a, b)


# -- GGUF -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q4_K Q6_K".split())
def test_gguf_types(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    config = DecoderConfig(64, 256, 1, 4, 2, intermediate_size=256, max_length=32)
    model = decoder(config)
    for weight in model.weights:
        weight.assign(RNG.normal(0.1, 0.1, weight.shape))
    folder, path = save_hf(model, config, "llama", tmp_path / "hf"), tmp_path / "x.gguf"
    wanted = write_gguf(gguf, folder, path, kind, "llama")
    checkpoint = open_checkpoint(path)
    found = checkpoint.build()
    assert checkpoint.config == config
    reference = decoder(config)
    for name, tensor in checkpoint.tensors.items():
        if "q_proj" not in name and "k_proj" not in name:
            np.testing.assert_array_equal(tensor.read(), wanted[name])
    if kind == "F32":
        reference.set_weights(model.get_weights())
        ids = RNG.integers(0, 64, (1, 9))
        np.testing.assert_array_equal(
            outputs(found, ids)["logits"], outputs(reference, ids)["logits"]
        )


def write_gguf(gguf, folder, path, kind, architecture):
    """llama.cpp's own conversion, rows of query and key turned as it does."""
    from tfllm.models.pretrained.tensors import GGUF_BLOCK, GGUF_REST

    settings = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_rope_freq_base(settings["rope_theta"])
    writer.add_key_length(settings["head_dim"])
    if settings["rope_scaling"]:
        size = settings["head_dim"]
        from tfllm.layers.positions import rotary_frequencies

        base = settings["rope_theta"]
        scaled = rotary_frequencies(size, base, settings["rope_scaling"])
        writer.add_tensor("rope_freqs.weight", rotary_frequencies(size, base) / scaled)
    names = {theirs: ours for ours, theirs in (GGUF_BLOCK | GGUF_REST).items()}
    target, wanted = gguf.GGMLQuantizationType[kind], {}
    for name, array in load_file(folder / "model.safetensors").items():
        stem, _, end = name.rpartition(".")
        block = re.match(r"model\.layers\.(\d+)\.(.*)", stem)
        new = f"blk.{block[1]}.{names[block[2]]}" if block else names[stem]
        for part, key in (("q_proj", "attention"), ("k_proj", "key_value")):
            if part in name and architecture == "llama":
                heads = settings[f"num_{key}_heads"]
                rows = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2)
                array = rows.reshape(array.shape)
        if array.ndim == 1:
            writer.add_tensor(f"{new}.{end}", array)
            wanted[name] = array
            continue
        if kind in ("Q4_K", "Q6_K"):  # the package writes no K-quants: any bits will do
            block_size, size = gguf.GGML_QUANT_SIZES[target]
            shape = (*array.shape[:-1], array.shape[-1] // block_size * size)
            packed = RNG.integers(0, 256, shape).astype("uint8")
            halves = packed.view("<f2")  # … but not those that are infinite
            halves[~np.isfinite(halves) | (np.abs(halves) > 9)] = 0.5
        else:
            packed = gguf.quants.quantize(array, target)
        writer.add_tensor(f"{new}.{end}", packed, raw_dtype=target)
        wanted[name] = gguf.quants.dequantize(packed, target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return wanted


def test_gguf_of_llama_3_and_qwen(tmp_path):
    gguf = pytest.importorskip("gguf")
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    shapes = {
        "llama": {"rope_base": 5e5, "rope_scaling": scaling, "head_size": 64},
        "qwen2": {"attention_bias": True, "norm_epsilon": 1e-6},
        "qwen3": {"qk_norm": True, "head_size": 64, "tie_embeddings": False},
    }
    for family, shape in shapes.items():
        config = DecoderConfig(64, 64, 2, 4, 2, intermediate_size=96, **shape)
        model = decoder(config)
        save_hf(model, config, family, tmp_path / family)
        path = tmp_path / f"{family}.gguf"
        write_gguf(gguf, tmp_path / family, path, "F32", family)
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == config
        ids = RNG.integers(0, 64, (1, 9))
        found = outputs(checkpoint.build(), ids)["logits"]
        np.testing.assert_allclose(found, outputs(model, ids)["logits"], atol=1e-5)


# -- every family, against transformers -----------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Tiny random models, made and answered by transformers; ours saved beside."""
    here = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    python = os.environ.get("TFLLM_HF_PYTHON", sys.executable if here else None)
    if not python:
        pytest.skip("no torch and transformers here, nor in TFLLM_HF_PYTHON")
    theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")

    def call(task, folder):
        command = [python, hf_reference.__file__, task, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    call("make", theirs)
    for name in hf_reference.MODELS:
        checkpoint = open_checkpoint(theirs / name)
        model = checkpoint.build()
        found = outputs(model, *hf_reference.batch(name))
        save_hf(
            model,
            checkpoint.config,
            checkpoint.family,
            ours / name,
            labels=checkpoint.labels,
            shard_bytes=20_000 if name == "qwen3" else 2_000_000_000,
        )
        np.savez(theirs / name / "ours.npz", **found)
    call("check", ours)
    return theirs, ours


@pytest.mark.parametrize("name", hf_reference.MODELS)
def test_equal_to_transformers_both_ways(reference, name):
    theirs, ours = (folder / name for folder in reference)
    expected, found = np.load(theirs / "expected.npz"), np.load(theirs / "ours.npz")
    back = np.load(ours / "found.npz")
    mask = hf_reference.batch(name)[1].astype(bool)
    assert set(back) == set(expected) <= set(found)
    for key in expected:
        assert found[key].shape == expected[key].shape
        assert expected[key].std() > 0.01
        tokens = mask if found[key].ndim == 3 else slice(None)
        np.testing.assert_allclose(found[key][tokens], expected[key][tokens], atol=1e-5)
        np.testing.assert_allclose(back[key][tokens], expected[key][tokens], atol=1e-5)
    if name.endswith(("labels", "tags")):
        assert open_checkpoint(ours).labels == ["bad", "so so", "good"]


# -- strictness -----------------------------------------------------------------------


def tiny_bert(tmp_path, **heads):
    config = EncoderConfig(50, 16, 2, 2, 32, max_length=12)
    model = encoder(config, **heads)
    return model, config, save_hf(model, config, "bert", tmp_path / "bert")


def edit(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_every_tensor_is_accounted_for(tmp_path):
    model, _, folder = tiny_bert(tmp_path)
    before = model.get_weights()

    def change(tensors):
        tensors["encoder.layer.0.output.strange"] = np.zeros(3, "float32")
        tensors["embeddings.position_ids"] = np.zeros((1, 12), "int64")  # a buffer
        del tensors["encoder.layer.1.output.dense.bias"]
        tensors["pooler.dense.bias"] = np.zeros(7, "float32")

    edit(folder, change)
    with pytest.raises(UserError) as error:
        open_checkpoint(folder).fill(model)
    told = str(error.value)
    assert "left over bert.encoder.layer.0.output.strange" in told
    assert "missing bert.encoder.layer.1.output.dense.bias" in told
    assert "bert.pooler.dense.bias is [7], pooler/bias is [16]" in told
    assert "position_ids" not in told
    assert told.count(";") == 2
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_body_is_taken_over_by_a_model_with_another_head(tmp_path):
    model, config, folder = tiny_bert(tmp_path, masked_lm=True, next_sentence=True)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.heads == ("masked_lm", "next_sentence")
    other = encoder(config, num_labels=4)
    with pytest.raises(UserError, match=r"missing classifier\.weight"):
        checkpoint.fill(other)
    told = checkpoint.fill(other, heads=False)
    assert told["fresh"] == ["logits/kernel", "logits/bias"]
    assert {name.split(".")[1] for name in told["unused"]} == {
        "predictions",
        "seq_relationship",
    }
    ids = RNG.integers(0, 50, (2, 5))
    for name in ("hidden", "pooled"):
        np.testing.assert_array_equal(
            outputs(other, ids)[name], outputs(model, ids)[name]
        )
    three, other = encoder(config, num_labels=3), encoder(config, num_labels=4)
    labelled = open_checkpoint(save_hf(three, config, "bert", tmp_path / "three"))
    told = labelled.fill(other, heads=False)
    assert told["fresh"] == ["logits/kernel", "logits/bias"]
    assert sorted(told["unused"]) == ["classifier.bias", "classifier.weight"]
    with pytest.raises(UserError, match=r"classifier.weight is \[3, 16\]"):
        labelled.fill(other)
    with pytest.raises(UserError, match=r"missing bert\.encoder\.layer\.2"):
        deeper = encoder(EncoderConfig(50, 16, 3, 2, 32, max_length=12))
        checkpoint.fill(deeper, heads=False)


def test_tied_copies_old_names_and_half_precision(tmp_path):
    import ml_dtypes

    model, _, folder = tiny_bert(tmp_path, masked_lm=True)
    embedding = "bert.embeddings.word_embeddings.weight"
    copy = "cls.predictions.decoder.weight"

    def old(tensors):
        tensors[copy] = tensors[embedding].copy()
        for end, name in (("weight", "gamma"), ("bias", "beta")):
            for key in [k for k in tensors if k.endswith(f"LayerNorm.{end}")]:
                tensors[key.removesuffix(end) + name] = tensors.pop(key)

    edit(folder, old)
    ids = RNG.integers(0, 50, (2, 5))
    wanted = outputs(model, ids)["masked_lm"]
    found = outputs(open_checkpoint(folder).build(), ids)["masked_lm"]
    np.testing.assert_array_equal(found, wanted)
    edit(folder, lambda tensors: tensors.pop(embedding))  # only the copy is there
    found = outputs(open_checkpoint(folder).build(), ids)["masked_lm"]
    np.testing.assert_array_equal(found, wanted)
    edit(folder, lambda tensors: tensors.update({embedding: tensors[copy] + 1}))
    with pytest.raises(UserError, match="said to be tied"):
        open_checkpoint(folder)
    for dtype in (ml_dtypes.bfloat16, np.float16):

        def halve(tensors, dtype=dtype):
            tensors.pop(copy, None)
            tensors |= {k: v.astype(dtype) for k, v in tensors.items()}

        edit(folder, halve)
        built = open_checkpoint(folder).build()
        array = load_file(folder / "model.safetensors")[embedding].astype("float32")
        np.testing.assert_array_equal(
            built.get_layer("token_embedding").embeddings, array
        )


LOADING = """
import sys
from tfllm.models.encoder import EncoderConfig, encoder
from tfllm.models.pretrained import open_checkpoint, save_hf
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024
config = EncoderConfig(1000, 1024, 8, 8, 4096, max_length=16)
if sys.argv[1] == "save":
    save_hf(encoder(config), config, "bert", sys.argv[2])
else:
    checkpoint, model = open_checkpoint(sys.argv[2]), encoder(config)
    before = peak()
    checkpoint.fill(model)
    print(peak() - before)
"""


@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_weights(tmp_path, root):
    def call(task):
        command = [sys.executable, "-c", LOADING, task, str(tmp_path / "x")]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    call("save")
    megabytes = (tmp_path / "x/model.safetensors").stat().st_size / 2**20
    assert megabytes > 380
    assert float(call("load").split()[-1]) < megabytes / 3


def test_bfloat16_both_ways(tmp_path):
    model, config, folder = tiny_bert(tmp_path)
    low = open_checkpoint(folder).build("bfloat16")
    save_hf(low, config, "bert", tmp_path / "low")
    tensors = load_file(tmp_path / "low/model.safetensors")
    assert {str(x.dtype) for x in tensors.values()} == {"bfloat16"}
    for a, b in zip(
        open_checkpoint(tmp_path / "low").build().weights, model.weights, strict=True
    ):
        np.testing.assert_array_equal(a, ops.cast(ops.cast(b, "bfloat16"), "float32"))


def test_pickles_are_never_opened(tmp_path, monkeypatch):
    import pickle

    def no(*args):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(pickle, "load", no)
    monkeypatch.setattr(pickle, "loads", no)
    _, _, folder = tiny_bert(tmp_path)
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt"):
        (folder / name).write_bytes(b"PK\3\4 and so on")
        if name == "pytorch_model.bin":  # before PyTorch 1.6
            (folder / name).write_bytes(b"\x80\x02\x8a\nl\xfcF")
        for path in (folder, folder / name):
            with pytest.raises(UserError, match=r"pickle.*save_pretrained"):
                open_checkpoint(path)
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        open_checkpoint(folder)


def test_what_is_not_known_is_told_in_one_line(tmp_path, monkeypatch):
    _, _, folder = tiny_bert(tmp_path)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    for change, told in (
        ({"model_type": "berd"}, "Did you mean 'bert'?"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "mish"}, "mish"),
        ({"vocab_size": ...}, "vocab_size"),
    ):
        changed = {k: v for k, v in (settings | change).items() if v is not ...}
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=re.escape(told)):
            open_checkpoint(folder)
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        open_checkpoint(folder)
    path.write_text(json.dumps(settings))
    for name in ("no such thing", "minilm-l7", "../outside"):
        with pytest.raises(UserError) as error:
            open_checkpoint(name)
        assert "minilm-l6" in str(error.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be fetched from the hub") as error:
        open_checkpoint("google-bert/bert-base-chinese")
    assert "\n" not in str(error.value)
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "../x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside"):
        open_checkpoint(folder)
    index["weight_map"]["b"] = "model-00001.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(folder / "model.safetensors", folder / "model-00001.safetensors")
    with pytest.raises(UserError, match="the shards lack a, b"):
        open_checkpoint(folder)
    (folder / "model-00001.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match="cannot read the weights"):
        open_checkpoint(folder)


def test_the_hub_gives_no_pickles(monkeypatch, tmp_path):
    import fnmatch

    import huggingface_hub

    _, _, folder = tiny_bert(tmp_path)
    asked = []

    def fetch(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert open_checkpoint("someone/bert").family == "bert"
    patterns = asked[0][1]
    assert not any(fnmatch.fnmatch("pytorch_model.bin", p) for p in patterns)
    assert any(fnmatch.fnmatch("model.safetensors.index.json", p) for p in patterns)


def test_save_refuses_what_a_family_cannot_say(tmp_path):
    config = DecoderConfig(50, 16, 2, 2, qk_norm=True, dropout=0.1)
    model = decoder(config)
    with pytest.raises(UserError, match="qk_norm=True"):
        save_hf(model, config, "llama", tmp_path / "x")
    with pytest.raises(UserError, match="family of encoders"):
        save_hf(model, config, "bert", tmp_path / "x")
    with pytest.raises(UserError, match="Did you mean 'llama'"):
        save_hf(model, config, "lama", tmp_path / "x")
    model.get_layer("block_0").attention.query.enable_lora(2)
    with pytest.raises(UserError, match="Merge adapters"):
        save_hf(model, config, "qwen3", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    config = EncoderConfig(50, 16, 2, 2, 32, max_length=12)
    with pytest.raises(UserError, match="3 outputs"):
        model = encoder(config, num_labels=3)
        save_hf(model, config, "bert", tmp_path / "x", labels=["a"])


def test_padding_is_told_from_the_end(tmp_path):
    _, _, folder = tiny_bert(tmp_path)
    tokenizer = Tokenizer.train(["a cat", "a dog"], "bpe", 300)
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    roles = json.loads(path.read_text())
    path.write_text(json.dumps(roles | {"pad_token": roles["eos_token"]}))
    found = open_checkpoint(folder).tokenizer()
    assert found.pad_id == found.unk_id != found.eos_id
    assert found.vocabulary_size == tokenizer.vocabulary_size


def test_presets_have_names():
    assert set(presets.NAMES) == {"minilm-l6", "smollm2-135m-instruct"}


# -- keras-hub ------------------------------------------------------------------------


LLAMA3 = {
    "rope_frequency_adjustment_factor": 4.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 16,
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BertBackbone", {}),
        ("RobertaBackbone", {}),
        ("AlbertBackbone", {"embedding_dim": 16}),
        ("DistilBertBackbone", {}),
        ("GPT2Backbone", {}),
        ("LlamaBackbone", {"num_key_value_heads": 2, "rope_max_wavelength": 500}),
        ("Llama3Backbone", {"num_key_value_heads": 1, **LLAMA3}),
        ("MistralBackbone", {"num_key_value_heads": 2, "sliding_window": 3}),
        ("QwenBackbone", {"num_key_value_heads": 2}),
        ("Qwen3Backbone", {"num_key_value_heads": 2, "head_dim": 12}),
    ],
)
def test_keras_hub_presets(name, options, tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    sizes = {"vocabulary_size": 60, "num_layers": 2, "hidden_dim": 32}
    sizes |= {"intermediate_dim": 48, **options}
    if "num_key_value_heads" in options:
        sizes |= {"num_query_heads": 4}
    else:
        sizes |= {"num_heads": 4, "max_sequence_length": 16}
    backbone = getattr(keras_hub.models, name)(**sizes)
    for weight in backbone.weights:
        weight.assign(RNG.normal(0.1, 0.2, weight.shape))
    ids = RNG.integers(3, 60, (2, 9)).astype("int32")
    inputs = {
        "token_ids": ids,
        "padding_mask": np.ones_like(ids),
        "segment_ids": 0 * ids,
    }
    expected = backbone({k: inputs[k] for k in backbone.input})
    if isinstance(expected, dict):
        pooled, expected = expected["pooled_output"], expected["sequence_output"]
    backbone.save_to_preset(str(tmp_path / "preset"))
    backbone.save(tmp_path / "model.keras")
    for path in (tmp_path / "preset", tmp_path / "model.keras"):
        checkpoint = open_checkpoint(path)
        model = checkpoint.build()
        if isinstance(checkpoint.config, DecoderConfig):
            model = hidden_model(model)
            found = ops.convert_to_numpy(model({k: inputs[k] for k in model.input}))
        else:
            found = outputs(model, ids)
            if checkpoint.config.pooler:
                np.testing.assert_allclose(found["pooled"], pooled, atol=1e-5)
            found = found["hidden"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_keras_hub_tokenizer_and_other_models(tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s"]
    backbone = keras_hub.models.BertBackbone(8, 1, 2, 16, 16, max_sequence_length=8)
    backbone.save_to_preset(str(tmp_path / "preset"))
    tokenizer = keras_hub.models.BertTokenizer(words, lowercase=True)
    tokenizer.save_to_preset(str(tmp_path / "preset"))
    found = open_checkpoint(tmp_path / "preset").tokenizer()
    assert found.encode(["A cats"], add_special_tokens=True) == [[2, 5, 6, 7, 3]]
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(
        tmp_path / "other.keras"
    )
    with pytest.raises(UserError, match="Sequential"):
        open_checkpoint(tmp_path / "other.keras")
