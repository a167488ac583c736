"""Checkpoints of others: opened, looked at, and poured into our models."""

import json
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from tfllm.core.errors import UserError
from tfllm.layers import lora
from tfllm.models.decoder import DecoderConfig, decoder
from tfllm.models.encoder import encoder
from tfllm.models.encoder_decoder import EncoderDecoderConfig, encoder_decoder
from tfllm.models.pretrained import keras_hub, presets, tensors
from tfllm.models.pretrained.configs import Config, family_of, read_config
from tfllm.models.pretrained.families import FAMILIES
from tfllm.models.pretrained.tensors import Lazy
from tfllm.text import Tokenizer
from tfllm.text.formats import gguf_metadata

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
HEADS = {
    "masked_lm": "masked_lm_dense",
    "next_sentence": "next_sentence",
    "logits": "logits",
}


@dataclass
class Checkpoint:
    """What lies in a checkpoint.

    Attributes:
        family: Its name in `FAMILIES`.
        config: The shape of the model.
        source: The directory or file.
        labels: Names of the classes by number, if there is a classifier.
        heads: Which of `masked_lm`, `next_sentence` and `logits` are there.
        tensors: Name → tensor, read when it is wanted.
    """

    family: str
    config: Config
    source: Path
    tensors: dict[str, Lazy]
    labels: list[str] | None = None
    heads: tuple[str, ...] = ()
    # A classifier of whole texts, where that has another shape than one of tokens.
    classifier: bool = False

    def build(self, dtype=None, packed: bool = False) -> keras.Model:
        """The model with every head that the checkpoint has, filled.

        Args:
            dtype: Name of a Keras dtype policy; None for the global one.
            packed: Takes `sequence_ids` and `positions` too.
        """
        if isinstance(self.config, DecoderConfig):
            model = decoder(self.config, dtype, packed)
        elif isinstance(self.config, EncoderDecoderConfig):
            model = encoder_decoder(self.config, dtype)
        else:
            model = encoder(
                self.config,
                dtype,
                packed,
                masked_lm="masked_lm" in self.heads,
                next_sentence="next_sentence" in self.heads,
                num_labels=len(self.labels or ()),
            )
        self.fill(model)
        return model

    def fill(self, model: keras.Model, heads: bool = True) -> dict[str, list[str]]:
        """Pours the weights into a built model, tensor by tensor.

        Args:
            model: Made from `config`; its layers have the names that `encoder` and
                `decoder` give them.
            heads: Whether pooler and heads must be the same on both sides. False for
                fine-tuning, where a model has a head of its own.

        Returns:
            `fresh`: weights of the model that keep what they had; `unused`: tensors
            that found no place. Both empty with `heads`.

        Raises:
            UserError: A tensor is missing, left over, or of another shape. All such are
                listed, and the model is as it was.
        """
        family = FAMILIES[self.family]
        places, used, fresh, problems = [], set(), [], []
        for variable in model.weights:
            path, shape = variable.path, tuple(variable.shape)
            tensor = family.tensor_of(path, self.classifier)
            lazy = tensor and self.tensors.get(tensor.name)
            if lazy is not None and tensor.shape(lazy.shape) == shape:
                used.add(tensor.name)
                places.append((variable, tensor, lazy))
                continue
            body = "block_" in path or path.startswith("token_embedding")
            own = not body and (tensor is None or family.is_head(tensor.name))
            if not heads and (own or path.rpartition("/")[2] in lora.NAMES):
                fresh.append(path)
            elif lazy is None:
                problems.append(f"missing {tensor.name if tensor else path}")
            else:
                used.add(tensor.name)
                told = f"{tensor.name} is {list(lazy.shape)}, {path} is {list(shape)}"
                problems.append(told)
        rest = [name for name in self.tensors if name not in used]
        unused = [name for name in rest if family.is_head(name) and not heads]
        problems += [f"left over {name}" for name in rest if name not in unused]
        if problems:
            what = f"the checkpoint does not fit the model: {'; '.join(problems)}"
            raise UserError(what, self.source)
        for variable, tensor, lazy in places:
            variable.assign(tensor.ours(_floats(lazy)))
        return {"fresh": fresh, "unused": unused}

    def tokenizer(self, **options) -> Tokenizer:
        """The tokenizer that lies beside the weights; see `Tokenizer.load`.

        Where the padding token is also the end token, as in many chat models, padding
        becomes the unknown token: no id is added, and the end stays visible.
        """
        source = self.source
        if (source / "assets/tokenizer").is_dir():
            return _preset_tokenizer(source, options)
        if source.suffix == ".bin":
            names = f"tok{self.config.vocabulary_size}.bin", "tokenizer.bin"
            files = [source.with_name(name) for name in names]
            source = next((file for file in files if file.is_file()), files[0])
        if "pad_token" not in options and (pad := _pad_token(source)):
            options["pad_token"] = pad
        return Tokenizer.load(source, **options)


