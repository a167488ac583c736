"""What is written while a run goes on: metrics.jsonl and the progress line."""

import json
import math
import time
from pathlib import Path

from tfllm.core.console import console
from tfllm.core.files import atomic_write


class StepLog:
    """Gathers the logs of steps into one row every `every` steps.

    Args:
        path: `metrics.jsonl`; rows after `start_step` (of a run that was killed after
            them) are dropped, so that the file tells one story.
        every: Steps of a row.
        start_step: The step that training goes on from.
        flops_per_token: Of a training step; `None` leaves the share of peak out.
        peak_flops: What the device can do a second.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        start_step: int = 0,
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
    ):
        self.path, self.every = path, every
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self._rows: list[dict] = []
        self._waited = 0.0
        self.restart_clock()
        if path.exists():
            rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [row for row in rows if _step(row) <= start_step]
            atomic_write(path, "".join(kept))

    def restart_clock(self) -> None:
        """Leaves the time since the last step (evaluation, saving) out of the rates."""
        self._since = time.perf_counter()

    def step(self, step: int, logs: dict, data_seconds: float) -> dict | None:
        """Adds a step; returns the row when one is full.

        Args:
            step: Optimizer steps so far.
            logs: Of this step, numbers.
            data_seconds: Seconds waited for data since the run began.
        """
        now = time.perf_counter()
        self._rows.append(logs | {"seconds": now - self._since})
        self._since = now
        if step % self.every and step != 1:
            return None
        rows, self._rows = self._rows, []
        good = [row for row in rows if not row.get("bad_step")] or rows
        seconds = sum(row["seconds"] for row in rows)
        tokens = sum(row["tokens"] for row in rows)
        positions = sum(row["positions"] for row in rows)
        averaged = set(good[0]) - {"tokens", "positions", "seconds", "bad_step", "stop"}
        row = {"step": step}
        for name in sorted(averaged):
            mean = sum(r[name] for r in good) / len(good)
            row[name] = mean if math.isfinite(mean) else None
        row |= {
            "learning_rate": rows[-1]["learning_rate"],
            "tokens_per_second": tokens / seconds,
            "steps_per_second": len(rows) / seconds,
            "padding_share": 1 - tokens / max(positions, 1),
            "data_wait_share": min(1.0, (data_seconds - self._waited) / seconds),
            "bad_steps": int(sum(row["bad_step"] for row in rows)),
        }
        self._waited = data_seconds
        if self.peak_flops:
            work = row["tokens_per_second"] * self.flops_per_token
            row["peak_share"] = work / self.peak_flops
        self.write(row)
        return row

    def write(self, row: dict) -> None:
        """Appends a row to metrics.jsonl."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _step(row: str) -> int:
    try:
        return json.loads(row)["step"]
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # the half-written last line of a killed process


class Progress:
    """A progress bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, total: int, step: int):
        self.total, self.last_line = total, 0.0
        self.started, self.first = time.perf_counter(), step
        self._bar = self._task = None
        if console().is_terminal:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar

            self._bar = Bar(
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=console(),
            )
            self._task = self._bar.add_task("", total=total, completed=step)
            self._bar.start()

    def row(self, row: dict) -> None:
        """Shows a logged row."""
        text = f"loss {row['loss'] if row['loss'] is not None else math.nan:.4f}"
        text += f"  lr {row['learning_rate']:.2e}"
        if row["grad_norm"] is not None:
            text += f"  grad norm {row['grad_norm']:.2f}"
        text += f"  {row['tokens_per_second']:,.0f} tokens/s"
        if row.get("peak_share") is not None:
            text += f"  {row['peak_share']:.0%} of peak"
        text += f"  {row['padding_share']:.0%} padding"
        if row["data_wait_share"] > 0.01:
            text += f"  {row['data_wait_share']:.0%} waiting for data"
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif time.perf_counter() - self.last_line > 10 or row["step"] == self.total:
            self.last_line = time.perf_counter()
            done = row["step"] - self.first
            left = (self.last_line - self.started) / max(1, done)
            left *= self.total - row["step"]
            self.say(f"step {row['step']}/{self.total}  {text}  {left:.0f} s left")

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        console().print(text, markup=False)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
