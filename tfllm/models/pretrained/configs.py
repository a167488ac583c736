"""A model's shape in Hugging Face's `config.json`, read and written."""

from dataclasses import fields, replace

from tfllm.core.errors import UserError, did_you_mean
from tfllm.models.decoder import DecoderConfig
from tfllm.models.encoder import EncoderConfig
from tfllm.models.encoder_decoder import EncoderDecoderConfig
from tfllm.models.pretrained.families import ALIASES, FAMILIES, Family

Config = EncoderConfig | DecoderConfig | EncoderDecoderConfig
KINDS = {
    "encoder": EncoderConfig,
    "decoder": DecoderConfig,
    "encoder_decoder": EncoderDecoderConfig,
}

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
GATED = {"silu": "swiglu", "gelu": "geglu"}
T5_GATED = {"gated-gelu": "geglu_tanh", "gated-silu": "swiglu"}
SCALINGS = ("linear", "llama3")
# What only training uses need not be said.
UNSAID = {"dropout", "attention_dropout", "initializer_range"}


def family_of(settings: dict, where=None) -> str:
    """The family's name in `FAMILIES`.

    Raises:
        UserError: It is not one of them.
    """
    kind = settings.get("model_type", "")
    name = ALIASES.get(kind, kind)
    if name == "t5" and settings.get("feed_forward_proj", "").startswith("gated"):
        name = "t5-gated"
    if name not in FAMILIES:
        raise UserError(
            f"models of type '{kind}' are not known; known are {', '.join(FAMILIES)}",
            where,
            did_you_mean(kind, FAMILIES) or None,
        )
    return name


def read_config(settings: dict, where=None) -> Config:
    """A model's shape from the content of a `config.json`.

    Raises:
        UserError: A key is missing, or asks for what is not known here.
    """
    name = family_of(settings, where)
    family = FAMILIES[name]
    missing, ours = [], dict(family.style)
    for key, wanted in family.demands.items():
        if settings.get(key, wanted) not in (wanted, None):
            what = f"{key}={settings[key]!r} is not supported, only {wanted!r}"
            raise UserError(what, where)
    for field, row in family.config.items():
        key, *default = (row,) if isinstance(row, str) else row
        if key not in settings and not default:
            missing.append(key)
        ours[field] = settings.get(key, *default)
    if missing:
        raise UserError(f"the configuration lacks {', '.join(missing)}", where)
    table = _activations(family)
    if ours["activation"] not in table:
        raise UserError(f"unknown activation '{ours['activation']}'", where)
    ours["activation"] = table[ours["activation"]]
    if family.kind == "encoder":
        if name == "roberta":
            ours["position_offset"] = settings.get("pad_token_id", 1) + 1
            ours["max_length"] -= ours["position_offset"]
        return EncoderConfig(**ours)
    if family.kind == "encoder_decoder":
        scaled = settings.get("scale_decoder_outputs")
        ours["scale_logits"] = ours["scale_logits"] if scaled is None else scaled
        return normal(EncoderDecoderConfig(**ours))
    ours["intermediate_size"] = ours["intermediate_size"] or 4 * ours["hidden_size"]
    if "attention_bias" in family.config:
        ours["output_bias"] = ours["attention_bias"]
    return normal(DecoderConfig(**ours, **_rope(settings, where), **_window(settings)))


