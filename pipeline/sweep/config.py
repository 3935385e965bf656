"""Settings of a sweep: the base run, what varies, where results go."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import build, in_range, nearest, one_of, read_yaml
from interkd.pipeline.training.recipes import RECIPES

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_RESERVED = ("results", "table", "spikes", "teacher")  # the results' folder and files in it


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """One run before the grid multiplies it.

    Attributes:
        name: The run's name, and the folder's.
        set: What departs from the base, as `a.b=value` with the value in YAML.
    """

    name: str
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GridAxis:
    """A setting that takes several values in every run.

    Attributes:
        setting: Its dotted name.
        values: Each in YAML.
    """

    setting: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScoreSet:
    """A manifest that every finished run is scored on, and the name of its column."""

    split: str
    manifest: Path


@dataclass(frozen=True, kw_only=True)
class TeacherScore:
    """What the teacher made of a split.

    Attributes:
        split: Its name in `score`.
        path: Of `interkd score` the folder or its report.json; else the transcripts (trn) of
            `interkd cache decode --out`, which are scored against the split's manifest.
    """

    split: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """What a step takes where nothing runs beside it, in milliseconds.

    Attributes:
        name: Of the run, without the grid's part, or of its recipe, for runs without a time of
            their own.
    """

    name: str
    ms: float


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A grid or list of settings, each trained and scored once.

    Attributes:
        base: YAML of `train-student`; relative to the sweep's own file.
        out: Run folders `out/<name>` and their logs `out/<name>.txt`.
        score: Manifests to score the best checkpoint of each run on.
        results: One JSON a finished run, and the report; `out/results` when None.
        jobs: Runs at once.
        baselines: Names of runs, without the grid's part, that the report compares with.
        runs: What is trained; one run with the base's own settings when empty.
        grid: Multiplied with every run.
        teacher: The report's row of the teacher, by split; the main one is among them.
        ms_a_step: Makes GPU seconds of steps in the report; else the runs' own seconds count.
    """

    base: Path
    out: Path
    score: tuple[ScoreSet, ...]
    results: Path | None = None
    jobs: int = 1
    baselines: tuple[str, ...] = ()
    runs: tuple[RunEntry, ...] = ()
    grid: tuple[GridAxis, ...] = ()
    teacher: tuple[TeacherScore, ...] = ()
    ms_a_step: tuple[StepTime, ...] = ()

    def __post_init__(self) -> None:
        in_range("", self, "jobs", at_least=1)
        if not self.score:
            raise ConfigError("score", expected="at least one split and its manifest", got="none")
        for entry in self.runs:
            _check_name("runs", entry.name)
        for scored in self.score:
            _check_name("score", scored.split)
        names = [entry.name for entry in self.runs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two runs are named '{name}'", remedy="name each differently")
        for name in self.baselines:
            if name not in names:
                raise ConfigError(
                    "unknown baseline",
                    expected=" | ".join(names),
                    got=repr(name),
                    remedy=nearest(name, names),
                )
        splits = [scored.split for scored in self.score]
        for theirs in self.teacher:
            one_of("teacher split", theirs.split, splits)
        if self.teacher and self.main_split not in [theirs.split for theirs in self.teacher]:
            raise ConfigError(
                "teacher",
                expected=f"its score on '{self.main_split}', which the report is about",
                got=", ".join(theirs.split for theirs in self.teacher),
            )
        for time in self.ms_a_step:
            one_of("ms_a_step recipe or run", time.name, {*RECIPES, *names})
            in_range(f"ms_a_step.{time.name}: ", time, "ms", above=0)

    @property
    def main_split(self) -> str:
        """What the report is about: `test`, or the last split where none has that name."""
        splits = [scored.split for scored in self.score]
        return "test" if "test" in splits else splits[-1]

    @property
    def results_folder(self) -> Path:
        """Where results and report are."""
        return self.out / "results" if self.results is None else self.results


def read_sweep(path: Path) -> SweepConfig:
    """Reads a sweep's YAML.

    Raises:
        ConfigError: If the file cannot be read, or for a setting that is unknown, missing or wrong.
    """
    values = read_yaml(path)
    if "score" in values:
        values["score"] = [
            {"split": split, "manifest": manifest}
            for split, manifest in _mapping("score", values["score"]).items()
        ]
    if values.get("runs") is None:
        values["runs"] = [{"name": path.stem}]
    if not isinstance(values["runs"], list):
        raise ConfigError("setting 'runs'", expected="a list", got=repr(values["runs"]))
    values["runs"] = [_run(index, entry) for index, entry in enumerate(values["runs"])]
    values["grid"] = [
        {"setting": setting, "values": _axis(setting, choices)}
        for setting, choices in _mapping("grid", values.get("grid") or {}).items()
    ]
    for name, key, what in (("teacher", "split", "path"), ("ms_a_step", "name", "ms")):
        values[name] = [
            {key: one, what: value} for one, value in _mapping(name, values.get(name) or {}).items()
        ]
    if isinstance(values.get("base"), str):
        values["base"] = str(path.parent / values["base"])
    config = build(SweepConfig, values)
    if not config.runs:
        raise ConfigError("setting 'runs'", expected="at least one run", got="[]")
    return config


def _run(index: int, entry: Any) -> dict[str, Any]:
    where = f"runs[{index}]"
    entry = dict(_mapping(where, entry))
    assignments = []
    for setting, value in _flat(_mapping(f"{where}.set", entry.get("set") or {})):
        _check_setting(f"{where}.set", setting)
        assignments.append(f"{setting}={_as_yaml(value)}")
    return {**entry, "set": assignments}


def _axis(setting: str, choices: Any) -> list[str]:
    _check_setting("grid", setting)
    if not isinstance(choices, list) or not choices:
        raise ConfigError(f"setting 'grid.{setting}'", expected="a list", got=repr(choices))
    if any(isinstance(value, dict) for value in choices):
        raise ConfigError(
            f"setting 'grid.{setting}'",
            expected="a list of values",
            got=repr(choices),
            remedy="sections that vary are runs of their own",
        )
    return [_as_yaml(value) for value in choices]


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"setting '{where}'", expected="a mapping", got=repr(value))
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"setting '{where}'", expected="names as keys", got=repr(key))
    return value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Sections as dotted names: what a section does not name stays as the base has it."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(_mapping(prefix + key, value), f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_setting(where: str, setting: str) -> None:
    if setting == "out":
        raise ConfigError(f"{where}: 'out'", remedy="each run's folder follows from its name")
    if "=" in setting:
        raise ConfigError(f"{where}: a setting's name", expected="a.b", got=repr(setting))


def _check_name(where: str, name: str) -> None:
    if not _NAME.fullmatch(name) or (where == "runs" and name in _RESERVED):
        raise ConfigError(
            f"{where}: name",
            expected=f"letters, digits and . _ + -, and not {', '.join(_RESERVED)}",
            got=repr(name),
        )


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
