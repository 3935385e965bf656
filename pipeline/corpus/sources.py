"""Corpora as users have them: NeMo-style JSON lines and Lhotse cut manifests, gzipped or not.

NeMo-style rows hold `audio_filepath` (relative to the manifest's folder), `duration` in seconds and
`text`; optionally `utt_id`, `speaker` and `offset`, which makes the row a stretch of its file. Cuts
are `MonoCut`s of a recording in a file. Other keys are ignored. Bad rows are collected, not raised,
so that a user sees them all at once.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from interkd.kernels.errors import CorpusError


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """What a corpus claims of one utterance, before anything is checked.

    Attributes:
        utt_id: Its id.
        where: `FILE:LINE`.
        audio_path: The audio file, which may not exist.
        offset_seconds: Where the utterance begins in the file.
        duration_seconds: Its claimed length.
        is_segment: Whether to read just that stretch; otherwise the whole file.
        text: Transcript as it stands.
        speaker: Who speaks, where known.
        channel: The channel to hear; None for a file with one channel.
    """

    utt_id: str
    where: str
    audio_path: Path
    offset_seconds: float
    duration_seconds: float
    is_segment: bool
    text: str
    speaker: str | None
    channel: int | None


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        where: `FILE:LINE`.
        utt_id: Its id, where one could be read.
        kind: One word or two, to count by.
        reason: One line for the user.
    """

    where: str
    utt_id: str | None
    kind: str
    reason: str


def read_sources(
    path: Path, *, untranscribed: bool = False
) -> tuple[list[SourceRow], list[BadRow]]:
    """Reads a corpus manifest; its form is told from the first row.

    Args:
        path: JSON lines.
        untranscribed: Whether rows may have no text.

    Returns:
        The rows in order, and those that are not JSON, lack a field or repeat an id.

    Raises:
        CorpusError: If the file cannot be read or has no rows.
    """
    rows: list[SourceRow] = []
    bad: list[BadRow] = []
    seen: dict[str, str] = {}
    parse: Callable[[dict[str, Any], Path, str], SourceRow] | None = None
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        utt_id = None
        try:
            values = _parse_json(line)
            if untranscribed:
                values["text"] = values.get("text") or ""
            parse = parse or (_from_cut if _is_cut(values) else _from_nemo)
            row = parse(values, path.parent, where)
            utt_id = row.utt_id
            if utt_id in seen:
                raise _RowError("duplicate id", f"utt_id is also at {seen[utt_id]}")
        except _RowError as error:
            bad.append(BadRow(where=where, utt_id=utt_id, kind=error.kind, reason=error.reason))
        else:
            seen[row.utt_id] = where
            rows.append(row)
    if not rows and not bad:
        raise CorpusError(f"{path} holds no utterances")
    return rows, bad


class _RowError(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        opener = gzip.open if is_gzip else open
        with opener(path, "rt", encoding="utf-8") as text:
            yield from text
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}", got=str(error)) from error


def _parse_json(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise _RowError("bad JSON", f"not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(values, dict):
        raise _RowError("bad JSON", f"expected a JSON object, got {type(values).__name__}")
    return values


def _is_cut(values: dict[str, Any]) -> bool:
    return "audio_filepath" not in values and ("recording" in values or "tracks" in values)


def _from_nemo(values: dict[str, Any], folder: Path, where: str) -> SourceRow:
    name = _field(values, "audio_filepath", str)
    offset = _seconds(values, "offset") if values.get("offset") is not None else None
    fallback = str(Path(name).with_suffix("")) + (f"@{offset:g}" if offset else "")
    utt_id = values.get("utt_id")
    speaker = values.get("speaker")
    return SourceRow(
        utt_id=fallback if utt_id is None else str(utt_id),
        where=where,
        audio_path=folder / name,
        offset_seconds=offset or 0.0,
        duration_seconds=_seconds(values, "duration"),
        is_segment=offset is not None,
        text=_field(values, "text", str),
        speaker=None if speaker is None else str(speaker),
        channel=None,
    )


def _from_cut(values: dict[str, Any], folder: Path, where: str) -> SourceRow:
    kind = values.get("type", "MonoCut")
    if kind != "MonoCut":
        raise _RowError(
            "other cut", f"expected a MonoCut, got a {kind}: save the audio of mixed cuts"
        )
    recording = _field(values, "recording", dict)
    sources = recording.get("sources") or []
    if recording.get("transforms"):
        raise _RowError("other cut", "the recording has transforms: save its audio first")
    if len(sources) != 1 or not _is_file(sources[0]):
        raise _RowError("other cut", "expected a recording in one file")
    supervisions = values.get("supervisions") or []
    if len(supervisions) > 1:
        raise _RowError(
            "other cut", f"{len(supervisions)} supervisions: apply trim_to_supervisions first"
        )
    supervision: dict[str, Any] = supervisions[0] if supervisions else {}
    path = folder / sources[0]["source"]
    if not path.exists():  # Lhotse itself reads from the working folder
        path = Path(sources[0]["source"])
    offset, duration = _seconds(values, "start"), _seconds(values, "duration")
    channels = sources[0].get("channels") or [0]
    channel = _field(values, "channel", int)
    if channel not in channels:
        raise _RowError("other cut", f"channel {channel} is not in the recording ({channels})")
    speaker = supervision.get("speaker")
    return SourceRow(
        utt_id=_field(values, "id", str),
        where=where,
        audio_path=path,
        offset_seconds=offset,
        duration_seconds=duration,
        is_segment=offset > 0 or abs(duration - _seconds(recording, "duration")) > 1e-3,
        text=str(supervision.get("text") or ""),
        speaker=None if speaker is None else str(speaker),
        channel=channels.index(channel) if len(channels) > 1 else None,
    )


def _is_file(source: object) -> bool:
    return (
        isinstance(source, dict)
        and source.get("type") == "file"
        and isinstance(source.get("source"), str)
    )


def _field(values: dict[str, Any], name: str, kind: type) -> Any:
    if name not in values:
        raise _RowError("missing field", f"missing '{name}'")
    if not isinstance(values[name], kind):
        raise _RowError("missing field", f"'{name}' is not a {kind.__name__}: {values[name]!r}")
    return values[name]


def _seconds(values: dict[str, Any], name: str) -> float:
    value: Any = values.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < inf:
        raise _RowError("missing field", f"'{name}' is not a number of seconds: {value!r}")
    return float(value)
