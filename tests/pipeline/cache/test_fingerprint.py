from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interkd.kernels.errors import ConfigError, FingerprintError
from interkd.pipeline.cache.fingerprint import Fingerprint, check_same, require_student_fits
from interkd.pipeline.frames import FrameFormula

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import StoreMaker

OTHER: dict[str, Any] = {
    "weights_sha256": "cd" * 32,
    "blank_index": 3,
    "sample_rate": 8_000,
    "frame_formula": FrameFormula(((400, 160, 200), (3, 2, 1))),
    "top_k": 9,
    "mass": 0.9,
    "quantiser": "angle6",
    "precision": "bfloat16",
    "format_version": 1,
}


def test_json_round_trip(maker: StoreMaker) -> None:
    fingerprint = maker.fingerprint(frame_formula=OTHER["frame_formula"])
    values = json.loads(json.dumps(fingerprint.to_dict()))
    assert values["frame_formula"] == "400,160,200/3,2,1"
    assert Fingerprint.from_dict(values) == fingerprint


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Fingerprint)])
def test_strict_reading_names_the_field(maker: StoreMaker, name: str) -> None:
    values = maker.fingerprint().to_dict()
    with pytest.raises(FingerprintError, match=f"'{name}'"):
        Fingerprint.from_dict({k: v for k, v in values.items() if k != name})
    with pytest.raises(FingerprintError, match=f"'{name}'"):
        Fingerprint.from_dict({**values, name: True})
    with pytest.raises(FingerprintError, match="unknown fingerprint field 'teachers'"):
        Fingerprint.from_dict({**values, "teachers": "x"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights_sha256", "AB" * 32),
        ("tokens", ("<blk>",)),
        ("blank_index", 29),
        ("sample_rate", 0),
        ("top_k", 256),
        ("mass", 0.0),
        ("quantiser", "log4"),
        ("precision", "float64"),
    ],
)
def test_values_out_of_range(maker: StoreMaker, name: str, value: object) -> None:
    changes: dict[str, Any] = {name: value}
    with pytest.raises(FingerprintError, match=f"'{name}'; expected"):
        maker.fingerprint(**changes)


@pytest.mark.parametrize("name", sorted(OTHER))
def test_a_difference_is_named_with_both_values(maker: StoreMaker, name: str) -> None:
    changes = {name: OTHER[name]}
    if name == "format_version":
        changes["quantiser"] = "log8"  # each version has its own; the version is named first
    expected, got = maker.fingerprint(), maker.fingerprint(**changes)
    with pytest.raises(FingerprintError, match=f"{name} differs") as raised:
        check_same(expected, got)
    assert raised.value.expected == getattr(expected, name)
    assert raised.value.got == OTHER[name]
    assert expected.digest != got.digest


def test_the_teachers_name_is_not_compared(maker: StoreMaker) -> None:
    one, other = maker.fingerprint(), maker.fingerprint(teacher="the same, elsewhere")
    check_same(one, other)
    assert one.digest == other.digest


def test_tokens_differ_at_the_first_index(maker: StoreMaker) -> None:
    one = maker.fingerprint(tokens=("<blk>", "a", "b"))
    with pytest.raises(FingerprintError, match="tokens differ at index 2") as raised:
        check_same(one, maker.fingerprint(tokens=("<blk>", "a", "c", "d")))
    assert raised.value.expected == "'b' of 3 tokens"
    assert raised.value.got == "'c' of 4 tokens"
    with pytest.raises(FingerprintError, match="tokens differ at index 3") as raised:
        check_same(one, maker.fingerprint(tokens=("<blk>", "a", "b", "c")))
    assert raised.value.expected == "no token of 3 tokens"


def test_a_student_that_fits_and_ones_that_do_not(maker: StoreMaker) -> None:
    fingerprint = maker.fingerprint(tokens=("<blk>", "a", "b"))
    student: dict[str, Any] = {
        "tokens": ("<blk>", "a", "b"),
        "blank_index": 0,
        "sample_rate": 16_000,
        "frame_shift_samples": 320,
    }
    require_student_fits(fingerprint, **student)
    for name, value, words in (
        ("tokens", ("<blk>", "b", "a"), "tokens differ at index 1; expected 'a' of 3"),
        ("blank_index", 2, "blank_index differs; expected 0, got 2"),
        ("sample_rate", 8_000, "sample rate differs; expected 16000, got 8000; resample"),
        ("frame_shift_samples", 640, "frame shift in samples differs; expected 320, got 640"),
    ):
        with pytest.raises(FingerprintError, match=words):
            require_student_fits(fingerprint, **{**student, name: value})


@given(
    steps=st.lists(
        st.tuples(st.integers(1, 999), st.integers(1, 999), st.integers(0, 999)), min_size=1
    )
)
def test_frame_formula_parses_what_it_writes(steps: list[tuple[int, int, int]]) -> None:
    formula = FrameFormula(tuple(steps))
    assert FrameFormula.parse(str(formula)) == formula


@pytest.mark.parametrize("text", ["", "1,320", "1,320,0/", "1,320,-1", "0,1,0", "1,0,0", "a,b,c"])
def test_frame_formula_refuses_other_text(text: str) -> None:
    with pytest.raises(ConfigError, match="frame formula"):
        FrameFormula.parse(text)
