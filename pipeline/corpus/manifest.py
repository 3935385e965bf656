"""The manifest of a prepared corpus: one checked utterance a line, as JSON.

`interkd prepare` writes it and every later stage reads it, so reading is strict: a row has exactly
the fields of `Utterance`, with the right types, or the file is refused with its line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import xxhash

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.config import nearest
from interkd.pipeline.files import write_text

SLOWEST, FASTEST = 0.5, 2.0  # speeds at which speech is still speech


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One transcribed stretch of one channel of one audio file.

    Attributes:
        utt_id: Unique within the manifest.
        audio_path: Absolute path of the audio file.
        samples: Samples at `sample_rate`, after resampling, at the utterance's speed.
        sample_rate: The manifest's rate, in Hz, at which models hear the utterance.
        text: Transcript, words separated by single spaces.
        speaker: Who speaks, where known.
        audio_hash: xxh3-128 of the decoded samples and their rate, hexadecimal (`hash_samples`).
        source_rate: Rate of the audio file, in Hz.
        offset_seconds: Where the utterance begins in the file.
        source_samples: Samples at `source_rate`; None reads to the end of the file.
        channel: The channel to hear, from 0; None for a file with one channel.
        speed: How fast the file is played, pitch and all; 1 as it was recorded.
    """

    utt_id: str
    audio_path: Path
    samples: int
    sample_rate: int
    text: str
    speaker: str | None = None
    audio_hash: str
    source_rate: int
    offset_seconds: float = 0.0
    source_samples: int | None = None
    channel: int | None = None
    speed: float = 1.0

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.samples / self.sample_rate

    @property
    def heard_rate(self) -> int:
        """Rate at which the file's samples are heard, in Hz: `source_rate * speed`."""
        return round(self.source_rate * self.speed)

    @property
    def audio_identity(self) -> str:
        """What a model hears, as 32 hexadecimal digits.

        The `audio_hash`; at another speed than 1 the xxh3-128 of it and of the `heard_rate`.
        """
        if self.speed == 1:
            return self.audio_hash
        return xxhash.xxh3_128_hexdigest(f"{self.audio_hash} at {self.heard_rate} Hz".encode())


def is_whole_rate(source_rate: int, speed: float) -> bool:
    """Whether `source_rate * speed` is a whole number of Hz, the speed read as its decimals."""
    return (source_rate * Fraction(str(speed))).denominator == 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The utterances of one split, all at one sample rate.

    Attributes:
        utterances: In the order of the file.
        sample_rate: In Hz.
        path: The file.
    """

    utterances: tuple[Utterance, ...]
    sample_rate: int
    path: Path

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def total_seconds(self) -> float:
        """Length of all utterances together, in seconds."""
        return sum(u.samples for u in self.utterances) / self.sample_rate

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the utterance ids and audio identities in order, hexadecimal."""
        state = hashlib.sha256()
        for utterance in self.utterances:
            state.update(json.dumps([utterance.utt_id, utterance.audio_identity]).encode())
        return state.hexdigest()


