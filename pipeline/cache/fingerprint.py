"""What a store was made with: enforced at open, so that no other teacher's targets are read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from interkd.kernels.errors import ConfigError, FingerprintError
from interkd.pipeline.cache.format import (
    FORMAT_VERSION,
    MAX_TOKENS_PER_FRAME,
    QUANTISER_NAMES,
)
from interkd.pipeline.cache.sealed import canonical_json
from interkd.pipeline.frames import FrameFormula

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that decides what the numbers in a store mean.

    Attributes:
        teacher: Name or spec of the teacher; informative, never compared.
        weights_sha256: SHA-256 of the teacher's weights, 64 lowercase hexadecimal digits.
        tokens: The V tokens in the order of their indexes, the blank among them.
        blank_index: Index of the blank.
        sample_rate: Of the audio that the teacher heard, in Hz.
        frame_formula: Teacher frames of so many samples.
        top_k: Most tokens kept of a frame, the blank among them.
        mass: Probability that the kept tokens reach together, where `top_k` allows it.
        quantiser: Name of the log-probabilities' quantiser.
        precision: Arithmetic that the teacher ran in.
        format_version: Version of the store's format.
    """

    teacher: str
    weights_sha256: str
    tokens: tuple[str, ...]
    blank_index: int
    sample_rate: int
    frame_formula: FrameFormula
    top_k: int
    mass: float
    quantiser: str
    precision: str
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        quantisers = QUANTISER_NAMES.get(self.format_version, ())
        fewest = 1 if self.format_version == 1 else 2
        limits = {
            "weights_sha256": (
                re.fullmatch(r"[0-9a-f]{64}", self.weights_sha256),
                "64 lowercase hexadecimal digits",
            ),
            "tokens": (len(self.tokens) >= 2, "at least two tokens"),
            "blank_index": (
                0 <= self.blank_index < len(self.tokens),
                f"an index below {len(self.tokens)}",
            ),
            "sample_rate": (self.sample_rate > 0, "a rate in Hz above 0"),
            "top_k": (
                fewest <= self.top_k <= MAX_TOKENS_PER_FRAME,
                f"{fewest} to {MAX_TOKENS_PER_FRAME}",
            ),
            "mass": (0.0 < self.mass <= 1.0, "above 0, at most 1"),
            "format_version": (
                self.format_version in QUANTISER_NAMES,
                " | ".join(map(str, QUANTISER_NAMES)),
            ),
            "quantiser": (self.quantiser in quantisers, " | ".join(quantisers)),
            "precision": (self.precision in PRECISIONS, " | ".join(PRECISIONS)),
        }
        for name, (holds, expected) in limits.items():
            if not holds:
                got = getattr(self, name)
                raise FingerprintError(f"fingerprint field '{name}'", expected=expected, got=got)

    @property
    def vocab_size(self) -> int:
        """V, with the blank."""
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over every field that is compared."""
        values = self.to_dict()
        del values["teacher"]
        return xxhash.xxh3_128_hexdigest(canonical_json(values))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, the frame formula in its written form."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["tokens"] = list(self.tokens)
        values["frame_formula"] = str(self.frame_formula)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fingerprint:
        """The fingerprint of `to_dict`'s form, nothing missing, nothing unknown.

        Raises:
            FingerprintError: Naming the first field that is missing, unknown, of another type or
                out of range.
        """
        kinds: dict[str, type] = {f.name: str for f in dataclasses.fields(cls)}
        integers = ("blank_index", "sample_rate", "top_k", "format_version")
        kinds |= dict.fromkeys(integers, int) | {"tokens": list, "mass": float}
        if unknown := sorted(set(values) - set(kinds)):
            raise FingerprintError(f"unknown fingerprint field '{unknown[0]}'")
        for name, kind in kinds.items():
            if name not in values:
                raise FingerprintError(f"fingerprint field '{name}' is missing")
            value = values[name]
            accepted = (int, float) if kind is float else kind
            if not isinstance(value, accepted) or isinstance(value, bool):
                raise FingerprintError(
                    f"fingerprint field '{name}'", expected=kind.__name__, got=repr(value)
                )
        for index, token in enumerate(values["tokens"]):
            if not isinstance(token, str):
                raise FingerprintError(f"fingerprint token {index}", expected="str", got=token)
        try:
            formula = FrameFormula.parse(values["frame_formula"])
        except ConfigError as error:
            raise FingerprintError(f"fingerprint field 'frame_formula': {error}") from error
        fields = {
            **values,
            "tokens": tuple(values["tokens"]),
            "mass": float(values["mass"]),
            "frame_formula": formula,
        }
        return cls(**fields)


def check_same(
    expected: Fingerprint,
    got: Fingerprint,
    *,
    what: str = "teacher cache",
    remedy: str | None = None,
) -> None:
    """Refuses a fingerprint that differs in anything but the teacher's name.

    Args:
        expected: The one that would have been right.
        got: The one found.
        what: What carries the fingerprint, for the message.
        remedy: What the user can do about a difference.

    Raises:
        FingerprintError: Naming the first field that differs, the version first, with both values;
            of tokens the first index that differs, both tokens and lengths.
    """
    ordered = sorted(dataclasses.fields(Fingerprint), key=lambda f: f.name != "format_version")
    for field in ordered:  # the version first: it decides what the others may be
        if field.name == "teacher":
            continue
        if field.name == "tokens":
            _check_tokens(expected.tokens, got.tokens, what=what, remedy=remedy)
            continue
        wanted, found = getattr(expected, field.name), getattr(got, field.name)
        if wanted != found:
            raise FingerprintError(
                f"{what}: {field.name} differs", expected=wanted, got=found, remedy=remedy
            )


def _check_tokens(
    expected: Sequence[str], got: Sequence[str], *, what: str, remedy: str | None
) -> None:
    if tuple(expected) == tuple(got):
        return
    pairs = enumerate(zip(expected, got, strict=False))
    shorter = min(len(expected), len(got))
    index = next((i for i, (wanted, found) in pairs if wanted != found), shorter)

    def show(tokens: Sequence[str]) -> str:
        token = repr(tokens[index]) if index < len(tokens) else "no token"
        return f"{token} of {len(tokens)} tokens"

    raise FingerprintError(
        f"{what}: tokens differ at index {index}",
        expected=show(expected),
        got=show(got),
        remedy=remedy,
    )


def require_student_fits(
    fingerprint: Fingerprint,
    *,
    tokens: Sequence[str],
    blank_index: int,
    sample_rate: int,
    frame_shift_samples: int,
) -> None:
    """Refuses a student whose outputs or frames cannot be compared with the cached teacher's.

    Args:
        fingerprint: Of the store that the student learns from.
        tokens: The student's tokens, with the blank, in the order of their indexes.
        blank_index: Index of the student's blank.
        sample_rate: Of the student's audio, in Hz.
        frame_shift_samples: Samples from one student frame to the next.

    Raises:
        FingerprintError: For another tokenizer, blank, sample rate or frame shift, with both
            values and what to do.
    """
    tokenizer = "train the student with the teacher's tokenizer, or cache a teacher that shares it"
    _check_tokens(fingerprint.tokens, tokens, what="student and teacher cache", remedy=tokenizer)
    teacher_shift = fingerprint.frame_formula.shift_samples
    same_shift = (
        "the encoder's stride (student.conformer.stride, student.jasper.stride) times "
        f"student.features.hop_ms must be {1000 * teacher_shift / fingerprint.sample_rate:g} ms"
    )
    for name, wanted, found, remedy in (
        ("blank_index", fingerprint.blank_index, blank_index, tokenizer),
        ("sample rate", fingerprint.sample_rate, sample_rate, "resample the student's audio"),
        ("frame shift in samples", teacher_shift, frame_shift_samples, same_shift),
    ):
        if wanted != found:
            raise FingerprintError(
                f"student and teacher cache: {name} differs",
                expected=wanted,
                got=found,
                remedy=remedy,
            )
