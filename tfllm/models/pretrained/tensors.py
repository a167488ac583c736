"""Tensors in files, read one at a time: safetensors, GGUF, llama2.c.

Each reader returns `name → Lazy` under Hugging Face's names; the last two also make the
`config.json` that such a checkpoint would have.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tfllm.core.errors import UserError
from tfllm.models.pretrained.families import Family


@dataclass(frozen=True)
class Lazy:
    """A tensor that is read when it is wanted.

    Args:
        shape: Its shape.
        read: Returns it; floats of any size.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def to_theirs(
    family: Family, ours: dict[str, Lazy], classifier: bool = False
) -> tuple[dict[str, Lazy], list[str]]:
    """Their tensors from our variables by path, and the paths that have no place."""
    parts, strangers = {}, []
    for path, lazy in ours.items():
        tensor = family.tensor_of(path, classifier)
        if tensor is None:
            strangers.append(path)
        else:
            parts.setdefault(tensor.name, {})[tensor.part] = (tensor, lazy)

    def read(pieces):
        arrays = [np.asarray(pieces[part][1].read()) for part in sorted(pieces)]
        array = np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]
        return np.ascontiguousarray(array.T if pieces[0][0].transposed else array)

    found = {}
    for name, pieces in parts.items():
        tensor, lazy = pieces[0]
        shape = (*lazy.shape[:-1], lazy.shape[-1] * tensor.parts)
        shape = shape[::-1] if tensor.transposed else shape
        found[name] = Lazy(shape, partial(read, pieces))
    return found, strangers


# -- safetensors ----------------------------------------------------------------------


def safetensors(folder: Path) -> dict[str, Lazy]:
    """All tensors of `model.safetensors`, or of the shards that the index names."""
    import ml_dtypes  # noqa: F401  (numpy knows bfloat16 once this is imported)
    from safetensors import SafetensorError, safe_open

    index, parts = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.is_file():
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = sorted(set(places.values()))
    found = {}

    def read(path, name):  # opened anew, so that what was read does not stay mapped
        with safe_open(path, framework="np") as file:
            return file.get_tensor(name)

    for part in parts:
        if Path(part).name != part:
            raise UserError(f"a shard outside of the directory: {part}", index)
        path = folder / part
        try:
            with safe_open(path, framework="np") as file:
                shapes = {k: file.get_slice(k).get_shape() for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read the weights: {error}", path) from None
        for name, shape in shapes.items():
            found[name] = Lazy(tuple(shape), partial(read, path, name))
    if index.is_file() and (lost := sorted(places.keys() - found.keys())):
        raise UserError(f"the shards lack {', '.join(lost)}", index)
    return found


# -- GGUF -----------------------------------------------------------------------------

GGUF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GGUF_REST = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
GGUF_CONFIG = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_dim": "attention.key_length",
}