_TYPES: dict[str, tuple[type, ...]] = {
    "utt_id": (str,),
    "audio_path": (str,),
    "samples": (int,),
    "sample_rate": (int,),
    "text": (str,),
    "speaker": (str, type(None)),
    "audio_hash": (str,),
    "source_rate": (int,),
    "offset_seconds": (int, float),
    "source_samples": (int, type(None)),
    "channel": (int, type(None)),
    "speed": (int, float),
}
_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Utterance)
    if field.default is not dataclasses.MISSING
}
_POSITIVE = ("samples", "sample_rate", "source_rate", "source_samples")


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest that `interkd prepare` wrote.

    Raises:
        CorpusError: If the file cannot be read or is empty, or with file and line for bad JSON, an
            unknown, missing or mistyped field, an id that occurs twice, or a second sample rate.
    """
    utterances: list[Utterance] = []
    lines: dict[str, int] = {}
    folder = path.parent.resolve()
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                utterance = _parse_row(line, folder=folder, where=f"{path}:{number}")
                first = lines.setdefault(utterance.utt_id, number)
                if first != number:
                    raise CorpusError(
                        f"{path}:{number}: utt_id '{utterance.utt_id}' is also on line {first}"
                    )
                utterances.append(utterance)
                if utterance.sample_rate != utterances[0].sample_rate:
                    raise CorpusError(
                        f"{path}:{number}: sample_rate",
                        expected=utterances[0].sample_rate,
                        got=utterance.sample_rate,
                    )
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"cannot read the manifest {path}",
            got=str(error),
            remedy="'interkd prepare' writes manifests",
        ) from error
    if not utterances:
        raise CorpusError(f"{path} holds no utterances")
    return Manifest(utterances=tuple(utterances), sample_rate=utterances[0].sample_rate, path=path)


def _parse_row(line: str, *, folder: Path, where: str) -> Utterance:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{where}: not JSON", got=f"{error.msg} at column {error.colno}"
        ) from error
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: row", expected="a JSON object", got=type(row).__name__)
    unknown = sorted(row.keys() - _TYPES.keys())
    missing = sorted(_TYPES.keys() - _DEFAULTS.keys() - row.keys())
    if unknown:
        near = None if missing else nearest(unknown[0], _TYPES)
        raise CorpusError(
            f"{where}: unknown field '{unknown[0]}'",
            remedy=near or "'interkd prepare' makes manifests of other forms",
        )
    if missing:
        raise CorpusError(f"{where}: missing field '{missing[0]}'")
    for name, value in row.items():
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
            kinds = " | ".join("null" if t is type(None) else t.__name__ for t in _TYPES[name])
            raise CorpusError(f"{where}: field '{name}'", expected=kinds, got=repr(value))
        if name in _POSITIVE and isinstance(value, int) and value < 1:
            raise CorpusError(f"{where}: field '{name}'", expected="above 0", got=value)
    row["audio_path"] = Path(os.path.normpath(folder / row["audio_path"]))
    row["offset_seconds"] = offset = float(row.get("offset_seconds", 0.0))
    if not 0 <= offset < float("inf"):
        raise CorpusError(f"{where}: field 'offset_seconds'", expected="at least 0", got=offset)
    row["speed"] = _parse_speed(row, where)
    return Utterance(**row)


def _parse_speed(row: dict[str, Any], where: str) -> float:
    speed, source_rate = row.get("speed", 1.0), row["source_rate"]
    if not SLOWEST <= speed <= FASTEST:  # NaN as well
        raise CorpusError(
            f"{where}: field 'speed'", expected=f"{SLOWEST:g} to {FASTEST:g}", got=speed
        )
    if speed != 1 and not is_whole_rate(source_rate, speed):
        raise CorpusError(
            f"{where}: field 'speed'",
            expected=f"one that makes whole Hz of {source_rate}",
            got=speed,
        )
    return float(speed)


def write_manifest(
    path: Path, utterances: Iterable[Utterance], *, folder: Path | None = None
) -> None:
    """Writes a manifest whole or not at all.

    An audio path that shares a folder below the root with the manifest is stored relative to it, so
    that a tree which moves as a whole stays valid; any other is stored absolute.

    Args:
        path: The file to write or replace; its folder exists.
        utterances: In the order to write.
        folder: Where the manifest will be moved to; its own folder by default.
    """
    folder = (folder or path.parent).resolve()
    resolve = lru_cache(maxsize=None)(Path.resolve)  # a corpus has few folders and many files
    rows = []
    for utterance in utterances:
        audio_path = resolve(utterance.audio_path.parent) / utterance.audio_path.name
        shared = os.path.commonpath([audio_path, folder])
        is_related = shared != audio_path.anchor
        row: dict[str, Any] = {
            "utt_id": utterance.utt_id,
            "audio_path": os.path.relpath(audio_path, folder) if is_related else str(audio_path),
        }
        for name in _TYPES:
            value = getattr(utterance, name)
            if name not in row and (name not in _DEFAULTS or value != _DEFAULTS[name]):
                row[name] = value
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(rows))


def require_manifest(path: Path, what: str) -> None:
    """Refuses a path where no file is.

    Raises:
        ConfigError: Naming it.
    """
    if not path.is_file():
        raise ConfigError(
            what,
            expected="a manifest",
            got=f"no file at {path}",
            remedy="interkd prepare writes one; paths begin in the working folder",
        )
