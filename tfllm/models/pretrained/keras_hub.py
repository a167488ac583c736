"""Presets and `.keras` files of keras-hub (keras-nlp): the backbone alone."""

import re
from pathlib import Path

import numpy as np

from tfllm.core.errors import UserError
from tfllm.models.decoder import DecoderConfig
from tfllm.models.encoder import EncoderConfig
from tfllm.models.pretrained.configs import write_config
from tfllm.models.pretrained.families import FAMILIES
from tfllm.models.pretrained.tensors import Lazy, to_theirs

BACKBONES = {
    "BertBackbone": "bert",
    "RobertaBackbone": "roberta",
    "XLMRobertaBackbone": "roberta",
    "AlbertBackbone": "albert",
    "DistilBertBackbone": "distilbert",
    "GPT2Backbone": "gpt2",
    "LlamaBackbone": "llama",
    "Llama3Backbone": "llama",
    "MistralBackbone": "mistral",
    "QwenBackbone": "qwen2",
    "Qwen3Backbone": "qwen3",
}
CONFIG = {
    "vocabulary_size": "vocabulary_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "num_query_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "hidden_dim": "hidden_size",
    "embedding_dim": "embedding_size",
    "head_dim": "head_size",
    "intermediate_dim": "intermediate_size",
    "max_sequence_length": "max_length",
    "num_segments": "num_segments",
    "rope_max_wavelength": "rope_base",
    "layer_norm_epsilon": "norm_epsilon",
    "sliding_window": "window",
    "tie_word_embeddings": "tie_embeddings",
}
SCALING = {
    "rope_frequency_adjustment_factor": "factor",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_pretraining_sequence_length": "original_max_position_embeddings",
}
ENCODERS = {  # what stands in their code, not in their configurations
    "bert": {"activation": "gelu_tanh"},
    "albert": {"activation": "gelu_tanh"},
    "roberta": {"norm_epsilon": 1e-5, "position_offset": 2, "num_segments": 1},
}
PATHS = (  # their path → ours, one after the other
    (r"^(token_and_position_embedding|embeddings)/", ""),
    (r"^(transformer_layer_|group_0_inner_layer_)(\d+)/", r"block_\2/"),
    (r"self_attention(_layer)?/attention_output/", "attention/output/"),
    (r"self_attention(_layer)?/(query|key)_dense_layernorm/", r"attention/\2_norm/"),
    (r"self_attention(_layer)?/", "attention/"),
    (r"self_attention_layer_?norm/", "attention_norm/"),
    (r"feedforward_layer_?norm/", "feed_forward_norm/"),
    (r"feedforward_intermediate_dense/", "feed_forward/up/"),
    (r"feedforward_gate_dense/", "feed_forward/gate/"),
    (r"feedforward_output_dense/", "feed_forward/down/"),
    (r"^embeddings_layer_norm/", "embedding_norm/"),
    (r"^pooled_dense/", "pooler/"),
    (r"^(layer_norm|sequence_output_layernorm)/", "final_norm/"),
)


def read(path: Path) -> tuple[dict, dict[str, Lazy]]:
    """Configuration and tensors, as if Hugging Face had written them.

    Args:
        path: A preset's directory, or a `.keras` file of a backbone or task.

    Raises:
        UserError: It is not one of `BACKBONES`, or asks for what is not known here.
    """
    import keras
    import keras_hub

    try:
        if path.is_dir():
            model = keras_hub.models.Backbone.from_preset(str(path))
        else:
            model = keras.saving.load_model(path, compile=False)
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"Keras cannot read it: {reason}", path) from None
    model = getattr(model, "backbone", model)
    kind = type(model).__name__
    if kind not in BACKBONES:
        fix = f"Known are {', '.join(BACKBONES)}"
        raise UserError(f"models of Keras' class '{kind}' are not known", path, fix)
    name, theirs = BACKBONES[kind], model.get_config()
    ours = {}
    for variable in model.weights:
        place = variable.path
        for pattern, new in PATHS:
            place = re.sub(pattern, new, place)
        array = np.asarray(variable.value)
        if "/attention/" in place and place.endswith("/output/kernel"):
            array = array.reshape(-1, array.shape[-1])
        elif "/attention/" in place and "norm" not in place:
            rows = (array.shape[0], -1) if place.endswith("kernel") else (-1,)
            array = array.reshape(rows)
        if name == "roberta" and place.startswith("position_embedding"):
            array = np.pad(array, ((2, 0), (0, 0)))  # the two that nobody uses
        ours[place] = Lazy(array.shape, lambda array=array: array)
    if name == "roberta":
        nothing = np.zeros((1, theirs["hidden_dim"]), "float32")
        ours["segment_embedding/embeddings"] = Lazy(nothing.shape, lambda: nothing)
    found, strangers = to_theirs(FAMILIES[name], ours)
    if strangers:
        raise UserError(f"unknown weights {', '.join(strangers)}", path)
    shape = FAMILIES[name].style | {
        CONFIG[key]: value for key, value in theirs.items() if key in CONFIG
    }
    if FAMILIES[name].kind == "encoder":
        config = EncoderConfig(**shape | ENCODERS.get(name, {}))
    else:
        untied = "token_embedding/reverse_embeddings" in ours
        config = DecoderConfig(
            **shape | {"tie_embeddings": not untied} | _rotary(theirs, path)
        )
    return write_config(name, config), found


def _rotary(theirs: dict, path: Path) -> dict:
    """Scaling of rotary positions."""
    windowed = theirs.get("use_sliding_window_attention")
    if theirs.get("rope_frequency_adjustment_factor"):
        scaling = {ours: theirs[key] for key, ours in SCALING.items()}
        return {"rope_scaling": {"rope_type": "llama3", **scaling}}
    factors = [theirs.get(f"rope_{x}scaling_factor", 1) for x in ("", "position_")]
    if windowed or factors != [1, 1]:
        raise UserError("its window or scaling of positions is not known", path)
    return {}
