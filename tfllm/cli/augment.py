"""Changed copies of training texts, for every recipe that has texts to change."""

import numpy as np

from tfllm.core.console import note, progress
from tfllm.core.errors import UserError
from tfllm.core.files import sha256
from tfllm.core.quiet import load_tensorflow
from tfllm.data.augmentation import changed_copies, similar_words, word_cutter
from tfllm.data.cache import cached_columns
from tfllm.data.columns import Columns, Ragged
from tfllm.text.flags import language_of

EXAMPLES = 3  # that are shown
TEMPERATURE = 0.8  # of translations that are drawn
TOGETHER = 128  # texts translated between two signs of life


def changed_rows(config, rows: list[dict]) -> list[dict]:
    """Changed copies of training rows, as `AugmentFlags` ask for them.

    Args:
        config: Flags, `AugmentFlags` among them.
        rows: Training rows.
    """
    if not config.augment:
        return []
    options, texts = {}, [row["text"] for row in rows]
    if "replace" in config.augment:
        from tfllm.models.word_vectors import frequent_vectors

        options["similar"] = similar_words(*frequent_vectors(config.similar_words))
    if "translate" in config.augment:
        options["translate"] = _there_and_back(config.translators, config.seed)
    if language_of(texts) == "zh":
        options["cut"] = word_cutter(texts, config.word_dictionary)
    settings = config.augment, config.seed, config.augment_copies
    found = changed_copies(rows, *settings, **options)
    note(f"{len(found):,} changed copies of training texts")
    for place in np.linspace(0, len(found) - 1, min(EXAMPLES, len(found)), dtype=int):
        before, after = (row["text"][:100] for row in found[place])
        note(f"  {before}\n    {after}")
    return [after for _, after in found]


def _there_and_back(paths: list[str], seed: int):
    """Texts into another language and back, by two runs (Sennrich et al., 2016)."""
    load_tensorflow()
    from tfllm.tasks.runs import PAIRS, load_run

    runs = [load_run(path) for path in paths]
    for run in runs:
        if run.task.name not in PAIRS:
            raise UserError(f"this run is of {run.task.name}: no translator", run.path)
    weights = [run.path / "checkpoints" / "best" / "model.safetensors" for run in runs]
    weights = [sha256(path) for path in weights]

    def translate(texts: list[str], copy: int) -> list[str]:
        # The first copy is the likeliest; drawn ones differ more (Edunov et al., 2018).
        drawn = {"beams": 1, "temperature": TEMPERATURE, "seed": seed + copy}

        def build() -> Columns:
            found = texts
            with progress("translating", 2 * len(texts)) as advance:
                for run, settings in zip(
                    runs, ({}, drawn if copy else {}), strict=True
                ):
                    made = []
                    for begin in range(0, len(found), TOGETHER):
                        part = found[begin : begin + TOGETHER]
                        made += run.task.answers(run.model, part, **settings)
                        advance(len(part))
                    found = [answer.text for answer in made]
            points = [[*map(ord, text)] for text in found]
            return Columns({"text": Ragged.from_lists(points)})

        key = {"weights": weights, "texts": texts, "drawn": copy and drawn}
        made = cached_columns(key, build)
        return ["".join(map(chr, made["text"].row(i))) for i in range(len(texts))]

    return translate
