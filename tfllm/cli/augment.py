"""Changed copies of training texts, for every recipe that has texts to change."""

import json

import numpy as np

from tfllm.core.console import note, progress
from tfllm.core.errors import UserError
from tfllm.core.quiet import load_tensorflow
from tfllm.data import tagged
from tfllm.data.augmentation import changed_copies, similar_words, word_cutter
from tfllm.text.flags import language_of

FILE = "changed.jsonl"  # of a run: the changed copies that it is trained on
EXAMPLES = 3  # that are shown
TEMPERATURE = 0.8  # of translations that are drawn
TOGETHER = 128  # texts translated between two signs of life


def changed_rows(config, run, rows: list[dict]) -> list[dict]:
    """Changed copies of training rows, as `AugmentFlags` ask for them.

    Args:
        config: Flags, `AugmentFlags` among them.
        run: The `RunDirectory`: it keeps them, so that a run that goes on has the same
            ones whatever became of the vectors or the translators.
        rows: Training rows.
    """
    if not config.augment:
        return []
    kept = run.path / FILE
    if run.resumed and kept.exists():
        lines = kept.read_text(encoding="utf-8").split("\n")
        return [tagged.from_json(json.loads(line)) for line in lines if line]
    options, texts = {}, [row["text"] for row in rows]
    words = {"replace", "swap", "delete"} & {*config.augment}
    if "replace" in config.augment:
        from tfllm.models.word_vectors import frequent_vectors

        options["similar"] = similar_words(*frequent_vectors(config.similar_words))
    if "translate" in config.augment:
        options["translate"] = _there_and_back(config.translators, config.seed)
    if words and "words" not in rows[0] and language_of(texts) == "zh":
        options["cut"] = word_cutter(texts, config.word_dictionary)
    settings = config.augment, config.seed, config.augment_copies
    found = changed_copies(rows, *settings, **options)
    note(f"{len(found):,} changed copies of training texts")
    for place in np.linspace(0, len(found) - 1, min(EXAMPLES, len(found)), dtype=int):
        before, after = (row["text"][:100] for row in found[place])
        note(f"  {before}\n    {after}")
    changed = [after for _, after in found]
    lines = [json.dumps(row, ensure_ascii=False) for row in changed]
    run.extra[FILE] = "".join(line + "\n" for line in lines)
    return changed


def _there_and_back(paths: list[str], seed: int):
    """Texts into another language and back, by two runs (Sennrich et al., 2016)."""
    load_tensorflow()
    from tfllm.tasks.runs import load_run

    runs = [load_run(path) for path in paths]
    for run in runs:
        if run.task.name != "translation":
            raise UserError(f"this run is of {run.task.name}: no translator", run.path)

    def translate(texts: list[str], copy: int) -> list[str]:
        # The first copy is the likeliest; drawn ones differ more (Edunov et al., 2018).
        drawn = {"beams": 1, "temperature": TEMPERATURE, "seed": seed + copy}
        with progress("translating", 2 * len(texts)) as advance:
            for run, settings in zip(runs, ({}, drawn if copy else {}), strict=True):
                made = []
                for begin in range(0, len(texts), TOGETHER):
                    part = texts[begin : begin + TOGETHER]
                    made += run.task.answers(run.model, part, **settings)
                    advance(len(part))
                texts = [answer.text for answer in made]
        return texts

    return translate
