"""Check a corpus and write its manifest: the work of `interkd prepare`.

Every row is decoded, hashed and held against its claims, and its transcript against the tokens and
against what CTC can align. OUT gets `manifest.jsonl`, `tokens.txt` (with `tokenizer.model` for
SentencePiece) and `summary.json`; with `skip_bad`, `rejected.jsonl` lists what was left out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.cluster.tasks import IN_PROCESS, ClusterSettings, open_workers
from interkd.pipeline.config import one_of
from interkd.pipeline.corpus.checks import CASES, check_audio, count_tokens
from interkd.pipeline.corpus.manifest import Utterance, write_manifest
from interkd.pipeline.corpus.sources import BadRow, SourceRow, read_sources
from interkd.pipeline.corpus.speeds import check_speeds, in_order, refuse_taken_ids
from interkd.pipeline.corpus.summary import PrepareSummary, summarise
from interkd.pipeline.corpus.tokens import MODEL_FILE, TOKENS_FILE, Tokenizer
from interkd.pipeline.files import made_folder, temporary_name, write_json, write_text
from interkd.pipeline.progress import Reporter

MANIFEST_FILE = "manifest.jsonl"
SUMMARY_FILE = "summary.json"
REJECTED_FILE = "rejected.jsonl"

LONG_WORK = 10_000  # rows; fewer are checked in the seconds that processes need to start
_ROWS_A_TASK = 16
_TRAINABLE = ("characters", "bpe", "unigram")
_Checked = tuple[Utterance, ...] | BadRow  # a row's copies, one a speed, or what is wrong with it


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Settings of `prepare`.

    Attributes:
        sources: A NeMo-style or Lhotse manifest.
        out: Folder to write, created if need be.
        tokens: Tokenizer to take: a folder or a `tokens.txt`. Either this or `train`.
        train: Tokenizer to make of the transcripts: `characters`, `bpe` or `unigram`.
        vocab_size: V of a trained `bpe` or `unigram`, with the blank.
        sample_rate: Rate at which models hear the corpus, in Hz.
        frame_shift_ms: The student's frame shift, for the check that CTC can align.
        speeds: Speeds at which the manifest has each utterance; 1 need not be among them.
        untranscribed: Keep rows without a transcript, for recipes that need none.
        case: `none`, `upper` or `lower`: what becomes of the transcripts' letters.
        skip_bad: Whether bad rows are left out; otherwise any of them fails the whole.
        cluster: Where rows are decoded and checked.
        tolerance_seconds: Difference from the claimed duration that passes ...
        tolerance_ratio: ... or this share of it, whichever is more.
    """

    sources: Path
    out: Path
    tokens: Path | None = None
    train: str | None = None
    vocab_size: int | None = None
    sample_rate: int = 16000
    frame_shift_ms: float = 20.0
    speeds: tuple[float, ...] = (1.0,)
    untranscribed: bool = False
    case: str = "none"
    skip_bad: bool = False
    cluster: ClusterSettings = IN_PROCESS
    tolerance_seconds: float = 0.1
    tolerance_ratio: float = 0.02


class BadRowsError(CorpusError):
    """Rows of a corpus that cannot be used; `rows` lists every one."""

    def __init__(self, rows: Sequence[BadRow], total: int) -> None:
        self.rows = tuple(rows)
        super().__init__(
            f"{len(rows)} of {total} rows are bad, nothing was written",
            got=f"first {rows[0].where}: {rows[0].reason}",
            remedy="mend them, or leave them out with --skip-bad",
        )


def prepare(config: PrepareConfig, *, reporter: Reporter | None = None) -> PrepareSummary:
    """Checks a corpus and writes its manifest, tokens and summary, the manifest last.

    Args:
        config: What to read, check and write.
        reporter: Hears of each row.

    Returns:
        The summary that was written.

    Raises:
        ConfigError: For settings that do not go together, or a folder that cannot be written.
        BadRowsError: If there are bad rows and `skip_bad` is off.
        CorpusError: If the sources cannot be read, no row is usable, or the speeds do not go with
            the corpus: its ids or its files' rates.
        TokenError: If the tokenizer cannot be read or trained.
    """
    _check(config)
    with made_folder(config.out):  # before anything is decoded
        return _prepare(config, reporter or Reporter())


