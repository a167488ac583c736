"""`--search N`: N trials of a recipe with other settings; the best ones are kept.

Bayesian optimisation (keras-tuner's) proposes the settings, the recipe's own defaults
first. A trial is a run like any other, in a directory of its own, judged by its best
validation score; its test rows decide nothing. After a fifth of its epochs it is
stopped once it is worse than the median of the earlier trials was at that share of
theirs (the median rule of Golovin et al., 2017: Google Vizier).
"""

import dataclasses
import datetime
import gc
import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tfllm.config import flag, from_dict, read_yaml, to_yaml
from tfllm.core.console import note, table
from tfllm.core.errors import UserError
from tfllm.core.files import atomic_write
from tfllm.evaluation.report import markdown_table
from tfllm.tasks.task import Task
from tfllm.training.flags import RunFlags

GRACE = 0.2  # share of its epochs that every trial is given
FIRST = 4  # trials that a median needs
FREE = ("search", "output_dir", "resume")  # may differ when a search goes on


@dataclass
class SearchFlags(RunFlags):
    """Where a run is written, and whether settings are looked for."""

    search: int = flag(
        0, "trials of other settings instead of one run; what is given stays", minimum=0
    )


class Poor(Exception):
    """A trial is not worth going on with."""


@dataclass
class Record:
    """What a trial came to; scores of which the higher is the better.

    Attributes:
        settings: What was tried.
        status: `running`, `done`, `stopped early` or `failed`.
        metric: Name of the validation metric.
        sign: 1, or -1 where a lower metric is better.
        epochs: Evaluations of the whole trial.
        curve: Scores of the evaluations so far.
    """

    settings: dict
    status: str = "running"
    metric: str = ""
    sign: int = 1
    epochs: int = 1
    curve: list[float] = dataclasses.field(default_factory=list)

    def best(self, share: float = 1.0) -> float | None:
        """The best score within a share of the epochs; None if it did not come there.

        A run that patience ended keeps what it had.
        """
        ended = self.status == "stopped early" and len(self.curve) < share * self.epochs
        if ended or self.status == "failed" or not self.curve:
            return None
        return max(self.curve[: max(1, math.floor(share * self.epochs + 1e-9))])


@dataclass
class Trial:
    """One trial, seen from the recipe.

    Args:
        path: Its run directory; `PATH.json` beside it keeps the record.
        record: What is known of it.
        earlier: The records of earlier trials.
    """

    path: Path
    record: Record
    earlier: list[Record]

    def watch(self, task: Task) -> None:
        """Has a task report its evaluations; a poor trial ends with `Poor`."""
        validate, record = task.validate, self.record
        record.metric, record.sign = task.monitor, 1 if task.maximize else -1

        def watched(model, columns):
            verdict = validate(model, columns)
            score = verdict.metrics[task.monitor]
            # Read anew: what a killed run did after its last checkpoint comes again.
            scores = [*_logged(self.path, f"validation_{task.monitor}"), score]
            settings = (self.path / "config.yaml").read_text(encoding="utf-8")
            record.epochs = int(re.search(r"^epochs: (\d+)", settings, re.M)[1])
            record.curve = [
                record.sign * s if math.isfinite(s) else -math.inf for s in scores
            ]
            poor = is_poor(record, self.earlier)
            self.save("stopped early" if poor else "running")
            if poor:
                raise Poor
            return verdict

        task.validate = watched

    def save(self, status: str) -> None:
        """Writes the record."""
        self.record.status = status
        text = json.dumps(dataclasses.asdict(self.record), indent=1)
        atomic_write(self.path.with_suffix(".json"), text + "\n")


def is_poor(record: Record, earlier: list[Record]) -> bool:
    """Whether a trial is worse than the median of the others was at its share."""
    share = len(record.curve) / record.epochs
    others = [b for one in earlier if (b := one.best(share)) is not None]
    if not GRACE <= share < 1 or len(others) < FIRST:
        return False
    return max(record.curve) < statistics.median(others)


