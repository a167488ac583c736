"""What other people's checkpoints call things: one table a family, read both ways.

A row of `body` and `heads` is our layer and their module: `block_#` and `#` stand for
the number of the block, and the weights below follow `VARIABLES`. Names of the `body`
carry the family's prefix in files that have a head, and may carry it in those that have
none. `…[k/n]` is part k of n of a tensor that holds several of ours (GPT-2).
"""

import re
from dataclasses import dataclass, field

import numpy as np

from tfllm.models.decoder import STYLES
from tfllm.models.encoder_decoder import T5

VARIABLES = {
    "kernel": "weight",
    "embeddings": "weight",
    "gamma": "weight",
    "scale": "weight",
    "beta": "bias",
    "bias": "bias",
}


@dataclass(frozen=True)
class Family:
    """One family.

    Args:
        prefix: Of the body's tensors.
        body: Our layer → their module.
        config: Our field → their key, or (key, default).
        kind: `encoder`, `decoder` or `encoder_decoder`.
        heads: Our layer → their module, for what may or may not be there.
        classifier: The same, for whole texts' labels, where that head has another
            shape than for tags; these rows come first.
        tied: Their copies of another tensor of theirs.
        ignored: Patterns of their buffers.
        style: What all members have, our field → value.
        demands: Their key → the only value that is known here.
        transposed: A kernel lies as `[out, in]`.
        architectures: Their class by head: `""` (none), `masked_lm`, `next_sentence`,
            `labels`, `tags`, `causal_lm`, `seq2seq`.
    """

    prefix: str
    body: dict
    config: dict
    kind: str = "encoder"
    heads: dict = field(default_factory=dict)
    classifier: dict = field(default_factory=dict)
    tied: dict = field(default_factory=dict)
    ignored: tuple = ()
    style: dict = field(default_factory=dict)
    demands: dict = field(default_factory=dict)
    transposed: bool = True
    architectures: dict = field(default_factory=dict)

    def tensor_of(self, path: str, classifier: bool = False) -> "Tensor | None":
        """Their tensor for a variable's path of ours, or None if it has none.

        Args:
            path: Such as `block_0/attention/query/kernel`.
            classifier: Whether the rows of `classifier` count.
        """
        number = re.match(r"\w*block_(\d+)/", path)
        row = re.sub(r"^(\w*block_)\d+/", r"\1#/", path)
        layer, _, variable = row.rpartition("/")
        tables = [self.classifier] * classifier + [self.heads, self.body]
        for table in tables:
            if row in table:  # a single tensor has a row of its own
                name, part = table[row], ""
            elif layer in table and variable in VARIABLES:
                name, _, part = table[layer].partition("[")
                name += f".{VARIABLES[variable]}"
            else:
                continue
            name = self.prefix * (table is self.body) + name
            turned = self.transposed and variable == "kernel"
            return Tensor(
                name.replace("#", number[1]) if number else name,
                turned or variable == "reverse_embeddings",
                *(map(int, part.rstrip("]").split("/")) if part else (0, 1)),
            )
        return None

    def is_head(self, name: str) -> bool:
        """Whether a tensor of theirs may be left out when a body is taken over."""
        modules = {*self.heads.values(), *self.classifier.values()}
        modules |= {
            self.prefix + self.body[row] for row in self.body if row == "pooler"
        }
        return not modules.isdisjoint({name, name.rpartition(".")[0]}) or (
            name in self.tied
        )


@dataclass(frozen=True)
class Tensor:
    """Where a variable of ours lies among their tensors.

    Args:
        name: Their name.
        transposed: It lies the other way round.
        part: Which part of their last axis it is.
        parts: Number of these.
    """

    name: str
    transposed: bool
    part: int
    parts: int

    def shape(self, theirs: tuple) -> tuple:
        """Our shape from theirs."""
        shape = theirs[::-1] if self.transposed else tuple(theirs)
        return (*shape[:-1], shape[-1] / self.parts)

    def ours(self, array: np.ndarray) -> np.ndarray:
        """Our variable from their tensor."""
        array = array.T if self.transposed else array
        return np.split(array, self.parts, axis=-1)[self.part]


