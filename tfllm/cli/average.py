"""`tfllm average`: the mean of several checkpoints as a run of its own."""

import json
import shutil
from argparse import ArgumentParser
from pathlib import Path

from tfllm.core.console import note
from tfllm.core.errors import UserError
from tfllm.core.files import atomic_directory
from tfllm.training.checkpoints import CONFIG, WEIGHTS, Checkpoints

KEPT = ("config.yaml", "data_report.json", "environment.json")
KEPT += ("tokenizer", "target_tokenizer")


def average_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Averages the last checkpoints of a run, or the best ones of several."""
    parser.add_argument(
        "run", nargs="+", help="a run; or several, whose best are meant"
    )
    parser.add_argument(
        "--last", type=int, default=5, help="checkpoints of a single run"
    )
    parser.add_argument("--output", help="the new run; RUN-average when absent")
    options = parser.parse_args(argv)
    runs = [Path(run) for run in options.run]
    for run in runs:
        if not (run / "config.yaml").exists():
            raise UserError("there is no run", run, "Name a directory under runs/")
    if len(runs) > 1:
        paths = [run / "checkpoints/best" for run in runs]
    else:
        good = Checkpoints(runs[0] / "checkpoints").good()
        paths = [path for path, _ in zip(good, range(options.last), strict=False)]
        if len(paths) < options.last:
            raise UserError(
                f"there are {len(paths)} checkpoints, not {options.last}",
                runs[0],
                "Train with --keep_checkpoints and --eval_steps or --save_minutes",
            )
    target = Path(options.output or f"{str(runs[0]).rstrip('/')}-average")
    if target.exists():
        raise UserError("there is something already", target, "Give another --output")
    weights = _mean(paths)
    config = json.loads((paths[0] / CONFIG).read_text(encoding="utf-8"))
    with atomic_directory(target) as folder:
        for name in KEPT:
            source = runs[0] / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.exists():
                shutil.copy(source, folder / name)
        state = {"averaged": [str(path) for path in paths]}
        saved = Checkpoints(folder / "checkpoints")
        saved.save("best", weights=weights, state=state, config=config)
    note(f"the mean of {', '.join(map(str, paths))}: {target}")
    note(f"Next:\n  tfllm eval {target} --test_file FILE\n  tfllm export {target}")
    return 0


def _mean(paths: list[Path]) -> dict:
    """The mean of weights, a checkpoint at a time."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    total = {}
    for path in paths:
        try:
            weights = load_file(path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read the weights: {error}", path) from None
        shapes = {name: array.shape for name, array in weights.items()}
        if total and shapes != {name: array.shape for name, array in total.items()}:
            raise UserError("another model than the first", path)
        for name, array in weights.items():
            part = array.astype("float64") / len(paths)
            total[name] = total[name] + part if name in total else part
    return {name: array.astype("float32") for name, array in total.items()}
