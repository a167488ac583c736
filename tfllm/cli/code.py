"""`tfllm code-eval`: functions that a model fills in, and what their tests say."""

import json
from argparse import ArgumentParser

from tfllm.cli.generation import add_settings, open_generator, settings_of
from tfllm.core.console import note, progress, table
from tfllm.core.errors import UserError


def code_eval_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Fills functions in with --model; runs their tests with --run_code."""
    parser.add_argument("problems", help="JSONL of HumanEval's form, .gz as is")
    parser.add_argument("samples", help="JSONL of task_id and completion")
    parser.add_argument("--model", help="run, directory or preset that makes samples")
    parser.add_argument("--num_samples", type=int, default=1, help="of each problem")
    parser.add_argument("--batch_size", type=int, default=8, help="made at once")
    add_settings(parser, temperature=0.0, max_new_tokens=256, seed=0)
    parser.add_argument(
        "--run_code", action="store_true", help="run what the model wrote"
    )
    parser.add_argument("--k", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds a program")
    parser.add_argument("--memory", type=int, default=1024, help="MiB a program")
    parser.add_argument("--workers", type=int, help="programs at once; one a core")
    options = parser.parse_args(argv)
    if not (options.model or options.run_code):
        raise UserError(
            "programs that a model wrote are not run unasked",
            fix="--run_code runs them, each in a process with limits of time and "
            "memory and without a network; do so where they can do no harm",
        )
    from tfllm.evaluation import code

    problems = code.read_lines(options.problems, code.PROBLEM)
    if options.model:
        code.write_lines(options.samples, _filled(problems, options, code.STOPS))
        note(f"samples: {options.samples}")
    if not options.run_code:
        return 0
    samples = code.read_lines(options.samples, code.SAMPLE)
    with progress("running programs", len(samples)) as advance:
        metrics, rows = code.evaluate(
            problems,
            samples,
            options.k,
            seconds=options.timeout,
            memory=options.memory << 20,
            workers=options.workers,
            advance=advance,
        )
    path = f"{options.samples.removesuffix('.gz')}_results.jsonl"
    code.write_lines(path, rows)
    passed = sum(row["passed"] for row in rows)
    table(f"{passed:,} of {len(rows):,} pass", ["metric", "value"], metrics.items())
    note(json.dumps(metrics))
    note(f"results: {path}")
    return 0


def _filled(problems: list[dict], options, stops) -> list[dict]:
    """Samples, neighbours of like length together; each has a seed of its own."""
    generator, _ = open_generator(options.model, options.xla)
    settings = settings_of(options)
    settings["stop"] = [*settings["stop"], *stops]
    rows = [problem for problem in problems for _ in range(options.num_samples)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt"]))
    made, first = {}, settings.pop("seed")
    with progress("writing programs", len(rows)) as advance:
        for start in range(0, len(order), options.batch_size):
            batch = order[start : start + options.batch_size]
            answers = generator.generate(
                [rows[i]["prompt"] for i in batch],
                seed=[first + i for i in batch],
                **settings,
            )
            made |= zip(batch, answers, strict=True)
            advance(len(batch))
    return [
        {"task_id": row["task_id"], "completion": made[i].text}
        for i, row in enumerate(rows)
    ]
