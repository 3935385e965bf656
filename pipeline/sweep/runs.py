"""The runs that a sweep's settings mean: names, groups, full settings and their digest."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import as_plain, build, nearest, override, read_yaml
from interkd.pipeline.sweep.config import GridAxis, SweepConfig
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.inputs import require_inputs
from interkd.pipeline.training.run_folder import has_effect

SEED = "seed"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of a sweep.

    Attributes:
        name: Unique in the sweep: the entry's name and the values of the grid.
        group: The name without the seed: runs of one group differ in the seed alone.
        entry: Name of the run in the sweep's list.
        grid_part: What the group's name adds to the entry's.
        config: All its settings.
        result: Where its result is written.
    """

    name: str
    group: str
    entry: str
    grid_part: str
    config: TrainConfig
    result: Path

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.config.out.with_name(f"{self.name}.txt")

    @property
    def job(self) -> Path:
        """What the process that trains it reads."""
        return self.config.out.with_name(f"{self.name}.job.json")

    @property
    def lock(self) -> Path:
        """Held by the process that trains it."""
        return self.config.out.with_name(f".{self.name}.lock")

    @property
    def digest(self) -> str:
        """Digest of the settings that matter."""
        return settings_digest(stored_settings(self.config))


def expand(sweep: SweepConfig) -> tuple[Run, ...]:
    """All runs of a sweep, the grid's last setting changing fastest.

    Raises:
        ConfigError: If the base or a run's settings are wrong, naming the run.
    """
    base = read_yaml(sweep.base)
    runs: dict[str, Run] = {}
    for entry in sweep.runs:
        for point in itertools.product(*(_choices(axis) for axis in sweep.grid)):
            name = "-".join([entry.name, *(label for _, label, _ in point)])
            labels = [label for setting, label, _ in point if setting != SEED]
            grid_part = "".join(f"-{label}" for label in labels)
            if name in runs:
                raise ConfigError(f"two runs of the sweep are named '{name}'")
            values = copy.deepcopy(base)
            assignments = [*entry.set, *(assignment for _, _, assignment in point)]
            runs[name] = Run(
                name=name,
                group=entry.name + grid_part,
                entry=entry.name,
                grid_part=grid_part,
                config=_build(name, values, assignments, sweep.out / name),
                result=sweep.results_folder / f"{name}.json",
            )
    return tuple(runs.values())


def require_run(run: Run, *, store_comes: bool = False) -> None:
    """Refuses a run that would fail as soon as it has started.

    Args:
        run: Which.
        store_comes: Whether somebody may yet make its teacher cache.

    Raises:
        ConfigError: Naming the run and what it lacks.
    """
    try:
        require_inputs(run.config, store_comes=store_comes)
    except ConfigError as error:
        raise error.within(f"run '{run.name}'") from error


def select(runs: Sequence[Run], patterns: Sequence[str]) -> tuple[Run, ...]:
    """The runs whose name or group fits one of the patterns (`*`, `?`); all without a pattern.

    Raises:
        ConfigError: If a pattern fits none.
    """
    for pattern in patterns:
        if not any(_fits(run, pattern) for run in runs):
            names = [run.name for run in runs]
            raise ConfigError(
                f"no run fits {pattern!r}",
                expected=", ".join(names),
                remedy=nearest(pattern, names),
            )
    return tuple(
        run for run in runs if not patterns or any(_fits(run, pattern) for pattern in patterns)
    )


def _fits(run: Run, pattern: str) -> bool:
    return fnmatchcase(run.name, pattern) or fnmatchcase(run.group, pattern)


def _choices(axis: GridAxis) -> Iterator[tuple[str, str, str]]:
    for text in axis.values:
        last = axis.setting.rpartition(".")[2]
        yield axis.setting, f"{last}{_label(yaml.safe_load(text))}", f"{axis.setting}={text}"


def _label(value: Any) -> str:
    if isinstance(value, list):
        return "_".join(_label(item) for item in value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", str(value)).strip("_")


def _build(name: str, values: dict[str, Any], assignments: list[str], out: Path) -> TrainConfig:
    try:
        return build(TrainConfig, {**override(values, assignments), "out": str(out)})
    except ConfigError as error:
        raise error.within(f"run '{name}'") from error


def stored_settings(config: TrainConfig) -> dict[str, Any]:
    """All settings but the folder, as a result keeps them."""
    return {key: value for key, value in as_plain(config).items() if key != "out"}


def ms_a_step(sweep: SweepConfig, run: Run) -> float | None:
    """A step's time of the run or of its recipe; None where the sweep has no such times.

    Raises:
        ConfigError: If it has those of others only.
    """
    times = {time.name: time.ms for time in sweep.ms_a_step}
    recipe = run.config.objective.recipe
    if times and run.entry not in times and recipe not in times:
        raise ConfigError(
            f"ms_a_step has no time of recipe '{recipe}', which run '{run.name}' has",
            remedy="measure it with benchmarks/bench_training.py, or leave ms_a_step out",
        )
    return times.get(run.entry, times.get(recipe))


def settings_digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of the settings that matter, hexadecimal."""
    text = json.dumps(dict(sorted(_flat(settings))), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings with those that later versions added, at their defaults.

    Settings that this version does not know leave them as they are.
    """
    try:
        return stored_settings(build(TrainConfig, {**settings, "out": "."}))
    except ConfigError:
        return dict(settings)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that matter and differ, as `name: then -> now`."""
    before, after = dict(_flat(then)), dict(_flat(now))
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in [*after, *(key for key in before if key not in after)]
        if before.get(key, "absent") != after.get(key, "absent")
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if not has_effect(path):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        else:
            yield path, value
