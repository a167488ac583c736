"""Trains a translator, between languages or from code to code.

    python recipes/translation.py
    python recipes/translation.py --train_file train.en train.de --test_file t.en t.de
    python recipes/translation.py --train_file pairs.tsv --architecture lstm --reverse

Two files, a line a text, or pairs as TSV, CSV or JSON lines. Without a file it takes
the messages of a program and their German translations: 1,900 short pairs, from which a
model learns some words and no language. `tfllm predict RUN --text "…"` translates.
"""

import sys

from tfllm.cli.pairs import train_pairs
from tfllm.core.errors import run_main


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    defaults = {"dropout": 0.3, "beams": 5}
    return train_pairs(argv, __doc__, "translation", "spyder", defaults)


if __name__ == "__main__":
    sys.exit(run_main(main))
