"""Training that goes block by block through tables too large to be moved at each step.

The Trainer's step makes a gradient of every weight; here a step touches few rows and
the task itself moves them. What a run leaves, and how it goes on, is the same.
"""

import contextlib
import time
from types import SimpleNamespace

from tfllm.core.console import note, table
from tfllm.core.errors import UserError
from tfllm.training.checkpoints import Checkpoints, read
from tfllm.training.interrupts import interrupts
from tfllm.training.logs import Progress, StepLog


def rate_at(step: int, total: int, peak: float, method: str) -> float:
    """word2vec's rate falls to a ten-thousandth of the peak; AdaGrad's stays."""
    return peak if method == "glove" else peak * max(1e-4, 1 - step / total)


def train_blocks(task, config, run, settings: dict) -> dict:
    """Trains to the end.

    Args:
        task: Gives `tables`, `blocks` and `step`; see `tasks.word_vectors`.
        config: `epochs`, `max_steps`, `learning_rate`, `log_steps`, `save_minutes`,
            `keep_checkpoints`.
        run: The run directory.
        settings: Kept as config.json of the checkpoints.

    Returns:
        The tables.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when a checkpoint is written.
        UserError: The loss is no number, or the disk is full.
    """
    tables, total = task.tables(), total_blocks(task, config)
    checkpoints = Checkpoints(run.checkpoints, config.keep_checkpoints)
    checkpoints.tidy()
    step = 0
    if (last := next(checkpoints.good(), None)) is not None:
        tables, _, state = read(last)
        step = state["step"]
        note(f"goes on from {last}")
    log = StepLog(run.path / "metrics.jsonl", config.log_steps, step)
    progress, target = Progress(total, step), SimpleNamespace(stop=False)
    saved = time.monotonic()

    def save() -> None:
        checkpoints.save(
            f"step-{step:06d}", weights=tables, state={"step": step}, config=settings
        )

    with interrupts(target), contextlib.closing(progress):
        while step < total and not target.stop:
            rate = rate_at(step, total, config.learning_rate, task.method)
            logs = task.step(tables, step, rate)
            step += 1
            if not logs["loss"] < float("inf"):
                raise UserError(
                    "the loss is no number any more",
                    f"step {step}",
                    "Try a smaller --learning_rate",
                )
            logs |= {"learning_rate": rate, "positions": logs["tokens"], "bad_step": 0}
            if (row := log.step(step, logs, 0.0)) is not None:
                progress.row(row)
            progress.step(step)
            if time.monotonic() - saved > 60 * config.save_minutes:
                save()
                saved = time.monotonic()
                log.restart_clock()
    save()
    if target.stop:
        note(f"stopped at step {step}")
        raise KeyboardInterrupt
    return tables


def save_best(run, weights: dict, config: dict) -> None:
    """Writes `checkpoints/best`, which `tasks.runs.load_run` opens."""
    Checkpoints(run.checkpoints).save("best", weights=weights, state={}, config=config)


def total_blocks(task, config) -> int:
    """Steps of a run."""
    return min(task.blocks * config.epochs, config.max_steps or 1 << 62)


def dry_run(task, config, steps: int = 20) -> int:
    """Says what training would take, from a few timed steps; writes nothing."""
    tables, total = task.tables(), total_blocks(task, config)
    task.step(tables, 0, 0.0)
    started = time.perf_counter()
    words = sum(task.step(tables, i, 0.0)["tokens"] for i in range(min(steps, total)))
    seconds = time.perf_counter() - started
    step = seconds / min(steps, total)
    figures = {
        "steps an epoch": task.blocks,
        "words a second": round(words / seconds),
        "minutes an epoch": step * task.blocks / 60,
        "minutes in all": step * total / 60,
        "tables, GB": sum(one.nbytes for one in tables.values()) / 2**30,
    }
    table("Dry run", ["", "value"], figures.items())
    return 0