def _rows(ours: str, theirs: str, rows: str) -> dict:
    """A table from lines `ours theirs` below two prefixes."""
    pairs = (line.split() for line in rows.strip().splitlines())
    return {ours + a: theirs + b for a, b in pairs}


_ENCODER_CONFIG = {
    "vocabulary_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_length": "max_position_embeddings",
    "num_segments": ("type_vocab_size", 2),
    "activation": ("hidden_act", "gelu"),
    "norm_epsilon": ("layer_norm_eps", 1e-12),
    "dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "initializer_range": ("initializer_range", 0.02),
}
_EMBEDDINGS = _rows(
    "",
    "embeddings.",
    """
    token_embedding     word_embeddings
    position_embedding  position_embeddings
    segment_embedding   token_type_embeddings
    embedding_norm      LayerNorm
    """,
)
_BERT_BODY = _EMBEDDINGS | _rows(
    "block_#/",
    "encoder.layer.#.",
    """
    attention/query    attention.self.query
    attention/key      attention.self.key
    attention/value    attention.self.value
    attention/output   attention.output.dense
    attention_norm     attention.output.LayerNorm
    feed_forward/up    intermediate.dense
    feed_forward/down  output.dense
    feed_forward_norm  output.LayerNorm
    """,
)
_ABSOLUTE = {"position_embedding_type": "absolute", "is_decoder": False}
_BUFFERS = (r"(.*\.)?embeddings\.(position|token_type)_ids",)


def _names(stem: str, **others: str) -> dict:
    usual = {"": "Model", "masked_lm": "ForMaskedLM"}
    usual |= {"labels": "ForSequenceClassification", "tags": "ForTokenClassification"}
    return {key: stem + end for key, end in (usual | others).items()}


BERT = Family(
    prefix="bert.",
    body=_BERT_BODY | {"pooler": "pooler.dense"},
    config=_ENCODER_CONFIG,
    heads={
        "masked_lm_dense": "cls.predictions.transform.dense",
        "masked_lm_norm": "cls.predictions.transform.LayerNorm",
        "masked_lm_bias": "cls.predictions",
        "next_sentence": "cls.seq_relationship",
        "logits": "classifier",
    },
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=_BUFFERS,
    demands=_ABSOLUTE,
    architectures=_names("Bert", next_sentence="ForPreTraining"),
)

ROBERTA = Family(
    prefix="roberta.",
    body=_BERT_BODY | {"pooler": "pooler.dense"},
    config=_ENCODER_CONFIG,
    heads={
        "masked_lm_dense": "lm_head.dense",
        "masked_lm_norm": "lm_head.layer_norm",
        "masked_lm_bias": "lm_head",
        "logits": "classifier",
    },
    classifier={"pooler": "classifier.dense", "logits": "classifier.out_proj"},
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    ignored=_BUFFERS,
    demands=_ABSOLUTE,
    architectures=_names("Roberta"),
)

