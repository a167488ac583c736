"""Runs in an environment with torch and transformers: tiny random models, their logits.

python hf_reference.py make DIRECTORY      # a folder a model, and expected.npz in it
python hf_reference.py check DIRECTORY     # loads them, writes found.npz
"""

import sys
from pathlib import Path

import numpy as np

TEXT = {"vocab_size": 60, "max_position_embeddings": 40}
BERT = TEXT | {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
DISTIL = TEXT | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
GPT2 = {"vocab_size": 60, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
LLAMA = BERT | {"num_key_value_heads": 2}
ROPE3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.0}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2}
T5 |= {"num_decoder_layers": 3, "num_heads": 4, "relative_attention_num_buckets": 8}
T5 |= {"relative_attention_max_distance": 9, "decoder_start_token_id": 0}
T5_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
THREE = {"num_labels": 3, "id2label": {0: "bad", 1: "so so", 2: "good"}}
# folder: (family, class without its stem, configuration)
MODELS = {
    "bert": ("Bert", "Model", BERT),
    "bert-mlm": ("Bert", "ForMaskedLM", BERT | {"hidden_act": "gelu_new"}),
    "bert-pretraining": ("Bert", "ForPreTraining", BERT),
    "bert-labels": ("Bert", "ForSequenceClassification", BERT | THREE),
    "bert-tags": ("Bert", "ForTokenClassification", BERT | THREE),
    "roberta": ("Roberta", "Model", BERT | {"type_vocab_size": 1}),
    "roberta-mlm": ("Roberta", "ForMaskedLM", BERT),
    "roberta-labels": ("Roberta", "ForSequenceClassification", BERT | THREE),
    "albert": ("Albert", "Model", BERT | {"embedding_size": 16}),
    "albert-mlm": ("Albert", "ForMaskedLM", BERT | {"embedding_size": 32}),
    "albert-labels": (
        "Albert",
        "ForSequenceClassification",
        BERT | THREE | {"embedding_size": 16},
    ),
    "distilbert": ("DistilBert", "Model", DISTIL),
    "distilbert-mlm": ("DistilBert", "ForMaskedLM", DISTIL),
    "distilbert-labels": ("DistilBert", "ForSequenceClassification", DISTIL | THREE),
    "gpt2": ("GPT2", "LMHeadModel", GPT2),
    "gpt2-untied": ("GPT2", "LMHeadModel", GPT2 | {"tie_word_embeddings": False}),
    "llama": ("Llama", "ForCausalLM", LLAMA),
    "llama-3": (
        "Llama",
        "ForCausalLM",
        LLAMA | {"rope_parameters": ROPE3, "tie_word_embeddings": True, "head_dim": 12},
    ),
    "llama-linear": (
        "Llama",
        "ForCausalLM",
        LLAMA
        | {"rope_parameters": LINEAR, "attention_bias": True, "mlp_bias": True}
        | {"num_key_value_heads": 1},
    ),
    "smollm2": ("Llama", "ForCausalLM", LLAMA | {"tie_word_embeddings": True}),
    "mistral": ("Mistral", "ForCausalLM", LLAMA | {"sliding_window": 4}),
    "qwen2": ("Qwen2", "ForCausalLM", LLAMA),
    "qwen2-window": (
        "Qwen2",
        "ForCausalLM",
        LLAMA
        | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", "ForCausalLM", LLAMA | {"head_dim": 12}),
    "t5": ("T5", "ForConditionalGeneration", T5),
    "t5-gated": ("T5", "ForConditionalGeneration", T5 | T5_GATED),
    "t5-untied": ("T5", "ForConditionalGeneration", T5 | T5_GATED),
}


def batch(name):
    """The same inputs on both sides."""
    random = np.random.default_rng(sum(map(ord, name)))
    ids = random.integers(3, 60, (3, 11))
    mask = (np.arange(11) < np.array([[11], [7], [4]])).astype("int64")
    ids = np.where(mask, ids, 1)  # RoBERTa counts its positions by the padding token
    segments = mask * (np.arange(11) > 2) * (not name.startswith("roberta"))
    return ids, mask, segments


def outputs(model, name):
    """The model's answers by the names that we give them, at real tokens."""
    import torch

    ids, mask, segments = batch(name)
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if name.startswith(("bert", "albert")):
        inputs["token_type_ids"] = torch.tensor(segments)
    if name.startswith("t5"):  # both sides read the same
        inputs["decoder_input_ids"] = inputs["input_ids"]
        inputs["decoder_attention_mask"] = inputs["attention_mask"]
    with torch.no_grad():
        found = model.eval()(**inputs)
    kind = type(model).__name__
    names = {"last_hidden_state": "hidden", "pooler_output": "pooled"}
    names |= {
        "prediction_logits": "masked_lm",
        "seq_relationship_logits": "next_sentence",
    }
    names["logits"] = "masked_lm" if kind.endswith("MaskedLM") else "logits"
    return {
        ours: found[theirs].float().numpy()
        for theirs, ours in names.items()
        if found.get(theirs) is not None
    }


def main():
    import torch
    import transformers

    task, folder = sys.argv[1], Path(sys.argv[2])
    for name, (stem, end, config) in MODELS.items():
        cls = getattr(transformers, stem + end)
        target = folder / name
        if task == "make":
            torch.manual_seed(0)
            model = cls(getattr(transformers, f"{stem}Config")(**config)).float()
            if name == "t5-untied":
                head = torch.zeros_like(model.lm_head.weight)
                model.lm_head.weight = torch.nn.Parameter(head)
            for parameter in model.parameters():  # biases and norms too
                torch.nn.init.normal_(parameter, 0.1, 0.2)
            if config.get("type_vocab_size") == 1:  # bfloat16 and shards, once
                model.save_pretrained(target, max_shard_size="20KB")
            else:
                model.save_pretrained(target)
            np.savez(target / "expected.npz", **outputs(model, name))
        elif target.is_dir():
            model, info = cls.from_pretrained(
                target, output_loading_info=True, dtype=torch.float32
            )
            lost = [*info["missing_keys"], *info["unexpected_keys"]]
            assert not lost, (name, lost)
            np.savez(target / "found.npz", **outputs(model, name))


if __name__ == "__main__":
    main()
