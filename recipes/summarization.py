"""Trains a summariser: headlines, short descriptions, what a text is about.

    python recipes/summarization.py
    python recipes/summarization.py --train_file train.jsonl --target_column summary
    python recipes/summarization.py --train_file train.jsonl --model t5-small/

Pairs of text and summary as JSON lines, TSV or CSV. Without a file it takes docstrings
of Python's standard library and their first lines: a few thousand, enough to learn how
such lines sound and not what a text says. The report prints beside the model what the
first sentence of each text scores.
"""

import sys

from tfllm.cli.pairs import train_pairs
from tfllm.core.errors import run_main


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    defaults = {"dropout": 0.1, "beams": 4, "pointer": True}
    return train_pairs(argv, __doc__, "summarization", "docstrings", defaults)


if __name__ == "__main__":
    sys.exit(run_main(main))
