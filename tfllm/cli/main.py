"""The command `tfllm`.

Only what a command needs is imported, and only when it runs: `tfllm --help` answers at
once.
"""

import argparse
import sys

from tfllm.core.errors import UserError, did_you_mean, run_main

COMMANDS = {
    "ls": "recipes, sample data and finished runs",
    "doctor": "look over labelled data before training on them",
    "eval": "measure a finished run on a file",
    "predict": "label texts with a finished run",
    "generate": "go on with texts: a run, directory or preset of a decoder",
    "chat": "talk with a model in the terminal",
    "code-eval": "fill functions in and run their tests: pass@k of HumanEval",
    "average": "average checkpoints of a run, or the best ones of several",
    "export": "export a finished run or a decoder for TensorFlow Serving",
    "check": "load an export as TensorFlow Serving does and try it out",
    "search": "texts of a file that are nearest in meaning to a question",
    "explain": "which words or characters an answer rests on",
    "fetch": "fetch sample data for later use without a network",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status."""
    return run_main(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
        print("usage: tfllm COMMAND …   (tfllm COMMAND --help tells more)\n")
        print("\n".join(lines))
        print("\nTraining is done by the recipes: python recipes/NAME.py --help")
        return 0
    if argv[0] == "--version":
        from tfllm import __version__

        print(__version__)
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or "tfllm --help lists the commands"
        raise UserError(f"unknown command '{name}'", fix=hint)
    from tfllm.cli import commands

    parser = _Parser(prog=f"tfllm {name}", description=COMMANDS[name])
    return getattr(commands, f"{name.replace('-', '_')}_command")(parser, rest)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message, fix=f"{self.prog} --help lists what it takes")