ALBERT = Family(
    prefix="albert.",
    body=_EMBEDDINGS
    | {"embedding_projection": "encoder.embedding_hidden_mapping_in"}
    | {"pooler": "pooler"}
    | _rows(
        "block_#/",
        "encoder.albert_layer_groups.0.albert_layers.#.",
        """
        attention/query    attention.query
        attention/key      attention.key
        attention/value    attention.value
        attention/output   attention.dense
        attention_norm     attention.LayerNorm
        feed_forward/up    ffn
        feed_forward/down  ffn_output
        feed_forward_norm  full_layer_layer_norm
        """,
    ),
    config=_ENCODER_CONFIG
    | {"embedding_size": "embedding_size", "activation": ("hidden_act", "gelu_new")}
    | {"dropout": ("hidden_dropout_prob", 0.0)}
    | {"attention_dropout": ("attention_probs_dropout_prob", 0.0)},
    heads={
        "masked_lm_dense": "predictions.dense",
        "masked_lm_norm": "predictions.LayerNorm",
        "masked_lm_bias": "predictions",
        "next_sentence": "sop_classifier.classifier",
        "logits": "classifier",
    },
    tied={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    ignored=_BUFFERS,
    style={"share_layers": True},
    demands=_ABSOLUTE | {"num_hidden_groups": 1, "inner_group_num": 1},
    architectures=_names("Albert", next_sentence="ForPreTraining"),
)

DISTILBERT = Family(
    prefix="distilbert.",
    body=_EMBEDDINGS
    | _rows(
        "block_#/",
        "transformer.layer.#.",
        """
        attention/query    attention.q_lin
        attention/key      attention.k_lin
        attention/value    attention.v_lin
        attention/output   attention.out_lin
        attention_norm     sa_layer_norm
        feed_forward/up    ffn.lin1
        feed_forward/down  ffn.lin2
        feed_forward_norm  output_layer_norm
        """,
    ),
    config={
        "vocabulary_size": "vocab_size",
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "max_length": "max_position_embeddings",
        "activation": ("activation", "gelu"),
        "dropout": ("dropout", 0.1),
        "attention_dropout": ("attention_dropout", 0.1),
        "initializer_range": ("initializer_range", 0.02),
    },
    heads={
        "masked_lm_dense": "vocab_transform",
        "masked_lm_norm": "vocab_layer_norm",
        "masked_lm_bias": "vocab_projector",
        "logits": "classifier",
    },
    classifier={"pooler": "pre_classifier"},
    tied={
        "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight",
    },
    ignored=_BUFFERS,
    style={"num_segments": 0, "pooler_activation": "relu"},
    architectures=_names("DistilBert"),
)

GPT2 = Family(
    prefix="transformer.",
    kind="decoder",
    body={
        "token_embedding": "wte",
        "position_embedding": "wpe",
        "final_norm": "ln_f",
    }
    | _rows(
        "block_#/",
        "h.#.",
        """
        attention_norm     ln_1
        attention/query    attn.c_attn[0/3]
        attention/key      attn.c_attn[1/3]
        attention/value    attn.c_attn[2/3]
        attention/output   attn.c_proj
        feed_forward_norm  ln_2
        feed_forward/up    mlp.c_fc
        feed_forward/down  mlp.c_proj
        """,
    ),
    config={
        "vocabulary_size": "vocab_size",
        "hidden_size": "n_embd",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "intermediate_size": ("n_inner", None),
        "max_length": "n_positions",
        "activation": ("activation_function", "gelu_new"),
        "norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "dropout": ("resid_pdrop", 0.1),
        "attention_dropout": ("attn_pdrop", 0.1),
        "initializer_range": ("initializer_range", 0.02),
        "tie_embeddings": ("tie_word_embeddings", True),
    },
    heads={"token_embedding/reverse_embeddings": "lm_head.weight"},
    tied={"lm_head.weight": "transformer.wte.weight"},
    ignored=(r"(.*\.)?attn\.(masked_)?bias",),
    style=STYLES["gpt2"],
    demands={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    transposed=False,
    architectures={"causal_lm": "GPT2LMHeadModel"},
)


def _llama(stem: str, defaults: dict, **options) -> Family:
    """A family that differs from Llama by its defaults.

    Args:
        stem: Of their class.
        defaults: Our field → (key, default) beside the common ones.
        **options: Fields of `Family`.
    """
    config = {
        "vocabulary_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": ("num_key_value_heads", None),
        "intermediate_size": "intermediate_size",
        "max_length": ("max_position_embeddings", 2048),
        "activation": ("hidden_act", "silu"),
        "norm_epsilon": ("rms_norm_eps", 1e-6),
        "attention_dropout": ("attention_dropout", 0.0),
        "initializer_range": ("initializer_range", 0.02),
        "tie_embeddings": ("tie_word_embeddings", False),
    }
    body = _rows(
        "block_#/",
        "layers.#.",
        """
        attention_norm        input_layernorm
        attention/query       self_attn.q_proj
        attention/key         self_attn.k_proj
        attention/value       self_attn.v_proj
        attention/output      self_attn.o_proj
        attention/query_norm  self_attn.q_norm
        attention/key_norm    self_attn.k_norm
        feed_forward_norm     post_attention_layernorm
        feed_forward/gate     mlp.gate_proj
        feed_forward/up       mlp.up_proj
        feed_forward/down     mlp.down_proj
        """,
    )
    return Family(
        prefix="model.",
        kind="decoder",
        body={"token_embedding": "embed_tokens", "final_norm": "norm"} | body,
        config=config | defaults,
        heads={"token_embedding/reverse_embeddings": "lm_head.weight"},
        tied={"lm_head.weight": "model.embed_tokens.weight"},
        ignored=(r"(.*\.)?rotary_emb\.inv_freq",),
        architectures={"causal_lm": f"{stem}ForCausalLM"},
        **{"demands": {"partial_rotary_factor": 1.0}} | options,
    )


def _t5(feed_forward: str) -> Family:
    """T5, or what followed it (1.1, Flan), whose feed-forward networks are gated.

    Args:
        feed_forward: Rows of a feed-forward network.
    """
    attention = """
        {0}/query   {1}.{2}.q
        {0}/key     {1}.{2}.k
        {0}/value   {1}.{2}.v
        {0}/output  {1}.{2}.o
        {0}_norm    {1}.layer_norm
    """
    own = attention.format("attention", 0, "SelfAttention")
    cross = attention.format("cross_attention", 1, "EncDecAttention")
    body = {"token_embedding": "shared"}
    for side, parts in (("encoder", [own]), ("decoder", [own, cross])):
        last = len(parts)
        parts = [*parts, feed_forward.format(last)]
        parts.append(f"feed_forward_norm {last}.layer_norm")
        body |= _rows(f"{side}_block_#/", f"{side}.block.#.layer.", "\n".join(
            line for part in parts for line in part.splitlines() if line.strip()
        ))  # fmt: skip
        body[f"{side}_norm"] = f"{side}.final_layer_norm"
        first = f"{side}.block.0.layer.0.SelfAttention"
        body[f"{side}_bias"] = f"{first}.relative_attention_bias"
    return Family(
        prefix="",
        kind="encoder_decoder",
        body=body,
        config={
            "vocabulary_size": "vocab_size",
            "hidden_size": "d_model",
            "num_layers": "num_layers",
            "num_decoder_layers": ("num_decoder_layers", None),
            "num_heads": "num_heads",
            "head_size": "d_kv",
            "intermediate_size": "d_ff",
            "max_length": ("n_positions", 512),
            "relative_buckets": ("relative_attention_num_buckets", 32),
            "relative_distance": ("relative_attention_max_distance", 128),
            "activation": ("feed_forward_proj", "relu"),
            "norm_epsilon": ("layer_norm_epsilon", 1e-6),
            "dropout": ("dropout_rate", 0.1),
            "attention_dropout": ("dropout_rate", 0.1),
            # What this key says of T5; whether there are two matrices, tensors tell.
            "scale_logits": ("tie_word_embeddings", True),
        },
        heads={"token_embedding/reverse_embeddings": "lm_head.weight"},
        tied={
            f"{name}.weight": "shared.weight"
            for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
        },
        ignored=(r"decoder.*EncDecAttention\.relative_attention_bias\.weight",),
        style=T5,
        architectures={"seq2seq": "T5ForConditionalGeneration"},
    )


_HEAD = {"head_size": ("head_dim", None)}
FAMILIES = {
    "bert": BERT,
    "roberta": ROBERTA,
    "albert": ALBERT,
    "distilbert": DISTILBERT,
    "gpt2": GPT2,
    "llama": _llama(
        "Llama",
        _HEAD
        | {"attention_bias": ("attention_bias", False)}
        | {"feed_forward_bias": ("mlp_bias", False)},
    ),
    "mistral": _llama("Mistral", _HEAD | {"window": ("sliding_window", 4096)}),
    "qwen2": _llama("Qwen2", _HEAD, style=STYLES["qwen2"]),
    "qwen3": _llama(
        "Qwen3",
        {"head_size": ("head_dim", 128)}
        | {"attention_bias": ("attention_bias", False)},
        style=STYLES["qwen3"],
    ),
    "t5": _t5(
        """
        feed_forward/up    {0}.DenseReluDense.wi
        feed_forward/down  {0}.DenseReluDense.wo
        """
    ),
    "t5-gated": _t5(
        """
        feed_forward/gate  {0}.DenseReluDense.wi_0
        feed_forward/up    {0}.DenseReluDense.wi_1
        feed_forward/down  {0}.DenseReluDense.wo
        """
    ),
}
# The same files under another name.
ALIASES = {"xlm-roberta": "roberta", "camembert": "roberta"}
