"""Strict YAML in and out of frozen dataclasses: one way for every stage's settings."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from interkd.kernels.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A remedy naming the known name closest to `name`, or None when none is close."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else None


def one_of(key: str, value: str, known: Iterable[str]) -> None:
    """Refuses a name that is not among the known ones.

    Raises:
        ConfigError: Naming the key, the names it takes and the nearest one.
    """
    names = sorted(known)
    if value not in names:
        raise ConfigError(
            f"unknown {key}",
            expected=" | ".join(names),
            got=repr(value),
            remedy=nearest(value, names),
        )


def in_range(
    section: str,
    settings: Any,
    *names: str,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuses settings out of range, infinite or NaN; of a tuple each number, never a None.

    Args:
        section: Dotted path of the settings, with its dot at the end; empty for the top.
        settings: The dataclass.
        names: Its fields to check.
        above: Exclusive lower limit.
        at_least: Inclusive lower limit.
        below: Exclusive upper limit.
        at_most: Inclusive upper limit.

    Raises:
        ConfigError: Naming the first setting out of range, its limits and its value.
    """
    limits = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    expected = ", ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)
    for name in names:
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not (
                math.isfinite(number)
                and (above is None or number > above)
                and (at_least is None or number >= at_least)
                and (below is None or number < below)
                and (at_most is None or number <= at_most)
            ):
                raise ConfigError(f"{section}{name}", expected=expected, got=value)


def build(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Builds a settings dataclass from a mapping, nested dataclasses from nested mappings.

    Args:
        cls: A dataclass whose fields are plain values, tuples, optionals or dataclasses.
        values: Keys are field names; a missing key takes the field's default.
        where: Dotted path of `values`, for messages.

    Returns:
        An instance of `cls`.

    Raises:
        ConfigError: For an unknown key (naming the nearest right one), a missing key without a
            default, or a value of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise ConfigError(f"unknown setting '{path}'", remedy=nearest(str(key), fields))
        arguments[key] = _convert(hints[key], value, path)
    for name, field in fields.items():
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in arguments and not has_default:
            raise ConfigError(
                f"missing setting '{where}.{name}'" if where else f"missing setting '{name}'"
            )
    return cls(**arguments)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in parameters:
            return None
        (hint,) = [p for p in parameters if p is not type(None)]
        return _convert(hint, value, path)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(parameters[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(typing.cast(type[Any], hint), value, where=path)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    kind = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"setting '{path}'", expected=kind, got=repr(value))


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Applies `a.b=value` assignments (the command line's `--set`) to a nested mapping, in place.

    The value is read as YAML, so `true`, `1e-3`, `[4, 8]` and `null` mean what they mean there.

    Raises:
        ConfigError: For an assignment without `=`, or a path through something that is not a
            mapping.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set {assignment}", expected="KEY.SUBKEY=VALUE")
        *parents, leaf = path.split(".")
        here = values
        for parent in parents:
            if here.get(parent) is None:  # absent, or a YAML section with nothing under it
                here[parent] = {}
            here = here[parent]
            if not isinstance(here, dict):
                raise ConfigError(
                    f"--set {assignment}", expected=f"a section at '{parent}'", got=here
                )
        here[leaf] = _parse_scalar(text)
    return values


def _parse_scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string; nobody means that
        try:
            return float(value)
        except ValueError:
            return value
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ConfigError: If the file is missing, is not YAML or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}", got=error.strerror) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML", got=str(error)) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}", expected="a YAML mapping", got=type(values).__name__)
    return {key: _retype(value) for key, value in values.items()}


def _retype(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _retype(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_retype(item) for item in value]
    if isinstance(value, str) and "e" in value.lower() and value[:1] in "+-.0123456789":
        return _parse_scalar(value)
    return value


def as_plain(settings: Any) -> Any:
    """The settings as plain mappings, lists and values, ready for YAML or JSON."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: as_plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, tuple | list):
        return [as_plain(item) for item in settings]
    if isinstance(settings, Path):
        return str(settings)
    return settings
