"""`~` and `$NAME` in what a user writes: expanded here, or left to the shell on the node."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from typing import Any

from interkd.kernels.errors import ConfigError

_VARIABLE = re.compile(r"(\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\}))", re.ASCII)
_HOME = re.compile(r"(?:^|(?<=[=:,]))~(?=/|$)")  # where a path begins, as in --bind=~/data:/data


def shell_word(word: str) -> str:
    """A word as bash reads it: the node's shell expands `~` and variables, all else is quoted.

    So a variable may be one that only the node, or the prologue, sets.
    """
    pieces = _VARIABLE.split(_HOME.sub("$HOME", word))
    if len(pieces) == 1:
        return shlex.quote(word)
    quoted = (f'"{piece}"' if at % 2 else shlex.quote(piece) for at, piece in enumerate(pieces))
    return "".join(text for text in quoted if text != "''")


def expanded(text: str, *, where: str, quote: Callable[[str], str] = str) -> str:
    """A text with `~` and variables expanded now.

    Args:
        text: Of a setting.
        where: Names the file and the setting.
        quote: For the values of the variables, where their place asks for it.

    Raises:
        ConfigError: For a variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[0].strip("${}")
        if name not in os.environ:
            raise ConfigError(
                f"{where}: the variable {name} is not set", got=repr(text), remedy=f"export {name}"
            )
        return quote(os.environ[name])

    return _VARIABLE.sub(value, _HOME.sub("$HOME", text))


def all_expanded(values: Any, *, where: str) -> Any:
    """The values of a YAML with every text in them expanded.

    Raises:
        ConfigError: For a variable that is not set.
    """
    if isinstance(values, str):
        return expanded(values, where=where)
    if isinstance(values, dict):
        return {key: all_expanded(value, where=f"{where}: {key}") for key, value in values.items()}
    if isinstance(values, list):
        return [all_expanded(value, where=where) for value in values]
    return values
