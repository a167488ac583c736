"""Flags, YAML and their errors."""

from dataclasses import dataclass

import pytest

from tfllm.config import flag, from_dict, parse, refuse, to_yaml
from tfllm.core.errors import UserError


@dataclass
class Config:
    train_file: list[str] = flag([], "files")
    epochs: int = flag(3, "epochs", minimum=1)
    learning_rate: float | None = flag(None, "peak", minimum=0.0)
    schedule: str = flag("linear", "schedule", choices=["linear", "cosine"])
    dry_run: bool = flag(False, "try only")
    export: bool = flag(True, "do not export")


def test_flags_lists_and_bare_booleans():
    config = parse(
        Config, ["--train_file", "a", "b", "--dry_run", "--no_export", "--epochs=5"]
    )
    assert config.train_file == ["a", "b"]
    assert config.dry_run and not config.export and config.epochs == 5


def test_yaml_under_flags_and_round_trip(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7\nlearning_rate: 1e-3\ntrain_file: x\ndry_run: true\n")
    config = parse(Config, ["--config", str(file), "--epochs", "2"])
    assert (config.epochs, config.learning_rate) == (2, 1e-3)
    assert config.train_file == ["x"] and config.dry_run
    file.write_text(to_yaml(config))
    assert parse(Config, ["--config", str(file)]) == config


def test_print_config_prints_yaml_and_ends(capsys):
    with pytest.raises(SystemExit) as end:
        parse(Config, ["--print_config", "--schedule", "cosine"])
    assert end.value.code == 0
    assert "schedule: cosine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--epoch", "3"], ["--epoch", "Did you mean '--epochs'"]),
        (["--epochs", "three"], ["--epochs", "whole number", "three"]),
        (["--epochs", "0"], ["at least 1"]),
        (["--schedule", "cosinus"], ["cosine"]),
        (["--epochs"], ["--epochs"]),
        (["--config", "no.yaml"], ["no.yaml"]),
        (["stray"], ["stray"]),
    ],
)
def test_bad_flags_say_what_and_how_to_mend(argv, words):
    with pytest.raises(UserError) as error:
        parse(Config, argv)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_bad_yaml_names_line_and_nearest_key(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 1\nlearning_rat: 3\n")
    with pytest.raises(UserError, match=r"learning_rat.*Did you mean 'learning_rate'"):
        parse(Config, ["--config", str(file)])
    file.write_text("epochs: 1\n  bad: [\n")
    with pytest.raises(UserError, match=r"c\.yaml:\d"):
        parse(Config, ["--config", str(file)])


def test_all_problems_at_once():
    with pytest.raises(UserError, match=r"epochs.*; .*learning_rate"):
        from_dict(Config, {"epochs": 0, "learning_rate": "fast"})
    with pytest.raises(UserError, match="dry_run"):
        from_dict(Config, {"dry_run": 3})


def test_flags_that_change_nothing_are_refused():
    def told(argv, *names, **beside):
        config = parse(Config, argv)
        with pytest.raises(UserError) as error:
            refuse(config, *names, **beside)
        return str(error.value)

    names = "schedule", "learning_rate", "export"
    assert "--no_export is not for this recipe" in told(["--no_export"], *names)
    assert "--schedule is" in told(["--schedule", "cosine"], *names)
    for argv in ([], ["--schedule", "linear"], ["--learning_rate", "0"]):
        refuse(parse(Config, argv), *names)  # as they are anyway, or settled as off
    argv = ["--schedule", "cosine", "--dry_run"]
    assert "--schedule does not go with --dry_run" in told(
        argv, *names, beside="dry_run"
    )
    refuse(parse(Config, argv[:2]), *names, beside="dry_run")