def _prepare(config: PrepareConfig, reporter: Reporter) -> PrepareSummary:
    tokenizer = None if config.tokens is None else Tokenizer.load(config.tokens)
    rows, bad = read_sources(config.sources, untranscribed=config.untranscribed)
    refuse_taken_ids(rows, config.speeds)
    total = len(rows) + len(bad)
    checked = _check_rows(rows, config, reporter)
    bad += [result for result in checked if isinstance(result, BadRow)]
    sound = [
        (row, result)
        for row, result in zip(rows, checked, strict=True)
        if not isinstance(result, BadRow)
    ]
    if tokenizer is None and sound:
        tokenizer = _train(config, [copies[0].text for _, copies in sound])
    utterances: list[Utterance] = []
    token_counts: list[int] = []
    too_short_at = {str(speed): 0 for speed in in_order(config.speeds) if speed != 1}
    for row, copies in sound:
        for copy in copies:
            result = count_tokens(
                row, copy, cast(Tokenizer, tokenizer), frame_shift_ms=config.frame_shift_ms
            )
            if isinstance(result, int):
                utterances.append(copy)
                token_counts.append(result)
            elif copy is copies[0]:  # at speed 1, else at the slowest: the row itself is bad
                bad.append(result)
                break
            else:
                too_short_at[str(copy.speed)] += 1

    bad.sort(key=lambda row: int(row.where.rpartition(":")[2]))
    if bad and not config.skip_bad:
        raise BadRowsError(bad, total=total)
    if not utterances or tokenizer is None:
        raise CorpusError(
            f"{config.sources} has no usable row", got=f"first {bad[0].where}: {bad[0].reason}"
        )
    summary = summarise(
        utterances,
        token_counts,
        tokenizer,
        bad,
        too_short_at,
        sample_rate=config.sample_rate,
        manifest=config.out / MANIFEST_FILE,
    )
    _write(config.out, utterances, tokenizer, summary, bad if config.skip_bad else [])
    return summary


def _check(config: PrepareConfig) -> None:
    one_of("case", config.case, CASES)
    if (config.tokens is None) == (config.train is None):
        raise ConfigError("tokenizer", expected="either tokens to take or a kind to train")
    if config.train is not None:
        one_of("tokenizer to train", config.train, _TRAINABLE)
    if (config.train in ("bpe", "unigram")) != (config.vocab_size is not None):
        raise ConfigError("vocab_size", expected="with train bpe or unigram, and only there")
    for name in ("sample_rate", "frame_shift_ms"):
        if (value := getattr(config, name)) <= 0:
            raise ConfigError(name, expected="above 0", got=value)
    check_speeds(config, config.speeds)


def _check_rows(
    rows: Sequence[SourceRow], config: PrepareConfig, reporter: Reporter
) -> list[_Checked]:
    check = partial(
        check_audio,
        sample_rate=config.sample_rate,
        speeds=in_order(config.speeds),
        case=config.case,
        untranscribed=config.untranscribed,
        tolerance_seconds=config.tolerance_seconds,
        tolerance_ratio=config.tolerance_ratio,
    )
    cluster = config.cluster.decided(is_long=len(rows) >= LONG_WORK)
    size = 1 if cluster.kind == "none" else _ROWS_A_TASK
    tasks = [rows[first : first + size] for first in range(0, len(rows), size)]
    results: dict[int, list[_Checked]] = {}
    reporter.begin("checking audio", len(rows))
    try:
        with open_workers(cluster, reporter.message, tasks=len(tasks)) as workers:
            for task, checked in workers.run(partial(_check_each, check), tasks):
                results[task] = checked
                reporter.advance(len(checked))
    finally:
        reporter.end()
    return [result for task in range(len(tasks)) for result in results[task]]


def _check_each(
    check: Callable[[SourceRow], _Checked], rows: Sequence[SourceRow]
) -> list[_Checked]:
    return [check(row) for row in rows]


def _train(config: PrepareConfig, texts: list[str]) -> Tokenizer:
    if config.train == "characters":
        return Tokenizer.from_characters(texts)
    return Tokenizer.train_sentencepiece(
        texts,
        vocab_size=cast(int, config.vocab_size),
        model_type=cast(Literal["bpe", "unigram"], config.train),
    )


def _write(
    out: Path,
    utterances: Sequence[Utterance],
    tokenizer: Tokenizer,
    summary: PrepareSummary,
    rejected: Sequence[BadRow],
) -> None:
    staged = temporary_name(out / "prepared")
    staged.mkdir()
    try:
        tokenizer.save(staged)
        if rejected:
            rows = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rejected)
            write_text(staged / REJECTED_FILE, "".join(rows))
        known = {name: value for name, value in asdict(summary).items() if value is not None}
        write_json(staged / SUMMARY_FILE, known)
        write_manifest(staged / MANIFEST_FILE, utterances, folder=out)
        # The old manifest goes first and the new one comes last: a stop in between leaves none,
        # rather than one that stands beside the tokens of another.
        for name in (MANIFEST_FILE, TOKENS_FILE, MODEL_FILE, SUMMARY_FILE, REJECTED_FILE):
            (out / name).unlink(missing_ok=True)
        for file in sorted(staged.iterdir(), key=lambda file: file.name == MANIFEST_FILE):
            file.replace(out / file.name)
    finally:
        shutil.rmtree(staged)
