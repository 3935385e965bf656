"""Strict settings: unknown keys, wrong types, overrides, and a round trip through YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import as_plain, build, override, read_yaml
from interkd.pipeline.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 3
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    path: Path
    rate: float = 0.5
    limit: int | None = None
    fast: bool = False
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


def test_nested_values_are_converted() -> None:
    built = build(
        Outer, {"path": "a/b", "rate": 1, "inner": {"names": ["x"]}, "maybe": {"width": 5}}
    )
    assert built == Outer(
        path=Path("a/b"), rate=1.0, inner=Inner(names=("x",)), maybe=Inner(width=5)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "a", "rat": 1}, r"unknown setting 'rat'; did you mean 'rate'\?"),
        (
            {"path": "a", "inner": {"widht": 1}},
            r"unknown setting 'inner.widht'; did you mean 'width",
        ),
        ({}, "missing setting 'path'"),
        ({"path": "a", "limit": "x"}, "setting 'limit'; expected int, got 'x'"),
        ({"path": "a", "limit": True}, "setting 'limit'; expected int"),
        ({"path": "a", "fast": 1}, "setting 'fast'; expected bool"),
        ({"path": "a", "inner": 3}, "setting 'inner'; expected Inner"),
        ({"path": "a", "inner": {"names": [1]}}, r"setting 'inner.names\[0\]'; expected str"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Outer, values)


def test_overrides_reach_into_sections() -> None:
    values = override({"inner": {"width": 1}}, ["inner.width=7", "rate=1e-3", "maybe.width=2"])
    assert values == {"inner": {"width": 7}, "rate": 1e-3, "maybe": {"width": 2}}
    assert override({}, ["a=null", "b=[4, 8]", "c=true", "d=text"]) == {
        "a": None,
        "b": [4, 8],
        "c": True,
        "d": "text",
    }
    for wrong in ("rate", "=1"):
        with pytest.raises(ConfigError, match=r"KEY\.SUBKEY=VALUE"):
            override({}, [wrong])
    with pytest.raises(ConfigError, match="a section at 'rate'"):
        override({"rate": 1}, ["rate.x=1"])


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 2e-3\nb: {c: 1E4, d: e5}\n")
    assert read_yaml(tmp_path / "c.yaml") == {"a": 2e-3, "b": {"c": 1e4, "d": "e5"}}


def test_unreadable_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="a YAML mapping"):
        read_yaml(tmp_path / "c.yaml")


def test_train_settings_survive_yaml() -> None:
    values = {"data": {"train_manifest": "a", "dev_manifest": "b"}, "out": "c"}
    config = build(TrainConfig, values)
    assert build(TrainConfig, yaml.safe_load(yaml.safe_dump(as_plain(config)))) == config
