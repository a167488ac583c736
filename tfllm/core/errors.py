"""Errors that the user can mend, told in one line."""

import difflib
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Something that the user can mend; a command prints it and exits with 2.

    Args:
        what: What is wrong, in plain words.
        where: Where, as `file` or `file:line`.
        fix: How to mend it.
    """

    def __init__(self, what: str, where: object = None, fix: str | None = None):
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        line = self.what if self.where is None else f"{self.where}: {self.what}"
        line = line if self.fix is None else f"{line.rstrip('.')}. {self.fix}"
        return " ".join(line.split())


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Returns `Did you mean 'x'?` for the nearest candidate, or an empty string."""
    near = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else ""


def run_main(main: Callable[[], int | None]) -> int:
    """Runs a command and turns what ended it into an exit status.

    Returns:
        What `main` returned (0 for `None`); 2 after a `UserError`, whose line went to
        standard error; 130 after Ctrl-C.
    """
    import sys

    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `tfllm ls | head`
        sys.stderr.close()
        return 0