def search(main: Callable, recipe: str, config, space: dict[str, dict]) -> int:
    """Runs the trials that are missing, shows all of them, writes `best.yaml`.

    Args:
        main: The recipe's, called with arguments and `trial=`, a `Trial` whose `watch`
            it calls with its task before training.
        recipe: Its name.
        config: Its configuration, a dataclass with `SearchFlags` and `TrainingFlags`;
            settings that are not None stay as they are.
        space: Setting → what keras-tuner's `HyperParameters.Choice` (where there are
            `values`) or `Float` takes.

    Returns:
        The exit status, 0.

    Raises:
        UserError: There is nothing to try, the directory holds something else, or the
            first trial cannot run.
    """
    for name in ("eval_steps", "max_steps"):
        if getattr(config, name):
            raise UserError(f"--{name} does not go with --search, which counts epochs")
    space = {k: v for k, v in space.items() if getattr(config, k) is None}
    if not space:
        raise UserError("--search has nothing to try: every setting is given")
    directory = _directory(recipe, config)
    new = not directory.exists()
    _agree(config, directory)
    note(f"Search in {directory}: {', '.join(space)}; the same --output_dir goes on")
    oracle = _oracle(directory, space, config)
    ended = [_path(directory, trial_id) for trial_id in oracle.end_order]
    records = {path.name: _record(path) for path in ended}
    while (proposed := oracle.create_trial("tfllm")).status != "STOPPED":
        values = {k: _short(v) for k, v in proposed.hyperparameters.values.items()}
        path = _path(directory, proposed.trial_id)
        record = _record(path) or Record(values)
        trial = Trial(path, record, list(records.values()))
        if record.status == "running":
            note(f"{path.name}: {_words(values)}")
            try:
                _run(main, config, trial)
            except UserError as error:
                if any(one.status == "done" for one in records.values()):
                    note(f"{path.name} failed: {error}")
                    trial.save("failed")
                else:  # the data or the flags are wrong, not the settings
                    if new and not path.exists():
                        shutil.rmtree(directory)
                    raise
        records[path.name] = record
        proposed.status = "FAILED" if record.status == "failed" else "COMPLETED"
        if record.status != "failed":
            oracle.update_trial(proposed.trial_id, {"score": _score(record)})
        oracle.end_trial(proposed)
    return _finish(directory, config, records)


def _run(main: Callable, config, trial: Trial) -> None:
    """One trial; its settings and its score stand in its TensorBoard folder."""
    import keras

    from tfllm.training.tensorboard_tf import TensorBoard

    apart = {"output_dir": str(trial.path), "export": False, "search": 0}
    apart |= {"resume": "auto", "baseline": False, "compare": None}
    names = {field.name for field in dataclasses.fields(config)}
    apart = {name: value for name, value in apart.items() if name in names}
    settings = dataclasses.replace(config, **trial.record.settings, **apart)
    file = trial.path.with_suffix(".yaml")
    atomic_write(file, to_yaml(settings))
    try:
        main(["--config", str(file)], trial=trial)
        if not trial.record.curve:
            raise UserError("--search needs validation rows", fix="Hold some out")
        trial.save("done")
    except Poor:
        note(f"{trial.path.name} is stopped early: worse than the median so far")
    finally:
        keras.utils.clear_session()
        gc.collect()
    board, record = TensorBoard(trial.path / "tensorboard"), trial.record
    if record.status != "done":  # a whole run has told them itself
        board.hparams(vars(settings), {})
    best = record.sign * _score(record)
    board.scalars(0, {f"validation_{record.metric}": best}, "hparams")
    board.close()


