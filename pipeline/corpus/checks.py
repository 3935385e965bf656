"""What makes a row of a corpus usable: its audio, its duration, its transcript."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise

from interkd.kernels.errors import CorpusError, TokenError
from interkd.pipeline.corpus.audio import count_samples, decode, hash_samples, resampled_length
from interkd.pipeline.corpus.manifest import Utterance
from interkd.pipeline.corpus.sources import BadRow, SourceRow
from interkd.pipeline.corpus.speeds import at_speed
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.frames import FrameFormula

TOO_SHORT = "too short for CTC"
CASES: dict[str, Callable[[str], str]] = {"none": str, "upper": str.upper, "lower": str.lower}


def check_audio(
    row: SourceRow,
    *,
    sample_rate: int,
    speeds: Sequence[float],
    case: str,
    untranscribed: bool,
    tolerance_seconds: float,
    tolerance_ratio: float,
) -> tuple[Utterance, ...] | BadRow:
    """Decodes and hashes a row's audio, once, and holds it against the row.

    Args:
        row: A row of the sources.
        sample_rate: Rate of the manifest, in Hz.
        speeds: Speeds at which the manifest is to have the row.
        case: A key of `CASES`, what becomes of the transcript's letters.
        untranscribed: Whether the transcript may be empty.
        tolerance_seconds: Difference from the claimed duration that passes ...
        tolerance_ratio: ... or this share of it, whichever is more.

    Returns:
        The rows of the manifest, one a speed, or what is wrong: the audio, its duration, an empty
        transcript.

    Raises:
        CorpusError: For a speed that does not go with the file's rate (`at_speed`).
    """
    text = " ".join(CASES[case](row.text).split())
    if not text and not untranscribed:
        return _bad(row, "empty text", "the transcript is empty")
    tolerance = max(tolerance_seconds, tolerance_ratio * row.duration_seconds)
    try:
        segment = decode(
            row.audio_path,
            utt_id=row.utt_id,
            offset_seconds=row.offset_seconds,
            source_samples=_segment_samples(row),
            channel=row.channel,
        )
    except CorpusError as error:
        return _bad(row, "audio", str(error))
    seconds = len(segment.samples) / segment.rate
    if abs(seconds - row.duration_seconds) > tolerance:
        return _bad(
            row,
            "duration",
            f"utterance '{row.utt_id}': {row.audio_path} has {seconds:.3f} s, "
            f"the row claims {row.duration_seconds:.3f} s",
        )
    original = Utterance(
        utt_id=row.utt_id,
        audio_path=row.audio_path,
        samples=resampled_length(len(segment.samples), segment.rate, sample_rate),
        sample_rate=sample_rate,
        text=text,
        speaker=row.speaker,
        audio_hash=hash_samples(segment.samples, segment.rate),
        source_rate=segment.rate,
        offset_seconds=row.offset_seconds,
        source_samples=None if segment.is_whole else len(segment.samples),
        channel=row.channel,
    )
    return tuple(at_speed(original, speed, source_samples=len(segment.samples)) for speed in speeds)


def count_tokens(
    row: SourceRow, utterance: Utterance, tokenizer: Tokenizer, *, frame_shift_ms: float
) -> int | BadRow:
    """Tokens of the transcript, or why CTC cannot learn it.

    CTC needs a frame for each token and one for a blank between two equal ones.

    Args:
        row: Where the utterance comes from.
        utterance: With its transcript in the form that the manifest gets.
        tokenizer: To encode it with.
        frame_shift_ms: The student's frame shift; a last frame that is not full counts.

    Source: Graves et al. 2006, section 3.1.
    """
    name = f"utterance '{utterance.utt_id}'"
    try:
        tokens = tokenizer.encode(utterance.text)
    except TokenError as error:
        fitting = _cases_that_fit(utterance, tokenizer)
        hint = "".join(f"; '--case {case}' mends that" for case in fitting)
        return _bad(row, "text outside the tokens", f"{name}: {error}{hint}")
    shift = max(1, round(frame_shift_ms * utterance.sample_rate / 1000))
    frames = FrameFormula(((1, shift, 0),)).count(utterance.samples)
    repeats = sum(a == b for a, b in pairwise(tokens))
    if len(tokens) + repeats > frames:
        return _bad(
            row,
            TOO_SHORT,
            f"{name}: {frames} frames of {frame_shift_ms:g} ms for {len(tokens)} tokens "
            f"and {repeats} blanks between repeats",
        )
    return len(tokens)


def _segment_samples(row: SourceRow) -> int | None:
    if not row.is_segment:
        return None
    return count_samples(
        row.audio_path,
        utt_id=row.utt_id,
        offset_seconds=row.offset_seconds,
        duration_seconds=row.duration_seconds,
    )


def _bad(row: SourceRow, kind: str, reason: str) -> BadRow:
    return BadRow(where=row.where, utt_id=row.utt_id, kind=kind, reason=reason)


def _cases_that_fit(utterance: Utterance, tokenizer: Tokenizer) -> Iterator[str]:
    for case, changed in CASES.items():
        with suppress(TokenError):
            tokenizer.encode(changed(utterance.text))
            yield case
