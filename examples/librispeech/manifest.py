"""LibriSpeech folders to the JSON lines that `interkd prepare` takes.

    python examples/librispeech/manifest.py LibriSpeech/train-clean-100 --out train-clean-100.jsonl

A split holds SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, a line `ID TRANSCRIPT` an utterance, and
ID.flac beside it. Several splits go into one file. Only the audio's headers are read here, since
`prepare` decodes it; rows are written as they are read, and the file gets its name with the last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import soundfile

from interkd.kernels.errors import CorpusError, InterkdError
from interkd.pipeline.files import temporary_name


def read_split(split: Path) -> Iterator[dict[str, Any]]:
    """The utterances of a split: by speaker and chapter, in the transcripts' order.

    Args:
        split: Such as `LibriSpeech/train-clean-100`.

    Yields:
        A row of a NeMo-style manifest; `audio_filepath` is absolute, `duration` in seconds.

    Raises:
        CorpusError: If there are no transcripts, or transcripts and audio do not fit.
    """
    transcripts = sorted(split.resolve().glob("*/*/*.trans.txt"))
    if not transcripts:
        raise CorpusError(
            f"no transcripts in {split}",
            expected="SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt",
            got="a folder without any" if split.is_dir() else "no such folder",
            remedy="name a split, such as LibriSpeech/train-clean-100",
        )
    for path in transcripts:
        yield from _read_chapter(path)


def _read_chapter(path: Path) -> Iterator[dict[str, Any]]:
    speaker, chapter = path.parent.parent.name, path.parent.name
    unheard = {file.stem for file in path.parent.glob("*.flac")}
    seen: set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}", got=str(error)) from error
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        utt_id, _, text = line.strip().partition(" ")
        if not text.strip():
            raise CorpusError(where, expected="an id and its transcript", got=repr(line))
        if not utt_id.startswith(f"{speaker}-{chapter}-"):
            raise CorpusError(where, expected=f"an id {speaker}-{chapter}-NUMBER", got=utt_id)
        if utt_id in seen:
            raise CorpusError(f"{where}: {utt_id} stands there twice")
        if utt_id not in unheard:
            raise CorpusError(
                f"{where}: no audio", expected=path.with_name(f"{utt_id}.flac"), got="no such file"
            )
        seen.add(utt_id)
        yield {
            "utt_id": utt_id,
            "audio_filepath": str(path.with_name(f"{utt_id}.flac")),
            "duration": _seconds(path.with_name(f"{utt_id}.flac")),
            "text": text.strip(),
            "speaker": speaker,
        }
    if left := sorted(unheard - seen):
        raise CorpusError(f"{path} has no transcript of {left[0]}", got=f"{len(left)} without one")


def _seconds(path: Path) -> float:
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise CorpusError(f"cannot read {path}", got=str(error)) from error
    return float(header.frames / header.samplerate)


def write_manifest(splits: Sequence[Path], out: Path) -> tuple[int, float]:
    """Writes the utterances of some splits as JSON lines, whole or not at all.

    Args:
        splits: Folders of LibriSpeech.
        out: The file; its folder is made.

    Returns:
        How many utterances, and their length in hours.

    Raises:
        CorpusError: If a split cannot be read, or the file cannot be written.
    """
    count, seconds = 0, 0.0
    temporary = temporary_name(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for split in splits:
                for row in read_split(split):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count, seconds = count + 1, seconds + row["duration"]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        raise CorpusError(f"cannot write {out}", got=error.strerror) from error
    finally:
        with suppress(OSError):  # there is none, or no folder that could hold it
            temporary.unlink()
    return count, seconds / 3600


def main() -> None:
    """The command line; a mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(description="LibriSpeech folders to JSON lines.")
    parser.add_argument("splits", nargs="+", type=Path, metavar="SPLIT")
    parser.add_argument("--out", required=True, type=Path, help="The JSON lines to write.")
    arguments = parser.parse_args()
    try:
        count, hours = write_manifest(arguments.splits, arguments.out)
    except InterkdError as error:
        sys.exit(_complain(error))
    print(f"{arguments.out}: {count:,} utterances, {hours:.2f} h")


def _complain(error: InterkdError) -> int:
    print(f"manifest.py: error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
