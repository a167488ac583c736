"""A finished run becomes an export whose answers are those that training measured."""

import json
from pathlib import Path

from tfllm.core.errors import UserError
from tfllm.serving.check import PARTS
from tfllm.serving.export import (
    Signature,
    classify_signature,
    export,
    regress_signature,
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
    name = name or run.path.resolve().name.rsplit("-", 1)[-1]
    folder = run.path / "eval"
    if not (folder / "predictions.jsonl").exists():
        raise UserError(
            "the run was not evaluated yet",
            run.path,
            f"Call: tfllm eval {run.path} --test_file FILE --output {folder}",
        )
    with open(folder / "predictions.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(SAMPLES), strict=False)]
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    task = run.task
    if hasattr(task, "decoder"):
        return _export_decoder(run, name, directory, results)
    if hasattr(task, "encoder_decoder"):
        from tfllm.generation.beam_tf import Beams
        from tfllm.serving.decoder_export import export_translator

        return export_translator(
            task.translator(run.model),
            name,
            directory,
            max_new_tokens=task.max_target,
            beams=Beams(task.beams, task.length_penalty) if task.beams > 1 else None,
            frequency_penalty=task.frequency_penalty,
            samples=[row["text"] for row in rows[:4]],
            about={"task": task.name, "run": str(run.path), "test": results["test"]},
        )
    served, signatures, expected = _SERVED[task.name](run)
    answers = expected(rows)
    if "embedding" not in answers:  # of a vector there is no score
        answers["score"] = [row["score"] for row in rows]
    return export(
        signatures,
        variables=run.model.variables,
        trackables=[served],
        name=name,
        directory=directory,
        samples={
            "serving_default": {
                key: [row[key] for row in rows] for key in signatures[0].inputs
            }
        },
        expected={"serving_default": answers},
        about={
            "task": task.name,
            "labels": getattr(task, "labels", None),
            "run": str(run.path),
            "test": results["test"],
        },
    )


def _export_decoder(run: Run, name: str, directory, results: dict) -> Path:
    from tfllm.generation.generator import Generator
    from tfllm.serving.decoder_export import export_generator
    from tfllm.text.chat import ChatTemplate

    task = run.task
    return export_generator(
        Generator(run.model, task.decoder, task.tokenizer),
        name,
        directory,
        chat=ChatTemplate.find(run.path / "tokenizer", task.tokenizer),
        about={"run": str(run.path), "test": results["test"]},
    )


def _classifier(run: Run):
    from tfllm.tasks.text_classification_tf import ServedClassifier

    served, pairs = ServedClassifier(run.task, run.model), run.task.pairs
    verb, answer = {
        "single_label": (classify_signature, "label"),
        "multi_label": (classify_signature, "prediction"),
        "regression": (regress_signature, "score"),
    }[run.task.problem]

    def expected(rows):
        answers = [row["prediction"] for row in rows]
        if isinstance(answers[0], list):
            answers = _even(answers, "", len(run.task.labels))
        return {answer: answers}

    return served, [text_signature(served, pairs), verb(served, pairs)], expected


def _even(rows: list[list], pad, width: int | None = None) -> list[list]:
    """Lists as an export gives them: filled up."""
    width = width or max(1, *map(len, rows))
    return [row + [pad] * (width - len(row)) for row in rows]


def _tagger(run: Run):
    from tfllm.tasks.token_classification_tf import ServedTagger

    def expected(rows):
        found = [row["prediction"] for row in rows]
        outputs = {"count": [len(row) for row in found]}
        for name, (key, pad) in PARTS.items():
            outputs[name] = _even([[x[key] for x in row] for row in found], pad)
        if run.task.intents:
            outputs["intent"] = [row["intent_prediction"] for row in rows]
        return outputs

    served = ServedTagger(run.task, run.model)
    return served, [text_signature(served)], expected


def _reader(run: Run):
    from tensorflow import TensorSpec, string

    from tfllm.tasks.question_answering_tf import ServedReader

    def expected(rows):
        places = {name: [row[name] for row in rows] for name in ("start", "end")}
        return {"answer": [row["prediction"] for row in rows]} | places

    served = ServedReader(run.task, run.model)
    specs = {name: TensorSpec([None], string) for name in ("question", "context")}
    return served, [Signature("serving_default", served, specs)], expected


def _masked_lm(run: Run):
    from tfllm.tasks.masked_lm_tf import ServedMaskedLM

    served = ServedMaskedLM(run.task, run.model)
    return (
        served,
        [text_signature(served)],
        lambda rows: {"text": [row["prediction"] for row in rows]},
    )


def _embedder(run: Run):
    from tfllm.tasks.embeddings_tf import ServedEmbedder

    served = ServedEmbedder(run.task, run.model)
    return (
        served,
        [text_signature(served)],
        lambda rows: {"embedding": [row["embedding"] for row in rows]},
    )


# By task: the module to track, its signatures (`serving_default` first), and what the
# outputs are for rows of predictions.jsonl.
_SERVED = {
    "text_classification": _classifier,
    "multi_label_classification": _classifier,
    "text_regression": _classifier,
    "masked_lm": _masked_lm,
    "token_classification": _tagger,
    "question_answering": _reader,
    "embeddings": _embedder,
}