def open_checkpoint(name: str | Path) -> Checkpoint:
    """Opens a checkpoint; its tensors stay on the disk until they are wanted.

    Args:
        name: A directory with `config.json` and safetensors (Hugging Face's layout) or
            with a Keras preset; a `.gguf`, a llama2.c `.bin`, or a directory with one
            of them; a `.keras` file of keras-hub; a preset of `presets.NAMES`; or a
            name of the Hugging Face hub.

    Raises:
        UserError: Nothing is there, or it is broken, unknown or a pickle.
    """
    source = Path(name)
    if not source.exists():
        source = presets.find(str(name))
    if source.suffix == ".safetensors":
        source = source.parent
    if source.is_dir() and not any(source.glob("model.*")):
        models = [file for file in source.glob("*.bin") if file.name[:3] != "tok"]
        files = [*source.glob("*.gguf")] or models
        if len(files) == 1:  # of llama.cpp or llama2.c, or a pickle
            source = files[0]
    if source.is_dir():
        settings, found = _directory(source)
    elif source.suffix == ".gguf":
        settings, found = tensors.gguf(source)
    elif source.suffix == ".bin":
        settings, found = tensors.llama2c(source)
    elif source.suffix == ".keras":
        settings, found = keras_hub.read(source)
    elif any(source.match(pattern) for pattern in PICKLES):
        raise tensors.no_pickle(source)
    else:
        raise UserError("this is no checkpoint", source)
    return _checkpoint(source, settings, found)


def _directory(folder: Path) -> tuple[dict, dict[str, Lazy]]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError("there is no config.json", folder)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not JSON: {error}", path) from None
    if "registered_name" in settings:
        return keras_hub.read(folder)
    family_of(settings, path)  # before a look at the weights
    if not any(folder.glob("model.safetensors*")):
        for pattern in PICKLES:
            for file in sorted(folder.glob(pattern)):
                raise tensors.no_pickle(file)
        raise UserError("there is no model.safetensors", folder)
    return settings, tensors.safetensors(folder)


def _checkpoint(source: Path, settings: dict, found: dict[str, Lazy]) -> Checkpoint:
    name = family_of(settings, source)
    family, config = FAMILIES[name], read_config(settings, source)
    # Old files say gamma and beta; those without a head may leave the prefix out.
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        rows = {re.sub(rf"(LayerNorm\.){old}$", rf"\1{new}", k): k for k in found}
        found = {key: found[old_key] for key, old_key in rows.items()}
    prefixed = any(key.startswith(family.prefix) for key in found)
    found = {
        key if prefixed or family.is_head(key) else family.prefix + key: lazy
        for key, lazy in found.items()
        if not any(re.fullmatch(pattern, key) for pattern in family.ignored)
    }
    if family.kind == "encoder_decoder":  # tensors tell, not the configuration
        head, table = (found.get(f"{name}.weight") for name in ("lm_head", "shared"))
        both = head is not None and table is not None
        own = both and not np.array_equal(head.read(), table.read())
        config = replace(config, tie_embeddings=not own)
    own = () if getattr(config, "tie_embeddings", True) else family.heads.values()
    tied = {copy: name for copy, name in family.tied.items() if copy not in own}
    _untie(tied, found, source)
    if family.kind != "encoder":
        return Checkpoint(name, config, source, found)
    rows = family.classifier
    classifier = any(f"{module}.weight" in found for module in rows.values())

    def tensor(layer):
        place = family.tensor_of(f"{layer}/kernel", classifier)
        return place and found.get(place.name)

    heads, labels = tuple(head for head, layer in HEADS.items() if tensor(layer)), None
    if "logits" in heads:
        names = {int(k): v for k, v in settings.get("id2label", {}).items()}
        count = tensor("logits").shape[0]
        labels = [names.get(i, f"LABEL_{i}") for i in range(count)]
    config = replace(config, pooler=tensor("pooler") is not None)
    return Checkpoint(name, config, source, found, labels, heads, classifier)


def _untie(tied: dict[str, str], found: dict[str, Lazy], source) -> None:
    """Takes out what is a second copy of another tensor, once it is seen to be one."""
    for copy, original in tied.items():
        if copy not in found:
            continue
        lazy = found.pop(copy)
        if original not in found:
            found[original] = lazy
        elif not np.array_equal(lazy.read(), found[original].read()):
            what = f"{copy} is said to be tied to {original} and has other values"
            raise UserError(what, source)


def _preset_tokenizer(source: Path, options: dict) -> Tokenizer:
    """A keras-hub preset's, whose files have names of their own."""
    settings = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    if "lowercase" in settings.get("config", {}):
        options = {"lowercase": settings["config"]["lowercase"], **options}
    with tempfile.TemporaryDirectory() as folder:
        for path in (source / "assets/tokenizer").iterdir():
            name = path.name.replace("vocabulary.spm", "tokenizer.model")
            shutil.copy(path, Path(folder) / name.replace("vocabulary", "vocab"))
        return Tokenizer.load(folder, **options)


def _floats(lazy: Lazy) -> np.ndarray:
    array = lazy.read()
    return array if array.dtype == np.float32 else array.astype("float32")


def _pad_token(source: Path) -> str | None:
    """The unknown token, where padding is said to be the end token."""
    if source.suffix == ".gguf":
        get = gguf_metadata(source.read_bytes()).get
        pad, eos, unk = (
            get(f"tokenizer.ggml.{role}_token_id")
            for role in ("padding", "eos", "unknown")
        )
        if pad is None or pad != eos or unk in (None, eos):
            return None
        return get("tokenizer.ggml.tokens")[unk]
    path = source / "tokenizer_config.json"
    if not path.is_file():
        return None
    settings = json.loads(path.read_text(encoding="utf-8"))
    pad, eos, unk = (
        token.get("content") if isinstance(token, dict) else token
        for token in map(settings.get, ("pad_token", "eos_token", "unk_token"))
    )
    return unk if pad is not None and pad == eos and unk not in (None, eos) else None
