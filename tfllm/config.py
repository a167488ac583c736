"""One flat dataclass is a recipe's flags, its `--help` and its YAML file.

`argparse` does the parsing; what it lacks is here: flags from a dataclass, a YAML file
under them, and an error that names the nearest known key. Lists are space-separated
(`--train_file a b`) and booleans bare (`--dry_run`, `--no_export`).
"""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path

from tfllm.core.errors import UserError, did_you_mean

T = typing.TypeVar("T")


def flag(default, help: str, choices: Sequence | None = None, **limits):
    """A dataclass field that becomes the flag `--name`.

    Args:
        default: Default value; `None` means "chosen by the recipe", and what it chose
            is written to the run's `config.yaml`.
        help: One line for `--help`.
        choices: The values that are allowed.
        **limits: `minimum`, `maximum` (inclusive) for numbers.
    """
    metadata = {"help": help, "choices": choices, **limits}
    if isinstance(default, list):
        return dataclasses.field(
            default_factory=lambda: list(default), metadata=metadata
        )
    return dataclasses.field(default=default, metadata=metadata)


def parse(cls: type[T], argv: Sequence[str] | None = None, about: str = "") -> T:
    """Reads `--config FILE` and flags into an instance of the dataclass `cls`.

    Flags win over the file, the file wins over the defaults. `--print_config` prints
    the result as YAML and ends the program with status 0.

    Raises:
        UserError: For an unknown flag or key (naming the nearest one) or bad values;
            all bad values are told at once.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    kinds = _kinds(cls)
    parser = _Parser(
        description=about.strip(),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=_Formatter,
    )
    parser.add_argument("--config", help="YAML file with the same keys")
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print the resulting configuration as YAML and stop",
    )
    for name, field in fields.items():
        kind, many = kinds[name]
        options = {"help": _help(field), "dest": name}
        if kind is bool and field.default is True:
            parser.add_argument(f"--no_{name}", action="store_false", **options)
        elif kind is bool:
            parser.add_argument(f"--{name}", action="store_true", **options)
        else:
            options |= {"metavar": _metavar(field, kind)}
            parser.add_argument(f"--{name}", nargs="+" if many else None, **options)
    given, unknown = parser.parse_known_args(argv)
    given = vars(given)
    if unknown:
        known = [
            option for action in parser._actions for option in action.option_strings
        ]
        word = unknown[0].split("=")[0]
        raise UserError(
            f"unknown argument '{unknown[0]}'",
            fix=did_you_mean(word, known) or "--help lists the flags",
        )
    config_file, show = given.pop("config", None), given.pop("print_config", False)
    merged = (read_yaml(cls, config_file) if config_file else {}) | given
    config = from_dict(cls, merged, where=config_file)
    if show:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def from_dict(cls: type[T], values: dict, where: object = None) -> T:
    """Makes an instance of `cls`, with every value brought to its field's type."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    problems, clean = [], {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(
                f"unknown key '{name}'", where, did_you_mean(name, fields) or None
            )
        try:
            clean[name] = _convert(value, *_kinds(cls)[name])
            _check(fields[name], clean[name])
        except ValueError as error:
            problems.append(f"--{name}: {error}")
    if problems:
        raise UserError("; ".join(problems), where)
    return cls(**clean)


def read_yaml(cls: type, path: str | Path) -> dict:
    """Reads a YAML file of the keys of `cls`; unknown keys are a `UserError`."""
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError("there is no such configuration file", path) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        problem = getattr(error, "problem", None) or error
        raise UserError(f"not a YAML file: {problem}", where) from None
    if not isinstance(values, dict):
        raise UserError("a configuration is a list of `key: value` lines", path)
    return values


def to_yaml(config) -> str:
    """The dataclass as YAML, keys in the order of its fields."""
    import yaml

    return yaml.safe_dump(
        dataclasses.asdict(config), sort_keys=False, allow_unicode=True
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message, fix="--help lists the flags")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=100)


def _kinds(cls: type) -> dict[str, tuple[type, bool]]:
    """Maps each field to (its scalar type, whether it is a list)."""
    kinds = {}
    for name, hint in typing.get_type_hints(cls).items():
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(a for a in typing.get_args(hint) if a is not type(None))
        many = typing.get_origin(hint) is list
        kinds[name] = (typing.get_args(hint)[0] if many else hint, many)
    return kinds


def _help(field: dataclasses.Field) -> str:
    default = field.default
    if default is dataclasses.MISSING:
        default = field.default_factory()
    text = field.metadata.get("help", "").replace("%", "%%")
    if default in (None, False, True, "") or default == []:
        return text
    return f"{text} ({default})"


def _metavar(field: dataclasses.Field, kind: type) -> str:
    choices = field.metadata.get("choices")
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    return {int: "N", float: "X"}.get(kind, "FILE" if "file" in field.name else "NAME")


def _convert(value, kind: type, many: bool):
    if many:
        values = value if isinstance(value, list | tuple) else [value]
        return [_convert(v, kind, False) for v in values if v is not None]
    if value is None or (isinstance(value, kind) and type(value) is not bool):
        return value
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"expected true or false, got {value!r}")
    if isinstance(value, bool):
        raise ValueError(f"expected {_NAMES.get(kind, kind.__name__)}, got {value!r}")
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        # PyYAML reads 1e-3 as a text, and a person may write 1e5 for a whole number.
        number = float(value) if kind is int else None
        return (
            int(number) if number is not None and number.is_integer() else kind(value)
        )
    except (TypeError, ValueError):
        expected = _NAMES.get(kind, kind.__name__)
        raise ValueError(f"expected {expected}, got {value!r}") from None


_NAMES = {int: "a whole number", float: "a number", str: "a text"}


def _check(field: dataclasses.Field, value) -> None:
    choices = field.metadata.get("choices")
    low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
    for one in value if isinstance(value, list) else [value]:
        if one is None:
            continue
        if choices and one not in choices:
            hint = did_you_mean(str(one), map(str, choices))
            allowed = ", ".join(map(str, choices))
            raise ValueError(f"expected one of {allowed}, got {one!r}. {hint}".strip())
        if low is not None and not one >= low:
            raise ValueError(f"must be at least {low}, got {one}")
        if high is not None and not one <= high:
            raise ValueError(f"must be at most {high}, got {one}")


def refuse(config, *names: str, beside: str | None = None) -> None:
    """Raises a `UserError` where a flag is set that would change nothing.

    Args:
        config: Flags.
        names: Those that a recipe shares with others and cannot use.
        beside: The flag that makes them useless, and only if it is set.
    """
    other = getattr(config, beside) if beside else None
    if beside and not other:
        return
    said = f" {other}" if isinstance(other, str) else ""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        value, default = getattr(config, name), defaults[name]
        # What is open at first may have been settled as "off" when a run began.
        if value != default and (value or default is not None):
            where = "is not for this recipe"
            if beside:
                where = f"does not go with --{beside}{said}"
            flag = name if value else f"no_{name}"
            raise UserError(f"--{flag} {where}", fix="Leave it out")


def fill(config: T, defaults: dict) -> T:
    """A copy in which the fields that are `None` take what `defaults` gives."""
    names = {field.name for field in dataclasses.fields(config)}
    open_ones = {n: v for n, v in defaults.items() if getattr(config, n, 0) is None}
    return dataclasses.replace(
        config, **{n: v for n, v in open_ones.items() if n in names}
    )
