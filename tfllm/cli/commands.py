"""The commands of `tfllm`; each adds its arguments to the parser and runs."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path

from tfllm.cli.average import average_command
from tfllm.cli.code import code_eval_command
from tfllm.cli.generation import chat_command, export_decoder, generate_command
from tfllm.cli.search import search_command
from tfllm.core.console import note, table
from tfllm.core.errors import UserError
from tfllm.core.quiet import load_tensorflow
from tfllm.data.labels import PROBLEMS

# Kept in modules of their own.
__all__ = ["average_command", "chat_command", "code_eval_command", "generate_command"]
__all__ += ["search_command"]


def ls_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Lists recipes, samples and runs."""
    parser.add_argument("--runs", default="runs", help="folder of the runs")
    options = parser.parse_args(argv)
    from tfllm.data import samples

    rows = [(f"recipes/{path.name}", about) for path, about in _recipes()]
    table("Recipes", ["script", "job"], rows)
    table("Sample data", ["name"], [[name] for name in samples.NAMES])
    found = []
    for file in sorted(Path(options.runs).glob("*/*/eval/results.json")):
        test = json.loads(file.read_text(encoding="utf-8"))["test"]
        name, value = next(iter(test["metrics"].items()))
        found.append([str(file.parent.parent), test["samples"], f"{name} {value:.4f}"])
    if found:
        table("Finished runs", ["run", "test rows", "result"], found)
    return 0


def _recipes() -> list[tuple[Path, str]]:
    folder = Path(__file__).resolve().parent.parent.parent / "recipes"
    found = []
    for path in sorted(folder.glob("*.py")):
        first = path.read_text(encoding="utf-8").split('"""', 2)[1]
        found.append((path, first.strip().splitlines()[0]))
    return found


def doctor_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Looks over files of labelled text: the first is training data."""
    parser.add_argument("files", nargs="+", help="train, then validation, then test")
    parser.add_argument("--text_column")
    parser.add_argument("--pair_column")
    parser.add_argument("--label_column")
    parser.add_argument("--problem", default="auto", choices=["auto", *PROBLEMS])
    parser.add_argument("--max_length", type=int, help="characters a model would see")
    parser.add_argument("--output", help="folder for data_report.json and the plot")
    options = parser.parse_args(argv)
    from tfllm.data.doctor import examine
    from tfllm.data.labels import settle_labels
    from tfllm.data.readers import read

    names = ["train", "validation", "test"][: len(options.files)]
    if len(options.files) == 2:
        names = ["train", "test"]
    names += [Path(file).name for file in options.files[3:]]
    splits = {}
    for name, file in zip(names, options.files, strict=True):
        splits[name] = read(
            file,
            text_column=options.text_column,
            pair_column=options.pair_column,
            label_column=options.label_column,
            split=name if name in ("train", "validation", "test") else None,
        )
        note(f"{name}: {splits[name].description}")
    splits = settle_labels(splits, options.problem)
    report = examine(splits, max_length=options.max_length)
    report.print()
    if options.output:
        report.save(options.output)
    return 0


def eval_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Measures a run on a test file."""
    parser.add_argument("run", help="run directory")
    parser.add_argument("--test_file", nargs="+", required=True)
    parser.add_argument("--text_column")
    parser.add_argument("--pair_column")
    parser.add_argument("--label_column")
    parser.add_argument("--target_column")
    parser.add_argument("--output", help="folder for results, predictions and report")
    options = parser.parse_args(argv)
    from tfllm.data.readers import read

    run = _load(options.run)
    if hasattr(run.task, "encoder_decoder"):
        from tfllm.cli.pairs import evaluate_pairs

        return evaluate_pairs(run, options)
    parse = getattr(run.task, "parse", None)
    if not parse:
        _labelling(options.run, run)
    records = read(
        options.test_file,
        parse=parse,
        text_column=options.text_column,
        pair_column=options.pair_column,
        label_column=options.label_column,
        split="test",
    )
    note(f"test: {records.description}")
    if not records.rows:
        raise UserError("there are no rows to measure", options.test_file[0])
    if parse:
        from tfllm.evaluation import answers, tagging

        measure, write = tagging.measure, tagging.write_tagging_report
        if run.task.name == "question_answering":
            measure, write = answers.measure, answers.write_answers_report
        split = run.task.split(run.model, records.rows)
        if options.output:
            about = {"task": run.task.name, "test": split}
            results = write(options.output, **about)
        else:
            results = {"test": measure(split)}
        table("Results", *tagging.results_table(results))
        return 0
    from tfllm.data.labels import labels_as
    from tfllm.evaluation.report import (
        measure,
        results_table,
        write_classification_report,
    )

    records = labels_as(run.task.problem, records)
    split = run.task.split(run.model, records.rows)
    names = run.task.labels
    if options.output:
        results = write_classification_report(
            options.output, task=run.task.name, class_names=names, test=split
        )
    else:
        results = {"test": measure(split, class_names=names)}
    table("Results", *results_table(results))
    return 0


