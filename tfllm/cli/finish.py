"""The end of every recipe: training, results, model card, export, what to type next."""

import json

from tfllm.core.console import note, table
from tfllm.evaluation.report import results_table
from tfllm.training.model_card import write_model_card
from tfllm.training.run import RunDirectory, cpu_name


def train(trainer, files: list[dict], report, leave=None):
    """Trains, or tells with `--dry_run` what training would take.

    Args:
        trainer: A `Trainer`.
        files: `path`, `sha256` and `rows` of the data files.
        report: The doctor's `Report` on them, or facts as a dict.
        leave: Called with the directory of a new run, to write what else belongs there.

    Returns:
        The run with its best weights as `tasks.runs.load_run` opens it; None after a
        dry run, which writes nothing.
    """
    if trainer.config.dry_run:
        trainer.dry_run()
        return None
    path = trainer.run.path
    if not trainer.run.resumed:
        trainer.begin(files, report)
        if leave:
            leave(path)
    trainer.fit()
    from tfllm.tasks.runs import load_run

    return load_run(path)


def judge(best, splits: dict) -> dict:
    """What a run answers to its held-out rows, by split: what its report is made of."""
    return {
        name: best.task.split(best.model, records.rows)
        for name, records in splits.items()
        if name != "train"
    }


def finish(run: RunDirectory, config, opened, results: dict, files: list[dict]) -> int:
    """Writes the card, exports if asked, prints results and what to type next.

    Args:
        run: The run directory.
        config: The run's configuration.
        opened: The run as `tasks.runs.load_run` opened it.
        results: What `eval/results.json` holds.
        files: `path`, `sha256` and `rows` of the data files.

    Returns:
        The exit status, 0.
    """
    path = run.path
    count = sum(int(v.numpy().size) for v in opened.model.weights)
    task = opened.task
    kind = getattr(config, "architecture", "encoder")
    name = getattr(config, "model", None) or f"{kind}, {config.size}"
    facts = {"architecture": name, "parameters": f"{count:,}"}
    if labels := getattr(task, "labels", None):
        facts["labels"] = ", ".join(labels[:20]) + (" …" * (len(labels) > 20))
    write_model_card(
        path,
        about=f"A {task.name.replace('_', ' ')} model trained with tfllm.",
        facts=facts
        | {
            "tokenizer": f"{task.tokenizer.kind}, {task.tokenizer.vocabulary_size:,}",
            "longest text": f"{task.max_length} tokens",
            "precision of training": config.precision,
            "trained on": cpu_name(),
        },
        files=files,
        results=results,
        commands=[_use(path), f"tfllm export {path}"],
    )
    exported = None
    if config.export:
        from tfllm.serving.runs import export_run

        exported = export_run(opened, config.export_name)
    show(run, exported)
    return 0


def show(run: RunDirectory, exported=None) -> int:
    """Prints a finished run's results and the next commands; returns 0."""
    table("Results", *results_table(run.results()))
    commands = [
        f"tensorboard --logdir {run.path}",
        _use(run.path),
        f"tfllm check {exported}" if exported else f"tfllm export {run.path}",
    ]
    note(f"Run: {run.path}  (report: {run.path}/eval/report.md)")
    note("Next:\n" + "\n".join(f"  {command}" for command in commands))
    return 0


def _use(path) -> str:
    """The command that tries a run out."""
    results = json.loads((path / "eval" / "results.json").read_text("utf-8"))
    commands = {
        "causal_lm": f'tfllm generate {path} "…"',
        "chat": f"tfllm chat {path}",
        "question_answering": f'tfllm predict {path} --question "…" --context "…"',
        "preference": f"tfllm chat {path}",
        "embeddings": f'tfllm search {path} FILE "…"',
        "word_vectors": f'tfllm search {path} FILE "…"',
    }
    return commands.get(results["task"], f'tfllm predict {path} --text "…"')
