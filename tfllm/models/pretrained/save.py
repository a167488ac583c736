"""A model of ours as a Hugging Face directory."""

import json
import math
from functools import partial
from pathlib import Path

import keras

from tfllm.core.errors import UserError
from tfllm.core.files import atomic_directory
from tfllm.models.pretrained.configs import Config, write_config
from tfllm.models.pretrained.families import FAMILIES
from tfllm.models.pretrained.tensors import Lazy, to_theirs
from tfllm.text import Tokenizer


def save_hf(
    model: keras.Model,
    config: Config,
    family: str,
    directory: str | Path,
    tokenizer: Tokenizer | None = None,
    labels: list[str] | None = None,
    shard_bytes: int = 2_000_000_000,
) -> Path:
    """Writes `config.json`, safetensors and `tokenizer.json` for `transformers`.

    Args:
        model: Built from `config`, with any of the heads that `encoder` makes.
        config: Its shape.
        family: A name in `FAMILIES` that has a place for everything in it.
        directory: Where to; what is there is replaced once all is written.
        tokenizer: Saved beside it, its special tokens also in `config.json`.
        labels: Names of the classes, if there is a classifier.
        shard_bytes: Size from which the weights are cut into several files.

    Raises:
        UserError: The family has no place for a weight or for a part of the shape.
    """
    from safetensors.numpy import save_file

    settings, rows = write_config(family, config), FAMILIES[family]
    layers = {variable.path.split("/")[0] for variable in model.weights}
    classifier = {"logits", "pooler"} <= layers and bool(rows.classifier)
    ours = {
        variable.path: Lazy(
            tuple(variable.shape), partial(keras.ops.convert_to_numpy, variable)
        )
        for variable in model.weights
    }
    theirs, strangers = to_theirs(rows, ours, classifier)
    if strangers:
        fix = "Merge adapters first" if any("lora" in x for x in strangers) else None
        what = f"a '{family}' checkpoint has no place for {', '.join(strangers)}"
        raise UserError(what, fix=fix)
    head = _head(layers, rows.kind, classifier or "pooler" in layers)
    if head not in rows.architectures:
        raise UserError(f"'{family}' has no model with such a head")
    settings["architectures"] = [rows.architectures[head]]
    if head in ("labels", "tags"):
        count = model.get_layer("logits").units
        names = labels or [f"LABEL_{i}" for i in range(count)]
        if len(names) != count:
            raise UserError(f"{len(names)} labels for {count} outputs")
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
        settings["label2id"] = {name: i for i, name in enumerate(names)}
    if rows.kind != "encoder":  # the family's own would be ids of another vocabulary
        settings |= {"bos_token_id": None, "eos_token_id": None}
    for role in ("bos", "eos", "pad"):
        found = getattr(tokenizer, f"{role}_id", None)
        if found is not None and settings.get(f"{role}_token_id") is None:
            settings[f"{role}_token_id"] = found
    if rows.kind == "encoder_decoder":
        start = settings["bos_token_id"]
        start = settings.get("pad_token_id", 0) if start is None else start
        settings["decoder_start_token_id"] = start

    shards, size = [[]], 0
    for name, lazy in theirs.items():
        more = 4 * math.prod(lazy.shape)
        if size and size + more > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    bare = len(rows.prefix) if head == "" else 0  # as `transformers` writes them
    index = {}
    with atomic_directory(directory) as folder:
        for number, names in enumerate(shards, 1):
            file = "model.safetensors"
            if len(shards) > 1:
                file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            arrays = {name[bare:]: theirs[name].read() for name in names}
            index |= dict.fromkeys(arrays, file)
            save_file(arrays, folder / file, metadata={"format": "pt"})
        if len(shards) > 1:
            total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            content = {"metadata": {"total_size": total}, "weight_map": index}
            _write(folder / "model.safetensors.index.json", content)
        _write(folder / "config.json", settings)
        if tokenizer is not None:
            tokenizer.save(folder)
    return Path(directory)


def _head(layers: set[str], kind: str, pooler: bool) -> str:
    if kind != "encoder":
        return {"decoder": "causal_lm", "encoder_decoder": "seq2seq"}[kind]
    if "logits" in layers:
        return "labels" if pooler else "tags"
    if "next_sentence" in layers:
        return "next_sentence"
    return "masked_lm" if "masked_lm_bias" in layers else ""


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf-8")
