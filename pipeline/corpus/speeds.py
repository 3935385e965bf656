"""Speed perturbation: a recording heard faster or slower, pitch and all, as rows of its own.

At speed s an utterance is heard as if it had been recorded at `source_rate * s`: it is resampled
from there, once. Teacher and student read the copies as they read any row, so both hear the same.

Source: Ko et al. 2015, Audio augmentation for speech recognition (speeds 0.9, 1 and 1.1); the
copies' ids are those of Lhotse's `Cut.perturb_speed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import gcd

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.config import in_range
from interkd.pipeline.corpus.audio import resampled_length
from interkd.pipeline.corpus.manifest import FASTEST, SLOWEST, Utterance, is_whole_rate
from interkd.pipeline.corpus.sources import SourceRow

_LARGEST_FILTER = 1 << 25  # taps of torchaudio's, 128 MiB; 44.1 kHz at 1.1 has 4,851 x 1,600


def check_speeds(settings: object, speeds: Sequence[float]) -> None:
    """Refuses speeds that no corpus can be prepared at.

    Args:
        settings: The dataclass whose field `speeds` they are.
        speeds: The field.

    Raises:
        ConfigError: If there is none, one stands twice or is not between 0.5 and 2.
    """
    if not speeds:
        raise ConfigError("speeds", expected="at least one", got="none")
    in_range("", settings, "speeds", at_least=SLOWEST, at_most=FASTEST)
    if len(set(speeds)) != len(speeds):
        twice = next(s for i, s in enumerate(speeds) if s in speeds[:i])
        raise ConfigError("speeds", expected="each once", got=f"{twice:g} twice")


def in_order(speeds: Iterable[float]) -> tuple[float, ...]:
    """Speeds as a manifest has them: speed 1 first, if it is among them, then the slowest."""
    return tuple(float(speed) for speed in sorted(speeds, key=lambda speed: (speed != 1, speed)))


def refuse_taken_ids(rows: Sequence[SourceRow], speeds: Iterable[float]) -> None:
    """Refuses a corpus in which the id that a copy would get is taken.

    Raises:
        CorpusError: Naming both rows.
    """
    others = [speed for speed in in_order(speeds) if speed != 1]
    taken = {row.utt_id: row.where for row in rows}
    for row in rows:
        for speed in others:
            if (utt_id := _copy_id(row.utt_id, speed)) in taken:
                raise CorpusError(
                    f"{row.where}: at speed {speed:g} utterance '{row.utt_id}' would be '{utt_id}'",
                    got=f"that id at {taken[utt_id]}",
                    remedy="is the corpus speed-perturbed already? prepare the original",
                )


def at_speed(utterance: Utterance, speed: float, *, source_samples: int) -> Utterance:
    """An utterance's copy at a speed, the utterance itself at speed 1.

    Args:
        utterance: At speed 1.
        speed: Between 0.5 and 2.
        source_samples: Samples of its audio at `source_rate`.

    Raises:
        CorpusError: If the speed makes no whole number of Hz of the file's rate, or one from which
            resampling needs a filter of more than 128 MiB.
    """
    if speed == 1:
        return utterance
    rate, name = utterance.source_rate, f"utterance '{utterance.utt_id}' at speed {speed:g}"
    if not is_whole_rate(rate, speed):
        raise CorpusError(
            f"{name}: rate at which it is heard",
            expected="a whole number of Hz",
            got=f"{rate * speed:.10g} of {rate} Hz",
            remedy="take another speed",
        )
    copy = replace(utterance, utt_id=_copy_id(utterance.utt_id, speed), speed=speed)
    common = gcd(copy.heard_rate, copy.sample_rate)
    if copy.heard_rate * copy.sample_rate // common**2 > _LARGEST_FILTER:
        raise CorpusError(
            f"{name}: resampling from {copy.heard_rate} to {copy.sample_rate} Hz",
            expected=f"rates with a common divisor larger than {common} Hz",
            remedy="take a rounder speed",
        )
    return replace(
        copy, samples=resampled_length(source_samples, copy.heard_rate, copy.sample_rate)
    )


def _copy_id(utt_id: str, speed: float) -> str:
    return f"{utt_id}_sp{speed}"
