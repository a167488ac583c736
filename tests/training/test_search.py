"""The search, with a recipe that only pretends to train."""

import dataclasses
import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import yaml

from tfllm.config import parse, to_yaml
from tfllm.core.errors import UserError
from tfllm.tasks.task import Verdict
from tfllm.training.flags import TrainingFlags
from tfllm.training.search import Record, SearchFlags, is_poor, search

SPACE = {
    "learning_rate": {
        "min_value": 1e-4,
        "max_value": 1e-1,
        "sampling": "log",
        "default": 1e-3,
    },
    "epochs": {"values": [5, 10], "default": 5},
    "dropout": {"min_value": 0.0, "max_value": 0.5, "default": 0.1},
}


@dataclass
class Config(SearchFlags, TrainingFlags):
    """Flags of the pretended recipe."""


class Recipe:
    """Its score is the better the nearer the rate is to 0.01; losses fall or rise."""

    def __init__(self, maximize=True, stop=None):
        self.maximize, self.stop, self.seen = maximize, stop, []

    def __call__(self, argv, trial=None):
        config = parse(Config, argv)
        if config.search:
            return search(self, "pretended", config, SPACE)
        if config.dropout > 0.45:
            raise UserError("such a dropout cannot be had")
        path = trial.path
        path.mkdir(exist_ok=True)
        (path / "config.yaml").write_text(to_yaml(config))
        log = path / "metrics.jsonl"
        done = len(log.read_text().splitlines()) if log.exists() else 0
        top = 1 / (1 + abs(config.learning_rate - 0.01) / 0.01)
        task = SimpleNamespace(monitor="score", maximize=self.maximize)
        task.validate = lambda epoch, _: Verdict(
            {"score": (1 if self.maximize else -1) * top * epoch / config.epochs}
        )
        trial.watch(task)
        for epoch in range(done + 1, config.epochs + 1):
            self.seen.append((path.name, epoch))
            if len(self.seen) == self.stop:
                raise KeyboardInterrupt
            verdict = task.validate(epoch, None)
            with open(log, "a") as file:
                row = {"step": epoch, "validation_score": verdict.metrics["score"]}
                file.write(json.dumps(row) + "\n")
        return 0


def run(folder, trials, recipe=None, *more):
    recipe = recipe or Recipe()
    argv = ["--search", str(trials), "--output_dir", str(folder), *more]
    assert recipe(argv) == 0
    return recipe


def records(folder):
    return {
        path.stem: Record(**json.loads(path.read_text()))
        for path in sorted(folder.glob("trial-*.json"))
    }


@pytest.mark.parametrize("maximize", [True, False])
def test_the_best_trial_is_kept_and_poor_ones_stop_early(tmp_path, capsys, maximize):
    folder = tmp_path / "search"
    run(folder, 10, Recipe(maximize))
    found = records(folder)
    assert len(found) == 10
    first = found["trial-000"]
    assert first.settings == {"learning_rate": 1e-3, "epochs": 5, "dropout": 0.1}
    assert first.status == "done" and len(first.curve) == 5
    poor = [r for r in found.values() if r.status == "stopped early"]
    assert poor and all(0 < len(r.curve) < r.epochs for r in poor)
    done = {k: r for k, r in found.items() if r.status == "done"}
    best = max(done, key=lambda name: max(done[name].curve))
    written = yaml.safe_load((folder / "best.yaml").read_text())
    for name, value in done[best].settings.items():
        assert written[name] == value
    assert written["search"] == 0 and written["output_dir"] is None
    assert parse(Config, ["--config", str(folder / "best.yaml")]).epochs in (5, 10)
    shown = capsys.readouterr().out
    assert "stopped early" in shown and "best" in shown and best in shown
    assert (folder / "trials.md").read_text().count("trial-") == 10