def gguf(path: Path) -> tuple[dict, dict[str, Lazy]]:
    """Configuration and tensors of a GGUF file of the Llama or Qwen family.

    Quantised tensors are turned to float32 one by one. llama.cpp turns neighbouring
    rows of a head together in the llama architecture, Hugging Face its two halves: the
    rows of query and key are put back.
    """
    try:
        import gguf as library
    except ImportError:
        fix = "Install it: pip install gguf"
        raise UserError("GGUF files need the package gguf", path, fix) from None
    try:
        reader = library.GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
        raise UserError(f"a broken GGUF file: {error}", path) from None

    def value(key, default=None):
        field = reader.get_field(key)
        found = default if field is None else field.contents()
        # A float32: 1e-5 was written, 9.999999747378752e-06 is read.
        return float(f"{found:.7g}") if isinstance(found, float) else found

    kind = value("general.architecture")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise UserError(f"GGUF files of type '{kind}' are not known", path)
    settings = {name: value(f"{kind}.{key}") for name, key in GGUF_CONFIG.items()}
    settings = {name: x for name, x in settings.items() if x is not None}
    heads = settings["num_attention_heads"]
    counts = {"attn_q": heads, "attn_k": settings.get("num_key_value_heads", heads)}
    found, factors = {}, None
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        read = partial(library.dequantize, tensor.data, tensor.tensor_type)
        stem, _, end = tensor.name.rpartition(".")
        block, _, part = stem.removeprefix("blk.").partition(".")
        if tensor.name == "rope_freqs.weight":
            factors = np.asarray(read(), "float32")
        elif stem in GGUF_REST:
            found[f"{GGUF_REST[stem]}.{end}"] = Lazy(shape, read)
        else:
            name = f"model.layers.{block}.{GGUF_BLOCK.get(part, part)}.{end}"
            if kind == "llama" and part in counts:
                read = partial(_halves, read, counts[part])
            found[name] = Lazy(shape, read)
    scaling = value(f"{kind}.rope.scaling.type", "none")
    if factors is not None:
        settings["rope_scaling"] = _llama3_scaling(factors, settings, path)
    elif scaling == "linear":
        factor = value(f"{kind}.rope.scaling.factor")
        settings["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling != "none":
        settings["rope_scaling"] = {"rope_type": scaling}
    settings |= {
        "model_type": kind,
        "vocab_size": found["model.embed_tokens.weight"].shape[0],
    }
    if (window := value(f"{kind}.attention.sliding_window")) and kind == "llama":
        settings |= {"model_type": "mistral", "sliding_window": window}
    size = settings.get("head_dim", settings["hidden_size"] // heads)
    settings["partial_rotary_factor"] = (
        value(f"{kind}.rope.dimension_count", size) / size
    )
    settings["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in found
    settings["tie_word_embeddings"] = "lm_head.weight" not in found
    return settings, found


def _halves(read, heads: int) -> np.ndarray:
    """Rows of query or key from neighbouring pairs to two halves a head."""
    rows = np.asarray(read())
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _llama3_scaling(factors, settings, path) -> dict:
    """The scaling whose divisors a GGUF file holds; all known files have these two."""
    from tfllm.layers.positions import rotary_frequencies

    base, size = settings["rope_theta"], 2 * len(factors)
    for factor in (8.0, 32.0):
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        plain = rotary_frequencies(size, base)
        if np.allclose(plain / rotary_frequencies(size, base, scaling), factors, 1e-3):
            return scaling
    raise UserError("its scaling of rotary positions is not known", path)


# -- llama2.c -------------------------------------------------------------------------

LLAMA2C = {  # the legacy layout; every tensor of all blocks together
    "embed_tokens": ("vocab", "dim"),
    "layers.#.input_layernorm": ("dim",),
    "layers.#.self_attn.q_proj": ("dim", "dim"),
    "layers.#.self_attn.k_proj": ("kv", "dim"),
    "layers.#.self_attn.v_proj": ("kv", "dim"),
    "layers.#.self_attn.o_proj": ("dim", "dim"),
    "layers.#.post_attention_layernorm": ("dim",),
    "layers.#.mlp.gate_proj": ("hidden", "dim"),
    "layers.#.mlp.down_proj": ("dim", "hidden"),
    "layers.#.mlp.up_proj": ("hidden", "dim"),
    "norm": ("dim",),
}


def llama2c(path: Path) -> tuple[dict, dict[str, Lazy]]:
    """Configuration and tensors of llama2.c's float32 `.bin` (its versions 0 and 1)."""
    start, order = 28, list(LLAMA2C)
    with open(path, "rb") as file:
        head = file.read(256)
    if head[:2] == b"PK" or (head[:1] == b"\x80" and head[2:4] != b"\0\0"):
        raise no_pickle(path)
    if head[:4] == b"24ka":
        if head[4:8] != b"\1\0\0\0":
            raise UserError(
                "of llama2.c's versions only 0 and 1 (float32) are known", path
            )
        numbers, shared, start = struct.unpack_from("<7i", head, 8), head[36], 256
        norms = [name for name in order if "norm" in name]
        order = norms + [name for name in order if name not in norms]
    else:
        numbers = struct.unpack_from("<7i", head.ljust(28, b"\0"))
        shared = numbers[5] > 0
    dim, hidden, layers, heads, kv_heads, vocab, length = map(abs, numbers)
    if not (0 < heads <= dim < 1 << 20 and dim % heads == 0 and 0 < layers < 1 << 10):
        raise UserError("this is no llama2.c model", path)
    sizes = {
        "dim": dim,
        "hidden": hidden,
        "vocab": vocab,
        "kv": dim // heads * kv_heads,
    }
    data = np.memmap(path, "<f4", "r", start, (path.stat().st_size - start) // 4)
    found, at = {}, 0

    def take(name, shape):
        nonlocal at
        size = int(np.prod(shape))
        if at + size > len(data):
            raise UserError("the file ends too early", path)
        piece = data[at : at + size].reshape(shape)
        at += size
        count = {"q_proj": heads, "k_proj": kv_heads}.get(name.rpartition(".")[2])
        read = partial(np.array, piece)
        found[name + ".weight"] = Lazy(
            shape, partial(_halves, read, count) if count else read
        )

    for name in order:
        shape = tuple(sizes[size] for size in LLAMA2C[name])
        for i in range(layers if "#" in name else 1):
            take("model." + name.replace("#", str(i)), shape)
    if start == 28:  # tables of sines and cosines
        at += length * dim // heads
    if not shared:
        take("lm_head", (vocab, dim))
    if at != len(data):
        raise UserError(f"{len(data) - at} numbers are left over", path)
    settings = {
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": bool(shared),
    }
    return settings, found


def no_pickle(path: Path) -> UserError:
    """The error for weights that only a pickle holds."""
    command = (
        "from transformers import AutoModel as A; "
        "A.from_pretrained('IN').save_pretrained('OUT')"
    )
    return UserError(
        "its weights are a pickle, which could run any program and is never opened",
        path,
        f'Convert it where you trust it: python -c "{command}" (or the right class)',
    )