def _finish(directory: Path, config, records: dict[str, Record]) -> int:
    found = {k: r for k, r in records.items() if r.status in ("done", "stopped early")}
    ranked = sorted(found, key=lambda name: -_score(found[name]))
    done = [name for name in ranked if found[name].status == "done"]
    ranked += [name for name in records if name not in found]
    best = records[done[0]]
    columns = ["trial", f"validation {best.metric}", "epochs", "", *best.settings]
    rows = []
    for name in ranked:
        record = records[name]
        score = "" if name not in found else f"{record.sign * _score(record):.4f}"
        epochs = f"{len(record.curve)} of {record.epochs}"
        status = "best" if record is best else record.status
        rows.append([name, score, epochs, status, *record.settings.values()])
    table("Search", columns, rows)
    atomic_write(directory / "trials.md", markdown_table(columns, rows) + "\n")
    own = {"search": 0, "output_dir": None, "resume": "auto"}
    settings = dataclasses.replace(config, **best.settings, **own)
    atomic_write(directory / "best.yaml", to_yaml(settings))
    note(
        f"Next:\n  tensorboard --logdir {directory}\n"
        f"  the same recipe with --config {directory}/best.yaml"
    )
    return 0


def _directory(recipe: str, config) -> Path:
    """Where the search lies: `--output_dir`, `--resume DIR`, or a new directory."""
    given = config.output_dir
    if config.resume not in ("auto", "never"):
        given = config.resume
    if given:
        return Path(given)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / recipe / f"{stamp}-search"


def _agree(config, directory: Path) -> None:
    """Keeps the flags of a new search; refuses others for one that goes on."""
    saved = directory / "search.yaml"
    if not saved.exists():
        if directory.exists() and any(directory.iterdir()):
            raise UserError(
                "the directory is not empty and holds no search",
                directory,
                "Choose another --output_dir",
            )
        atomic_write(saved, to_yaml(config))
        return
    if config.resume == "never":
        raise UserError("the directory already holds a search", directory)
    before = from_dict(type(config), read_yaml(type(config), saved), where=saved)
    now, then = vars(config), vars(before)
    other = [f"--{k} {then[k]} then, {v} now" for k, v in now.items() if v != then[k]]
    if other := [line for line in other if line[2:].split()[0] not in FREE]:
        raise UserError(
            f"the search began with other flags: {'; '.join(other)}",
            directory,
            "Give the same ones, or another --output_dir",
        )


def _oracle(directory: Path, space: dict[str, dict], config):
    """What proposes settings, as it was when the search was stopped."""
    import keras_tuner

    class Oracle(keras_tuner.oracles.BayesianOptimizationOracle):
        def populate_space(self, trial_id):
            if self.trials:
                return super().populate_space(trial_id)
            values = {one.name: one.default for one in self.hyperparameters.space}
            return {"status": "RUNNING", "values": values}

        # keras-tuner's own files are half-written for a moment.
        def save(self):
            atomic_write(self._get_oracle_fname(), json.dumps(self.get_state()))

        def _save_trial(self, trial):
            folder = Path(self._get_trial_dir(trial.trial_id))
            atomic_write(folder / "trial.json", json.dumps(trial.get_state()))

    settings = keras_tuner.HyperParameters()
    for name, options in space.items():
        kind = settings.Choice if "values" in options else settings.Float
        kind(name, **options)
    oracle = Oracle(
        objective=keras_tuner.Objective("score", "max"),
        max_trials=config.search,
        hyperparameters=settings,
        tune_new_entries=False,
        seed=config.seed + 1,
        max_consecutive_failed_trials=config.search + 1,
    )
    oracle.verbose = 0
    oracle._set_project_dir(str(directory), "tuner")
    if (directory / "tuner" / "oracle.json").exists():
        oracle.reload()
        left = [key for key, one in oracle.trials.items() if one.status == "RUNNING"]
        oracle._retry_queue = left
    return oracle


def _path(directory: Path, trial_id: str) -> Path:
    return directory / f"trial-{int(trial_id):03d}"


def _score(record: Record) -> float:
    return max(record.curve)


def _record(path: Path) -> Record | None:
    file = path.with_suffix(".json")
    return Record(**json.loads(file.read_text("utf-8"))) if file.exists() else None


def _logged(path: Path, name: str) -> list[float]:
    log = path / "metrics.jsonl"
    if not log.exists():
        return []
    rows = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return [row[name] for row in rows if name in row]


def _short(value):
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _words(settings: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
