"""Transcripts in sclite's trn form: `text (utterance-id)`, one utterance a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interkd.kernels.errors import CorpusError, ShapeError


def format_trn(utt_ids: Sequence[str], texts: Sequence[str]) -> str:
    """The lines of a trn file; white space within a text becomes single spaces.

    Args:
        utt_ids: Unique ids without white space.
        texts: One text an id; may be empty.

    Returns:
        The file's text, each line ended.

    Raises:
        ShapeError: If there are not as many texts as ids.
        CorpusError: For an id that is empty, repeated or has white space in it, which no reader
            of the form could tell from the text.
    """
    if len(utt_ids) != len(texts):
        raise ShapeError("trn texts", expected=f"{len(utt_ids)}, one an id", got=len(texts))
    seen: set[str] = set()
    lines = []
    for utt_id, text in zip(utt_ids, texts, strict=True):
        if not utt_id or utt_id.split() != [utt_id]:
            raise CorpusError(
                f"utterance id {utt_id!r}",
                expected="no white space in an id",
                remedy="rename it in the manifest",
            )
        if utt_id in seen:
            raise CorpusError(f"utterance id {utt_id!r} stands twice in the manifest")
        seen.add(utt_id)
        lines.append(f"{' '.join([*text.split(), f'({utt_id})'])}\n")
    return "".join(lines)


def read_trn(path: Path) -> dict[str, str]:
    """Texts by utterance id, in the file's order.

    Raises:
        CorpusError: If the file cannot be read or a line has no id or repeats one.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}", got=str(error)) from error
    texts: dict[str, str] = {}
    for number, line in enumerate(content.split("\n"), start=1):
        *words, last = line.split() or [""]
        if not last:
            continue
        if not (last.startswith("(") and last.endswith(")") and len(last) > 2):
            raise CorpusError(f"{path}, line {number}", expected="text (utterance-id)", got=line)
        if last[1:-1] in texts:
            raise CorpusError(f"{path}, line {number}: id {last[1:-1]!r} repeats")
        texts[last[1:-1]] = " ".join(words)
    return texts
