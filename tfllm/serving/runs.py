"""A finished run becomes an export whose answers are those that training measured."""

import json
from pathlib import Path

from tfllm.core.errors import UserError
from tfllm.serving.export import (
    classify_signature,
    export,
    text_signature,
)
from tfllm.tasks.runs import Run

SAMPLES = 16  # recorded answers that the check compares


def export_run(
    run: Run, name: str | None = None, directory: str | Path = "saved_models"
) -> Path:
    """Exports a run's best model as the next version of `directory/name`.

    Without a name the model takes the last word of the run directory's name.

    The recorded answers are rows of the run's own `eval/predictions.jsonl`: an export
    that answers otherwise is refused.

    Raises:
        UserError: If the run was not evaluated, or the check failed.
    """
    from tfllm.tasks.text_classification_tf import ServedClassifier

    name = name or run.path.resolve().name.rsplit("-", 1)[-1]
    folder = run.path / "eval"
    if not (folder / "predictions.jsonl").exists():
        raise UserError(
            "the run was not evaluated yet",
            run.path,
            f"Call: tfllm eval {run.path} --test_file FILE",
        )
    with open(folder / "predictions.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(SAMPLES), strict=False)]
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    task = run.task
    served = ServedClassifier(task, run.model)
    texts = ["text", "text_pair"] if task.pairs else ["text"]
    return export(
        [text_signature(served, task.pairs), classify_signature(served, task.pairs)],
        variables=run.model.variables,
        trackables=[served],
        name=name,
        directory=directory,
        samples={"serving_default": {key: [row[key] for row in rows] for key in texts}},
        expected={
            "serving_default": {
                "label": [row["prediction"] for row in rows],
                "score": [row["score"] for row in rows],
            }
        },
        about={
            "task": task.name,
            "labels": task.labels,
            "run": str(run.path),
            "test": results["test"],
        },
    )
