"""What a person sees: tables, warnings and progress, through rich."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator


@functools.cache
def console(stderr: bool = False):
    """The rich console of standard output, or of standard error."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=not stderr)


def note(text: str) -> None:
    """Says a plain line."""
    console().print(text, markup=False)


def warn(text: str) -> None:
    """Says something that does not stop the run but should be read."""
    from rich.text import Text

    console().print(Text("warning: ", "yellow").append(text, "default"))


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Prints a table; numbers are aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for position, name in enumerate(columns):
        numeric = all(isinstance(r[position], int | float) for r in rows) and rows
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(format_cell(cell)) for cell in row))
    console().print(drawn)


def format_cell(value: object) -> str:
    """A number with four significant digits and thousands separators; else `str`."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if type(value) is int else str(value)


_shown = False  # whether a bar is on the screen: there can be one


@contextlib.contextmanager
def progress(description: str, total: float | None) -> Iterator[Callable]:
    """Shows the progress of long work; yields `advance(n=1)`.

    Away from a terminal nothing is drawn but one line at the end, if it took long. Work
    that is a part of other such work shows nothing.
    """
    from rich.progress import Progress

    global _shown
    if _shown:
        yield lambda n=1: None
        return
    started, _shown = time.monotonic(), True
    try:
        with Progress(console=console(True), transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda n=1: bar.advance(task, n)
    finally:
        _shown = False
    seconds = time.monotonic() - started
    if seconds > 5 and not console(True).is_terminal:
        console(True).print(f"{description}: {seconds:.0f} s", markup=False)
