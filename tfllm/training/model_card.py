"""MODEL_CARD.md: what a model is for, what it was trained on, how well it does."""

from pathlib import Path

from tfllm.core.files import atomic_write

CARD = """# {name}

{about}

| | |
|---|---|
{facts}

## Data
{data}

## Results
{results}

95 % intervals are bootstrap percentile intervals over the test rows. `eval/report.md`
has the details, `data_report.json` what the data look like.

## Use
```
{commands}
```

## Limits
The model knows the kind of text (and the labels) that it was trained on, and answers
any other text all the same. Its scores are probabilities on data like the test rows
only; look how reliable they are before a threshold decides over something. What the
training data contain, prejudice too, it has learned. Measure it on your own users'
text before you serve them.
"""


def write_model_card(
    run: str | Path,
    *,
    about: str,
    facts: dict[str, object],
    files: list[dict],
    results: dict,
    commands: list[str],
) -> None:
    """Writes the card of a finished run.

    Args:
        run: The run directory.
        about: One sentence.
        facts: Rows of the table at its head.
        files: The data: `path`, `sha256` and, if they are known, `rows` each.
        results: What `eval/results.json` holds.
        commands: What to type.
    """
    lines = [
        f"- `{f['path']}`, "
        + (f"{f['rows']:,} rows, " if "rows" in f else "")
        + f"SHA-256 {f['sha256']}"
        for f in files
    ]
    table = ["| split | metric | value | 95 % interval |", "|---|---|---|---|"]
    for split in ("test", "test_without_leaked", "validation"):
        block = results.get(split)
        for metric, value in (block or {}).get("metrics", {}).items():
            low, high = block.get("intervals", {}).get(metric) or (None, None)
            interval = "" if low is None else f"{low:.4f} to {high:.4f}"
            table.append(
                f"| {split} ({block['samples']:,}) | {metric} | {value:.4f} | "
                f"{interval} |"
            )
    card = CARD.format(
        name=Path(run).name,
        about=about,
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        data="\n".join(lines),
        results="\n".join(table),
        commands="\n".join(commands),
    )
    atomic_write(Path(run) / "MODEL_CARD.md", card)