def test_an_interrupted_search_is_the_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, 8)
    before = []
    for stop in (8, 11, 3):
        recipe = Recipe(stop=stop)
        with pytest.raises(KeyboardInterrupt):
            recipe(["--search", "8", "--output_dir", str(parts)])
        before += recipe.seen[:-1]
    last = run(parts, 8)
    assert len(set(before)) == len(before) and not set(before) & set(last.seen)
    one, other = records(whole), records(parts)
    assert {k: dataclasses.asdict(r) for k, r in one.items()} == {
        k: dataclasses.asdict(r) for k, r in other.items()
    }
    assert (whole / "best.yaml").read_text() == (parts / "best.yaml").read_text()
    # Once more costs nothing; more trials go on.
    assert run(parts, 8).seen == []
    assert {name for name, _ in run(parts, 10).seen} == {"trial-008", "trial-009"}


def test_a_failed_trial_is_told_and_the_search_goes_on(tmp_path, capsys):
    space = SPACE["dropout"]
    folder = tmp_path / "search"
    SPACE["dropout"] = space | {"min_value": 0.44, "default": 0.44}
    try:
        run(folder, 6)
    finally:
        SPACE["dropout"] = space
    states = [record.status for record in records(folder).values()]
    assert "failed" in states and states[0] == "done"
    assert "such a dropout cannot be had" in capsys.readouterr().out


def test_settings_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "search", 7)
    found = records(tmp_path / "search").items()
    for name, record in found:
        if record.status == "failed":
            continue
        tags = set()
        for file in (tmp_path / "search" / name / "tensorboard").glob("events*"):
            events = EventAccumulator(str(file)).Reload()
            tags |= set(events.Tags()["tensors"])
            tags |= set(events.summary_metadata)
        assert "hparams/validation_score" in tags
        if record.status == "stopped early":
            assert "_hparams_/session_start_info" in tags


def test_what_is_given_is_not_tried(tmp_path):
    run(tmp_path / "search", 3, None, "--learning_rate", "0.02", "--epochs", "4")
    for record in records(tmp_path / "search").values():
        assert set(record.settings) == {"dropout"}
        assert record.status == "failed" or record.epochs == 4


def test_what_cannot_be_searched_is_told(tmp_path):
    given = ["--learning_rate", "1", "--epochs", "1", "--dropout", "0"]
    taken, other = tmp_path / "taken", tmp_path / "other"
    run(taken, 2, None, "--epochs", "2")
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    for folder, more, words in (
        (tmp_path / "new", given, "nothing to try"),
        (tmp_path / "new", ["--max_steps", "3"], "--max_steps"),
        (tmp_path / "new", ["--dropout", "0.5"], "such a dropout"),
        (other, [], "holds no search"),
        (taken, ["--epochs", "3"], "--epochs 2 then, 3 now"),
        (taken, ["--epochs", "2", "--resume", "never"], "already holds a search"),
    ):
        with pytest.raises(UserError, match=words):
            run(folder, 2, None, *more)
        assert not (tmp_path / "new").exists()


def test_the_rule_for_poor_trials():
    def record(*curve, epochs=10, status="done"):
        return Record({}, status=status, epochs=epochs, curve=list(curve))

    earlier = [
        record(*(b * e / 10 for e in range(1, 11))) for b in (0.5, 0.7, 0.8, 0.9)
    ]
    assert is_poor(record(0.1, 0.149), earlier)
    assert not is_poor(record(0.1, 0.151), earlier)  # the median at 2 of 10: 0.15
    assert not is_poor(record(0.0), earlier)  # every trial has a fifth
    assert not is_poor(record(0.0, 0.0), earlier[:3])  # too few to compare with
    assert not is_poor(record(*[0.0] * 10), earlier)  # it is at its end
    # Shares of the epochs are compared, not their numbers.
    assert is_poor(record(0.29, epochs=5), [*earlier, *earlier]) is False
    assert is_poor(record(0.29, 0.29, epochs=5), earlier)
    short = [record(0.9, status="stopped early")] * 4
    assert not is_poor(record(0.0, 0.0), short)  # none of them came so far