def predict_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Prints a JSON line a text: what the run says of it, with its score."""
    parser.add_argument("run", help="run directory")
    about = "texts or questions; without it standard input"
    parser.add_argument("--text", "--question", nargs="+", help=about)
    about = "second texts, or contexts (one may be for all questions)"
    parser.add_argument("--text_pair", "--context", nargs="+", help=about)
    parser.add_argument("--file", help="a text a line")
    options = parser.parse_args(argv)
    texts = _texts(options)
    pairs = options.text_pair or [None]
    pairs = pairs * len(texts) if len(pairs) == 1 else pairs
    if len(pairs) != len(texts):
        raise UserError(f"{len(texts)} texts and {len(pairs)} second texts")
    run = _load(options.run)
    if ask := getattr(run.task, "answer", None):
        if None in pairs:
            raise UserError("a question wants a context", fix="Give --context too")
        both = zip(texts, pairs, strict=True)
        for answer in ask(run.model, [{"text": q, "context": c} for q, c in both]):
            print(json.dumps(answer, ensure_ascii=False))
        return 0
    asks = (getattr(run.task, name, None) for name in ("fill", "find", "vectors"))
    if ask := next(filter(None, asks), None):
        for answer in ask(run.model, texts):
            print(json.dumps(answer, ensure_ascii=False))
        return 0
    if _labelling(options.run, run).task.pairs and not options.text_pair:
        raise UserError("this run labels pairs", options.run, "Give --text_pair too")
    rows = [
        {"text": text, "text_pair": pair}
        for text, pair in zip(texts, pairs, strict=True)
    ]
    from tfllm.evaluation.report import prediction_rows

    split = run.task.split(run.model, rows)
    for answer in prediction_rows(split, run.task.labels):
        answer.pop("label")
        print(json.dumps(answer, ensure_ascii=False))
    return 0


def export_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Exports a run, or any decoder."""
    parser.add_argument("run", help="run; or directory, file or preset of a decoder")
    parser.add_argument("--name", help="name of the model; the run's when absent")
    parser.add_argument("--directory", default="saved_models")
    parser.add_argument("--plain", action="store_true", help="no chat template")
    parser.add_argument(
        "--xla", action="store_true", help="decoders: for a server with XLA switched on"
    )
    options = parser.parse_args(argv)
    if not (Path(options.run) / "config.yaml").exists():
        return export_decoder(options)
    run = _load(options.run)
    if hasattr(run.task, "decoder"):
        return export_decoder(options)
    from tfllm.serving.runs import export_run

    note(str(export_run(run, options.name, options.directory)))
    return 0


def check_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Checks an export."""
    from tfllm.serving import check

    return check.main(argv)


def explain_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Shows which parts of a text an answer rests on."""
    parser.add_argument("run", help="run directory")
    parser.add_argument("text", nargs="+")
    parser.add_argument("--html", help="also write a page")
    options = parser.parse_args(argv)
    run = _labelling(options.run)
    from tfllm.core.console import console
    from tfllm.explain.occlusion import explain, render, to_html

    if not run.task.labels or hasattr(run.task, "find"):
        raise UserError("one label a text can be explained, this is not", options.run)
    pages = []
    for text in options.text:
        place = int(run.task.split(run.model, [{"text": text}]).scores[0].argmax())
        label = run.task.labels[place]

        def predict(texts, place=place):
            split = run.task.split(run.model, [{"text": text} for text in texts])
            return split.scores[:, place]

        attribution = explain(text, predict)
        note(f"{label} ({attribution.probability:.4f})")
        console().print(render(attribution))
        pages.append(to_html(attribution))
    if options.html:
        from tfllm.core.files import atomic_write

        atomic_write(options.html, "\n".join(pages))
    return 0


def fetch_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Fetches sample data into the cache."""
    parser.add_argument("name", nargs="+", help="see tfllm ls")
    options = parser.parse_args(argv)
    from tfllm.data import samples

    for name in options.name:
        for path in samples.fetch(name):
            note(f"{name}: {path}")
    return 0


def _load(path: str):
    load_tensorflow()
    from tfllm.tasks.runs import load_run

    return load_run(path)


def _labelling(path: str, run=None):
    run = run or _load(path)
    if not hasattr(run.task, "labels"):
        raise UserError(f"this run is of {run.task.name} and gives no labels", path)
    return run


def _texts(options) -> list[str]:
    if options.text:
        return options.text
    if options.file:
        from tfllm.data.readers import read

        return [row["text"] for row in read(options.file, labels=False).rows]
    if sys.stdin.isatty():
        raise UserError(
            "no text was given", fix="Give --text, --file or lines on stdin"
        )
    return [line.rstrip("\n") for line in sys.stdin if line.strip()]