def write_config(name: str, config: Config) -> dict:
    """The content of a `config.json` for a model's shape.

    Raises:
        UserError: The family has no place for something in the shape.
    """
    if name not in FAMILIES:
        fix = did_you_mean(name, FAMILIES) or f"Known are {', '.join(FAMILIES)}"
        raise UserError(f"unknown family '{name}'", fix=fix)
    family = FAMILIES[name]
    if not isinstance(config, KINDS[family.kind]):
        raise UserError(f"'{name}' is a family of {family.kind}s, the model is not")
    settings = {"model_type": name.removesuffix("-gated"), **family.demands}
    for field, row in family.config.items():
        settings[row if isinstance(row, str) else row[0]] = getattr(config, field)
    table = _activations(family)
    names = {ours: theirs for theirs, ours in reversed(table.items())}
    activation = family.config["activation"][0]
    settings[activation] = names.get(config.activation)
    if name == "roberta":
        settings["max_position_embeddings"] += config.position_offset
        settings["pad_token_id"] = config.position_offset - 1
    elif name == "gpt2":
        settings["embd_pdrop"] = config.dropout
    elif family.kind == "encoder_decoder":
        settings["d_kv"] = config.head_size or config.hidden_size // config.num_heads
        settings["num_decoder_layers"] = config.decoder_layers
        settings["is_encoder_decoder"] = True
    elif family.kind == "decoder":
        settings["num_key_value_heads"] = config.num_kv_heads or config.num_heads
        size = config.head_size or config.hidden_size // config.num_heads
        settings["head_dim"] = size
        settings["rope_theta"] = config.rope_base
        settings["rope_scaling"] = config.rope_scaling
        if name.startswith("qwen"):
            first = config.num_layers if config.window is None else config.window_from
            settings["use_sliding_window"] = config.window is not None
            settings["sliding_window"] = config.window
            settings["max_window_layers"] = first
    if settings[activation] is not None:
        again = read_config(settings)
        if family.kind == "encoder":  # whether there is a pooler, the tensors tell
            again = replace(again, pooler=config.pooler)
            if name == "distilbert" and not config.pooler:
                again = replace(again, pooler_activation=config.pooler_activation)
        elif family.kind == "encoder_decoder":
            again = replace(again, tie_embeddings=config.tie_embeddings)
        lost = _differences(again, normal(config))
    else:
        lost = ["activation"]
    if lost:
        told = ", ".join(f"{field}={getattr(config, field)!r}" for field in lost)
        raise UserError(f"a '{name}' checkpoint cannot say {told}")
    return settings


def normal(config: Config) -> Config:
    """The same shape with what is derived left out."""
    if isinstance(config, EncoderConfig):
        if config.num_kv_heads == config.num_heads:
            return replace(config, num_kv_heads=None)
        return config
    if (config.head_size or 0) * config.num_heads == config.hidden_size:
        config = replace(config, head_size=None)
    if isinstance(config, EncoderDecoderConfig):
        same = config.num_decoder_layers == config.num_layers
        return replace(config, num_decoder_layers=None) if same else config
    if config.num_kv_heads == config.num_heads:
        config = replace(config, num_kv_heads=None)
    if config.window is None or config.window_from >= config.num_layers:
        config = replace(config, window=None, window_from=0)
    return config


def _differences(a: Config, b: Config) -> list[str]:
    names = [f.name for f in fields(a) if f.name not in UNSAID]
    return [name for name in names if getattr(a, name) != getattr(b, name)]


def _activations(family: Family) -> dict[str, str]:
    """Our activation by theirs."""
    if family.kind == "encoder_decoder":
        gated = "encoder_block_#/feed_forward/gate" in family.body
        return T5_GATED if gated else ACTIVATIONS
    return GATED if "block_#/feed_forward/gate" in family.body else ACTIVATIONS


def _rope(settings: dict, where) -> dict:
    """Base and scaling; newer files have both in `rope_parameters`."""
    found = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    scaling = {k: v for k, v in found.items() if k not in ("rope_theta", "type")}
    scaling["rope_type"] = found.get("rope_type", found.get("type", "default"))
    if scaling["rope_type"] not in (*SCALINGS, "default"):
        what = f"rotary positions of type '{scaling['rope_type']}' are not supported"
        raise UserError(what, where)
    base = settings.get("rope_theta") or found.get("rope_theta", 10_000.0)
    plain = scaling["rope_type"] == "default"
    return {"rope_base": float(base), "rope_scaling": None if plain else scaling}


def _window(settings: dict) -> dict:
    """Qwen's window, which the last blocks have."""
    if not settings.get("use_sliding_window"):
        return {}
    kinds = settings.get("layer_types")
    first = settings.get("max_window_layers", 28)
    if kinds:
        windowed = [kind == "sliding_attention" for kind in kinds]
        first = windowed.index(True) if any(windowed) else len(kinds)
        if windowed != sorted(windowed):
            raise UserError("a window in every other block is not supported")
    return {"window": settings.get("sliding_window") or 4096, "window_from": first}
