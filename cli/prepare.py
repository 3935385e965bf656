"""`interkd prepare`: checks a corpus and writes its manifest and tokens."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from interkd.cli.cluster_options import cluster_options, cluster_settings
from interkd.cli.reporter import TerminalReporter
from interkd.kernels.errors import ConfigError
from interkd.pipeline.corpus.prepare import (
    REJECTED_FILE,
    BadRowsError,
    PrepareConfig,
    prepare,
)
from interkd.pipeline.corpus.summary import PrepareSummary

_SHOWN = 10


@click.command("prepare")
@click.argument("sources", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--tokens", type=click.Path(path_type=Path), help="Tokens to take: a folder or a tokens.txt."
)
@click.option(
    "--train",
    type=click.Choice(["characters", "bpe", "unigram"]),
    help="Tokens to make of these transcripts instead.",
)
@click.option("--vocab-size", type=int, help="Tokens of --train bpe or unigram, with the blank.")
@click.option(
    "--sample-rate",
    type=int,
    default=16000,
    show_default=True,
    help="Rate in Hz at which models will hear the audio.",
)
@click.option(
    "--frame-shift-ms",
    type=float,
    default=20.0,
    show_default=True,
    help="The student's frame shift, to find utterances too short for their text.",
)
@click.option(
    "--speeds",
    default="1",
    show_default=True,
    help="Speeds at which the manifest has each utterance, pitch and all, such as 0.9,1,1.1.",
)
@click.option(
    "--case",
    type=click.Choice(["none", "upper", "lower"]),
    default="none",
    show_default=True,
    help="Change the transcripts' letters.",
)
@click.option(
    "--untranscribed", is_flag=True, help="Keep rows without text, for recipes that need none."
)
@click.option(
    "--skip-bad", is_flag=True, help=f"Leave bad rows out and list them in {REJECTED_FILE}."
)
@cluster_options
def prepare_command(
    sources: Path,
    out: Path,
    tokens: Path | None,
    train: str | None,
    vocab_size: int | None,
    sample_rate: int,
    frame_shift_ms: float,
    speeds: str,
    case: str,
    untranscribed: bool,
    skip_bad: bool,
    cluster: str,
    workers: int,
    profile: Path | None,
) -> None:
    """Check the corpus in SOURCES and write its manifest and tokens.

    SOURCES is a NeMo-style manifest (JSON lines with audio_filepath, duration and text) or a
    Lhotse cut manifest. Every file is decoded and held against its row.

    \b
      interkd prepare train.jsonl --out data/train --train bpe --vocab-size 256
      interkd prepare dev.jsonl --out data/dev --tokens data/train
      interkd prepare train.jsonl --out data/train --tokens teacher --speeds 0.9,1,1.1
    """  # noqa: D301 (click reads the \\b)
    if (tokens is None) == (train is None):
        raise click.UsageError("give either --tokens PATH or --train KIND")
    config = PrepareConfig(
        sources=sources,
        out=out,
        tokens=tokens,
        train=train,
        vocab_size=vocab_size,
        sample_rate=sample_rate,
        frame_shift_ms=frame_shift_ms,
        speeds=_numbers(speeds),
        case=case,
        untranscribed=untranscribed,
        skip_bad=skip_bad,
        cluster=cluster_settings(cluster, workers, profile),
    )
    try:
        summary = prepare(config, reporter=TerminalReporter())
    except BadRowsError as error:
        for row in error.rows[:_SHOWN]:
            click.echo(f"{row.where}: {row.reason}", err=True)
        if (more := len(error.rows) - _SHOWN) > 0:
            click.echo(f"... and {more} more", err=True)
        raise
    _print_summary(summary, out)


def _print_summary(summary: PrepareSummary, out: Path) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    low, high = summary.shortest_seconds, summary.longest_seconds
    mean, p95 = summary.tokens_per_second_mean, summary.tokens_per_second_p95
    characters = summary.characters.replace(" ", "␣")
    for name, value in (
        ("utterances", f"{summary.utterances:,}"),
        ("hours", f"{summary.hours:.2f}"),
        ("speakers", f"{summary.speakers:,}"),
        ("length", f"{low:.2f} to {high:.2f} s"),
        ("tokens a second", f"{mean:.1f} on average, 95th percentile {p95:.1f}"),
        ("characters", f"{characters} ({len(characters)})"),
        ("vocabulary", f"{summary.vocab_size:,} tokens with the blank"),
        ("too short for CTC", f"{summary.too_short_for_ctc:,}"),
        *_speed_rows(summary),
        ("rejected", _format_rejected(summary, out)),
    ):
        table.add_row(name, value)
    Console(highlight=False, markup=False).print(table)
    click.echo(f"manifest: {out / 'manifest.jsonl'}")


def _speed_rows(summary: PrepareSummary) -> list[tuple[str, str]]:
    if summary.too_short_at_speed is None:
        return []
    counts = ", ".join(
        f"{count:,} at {speed}" for speed, count in summary.too_short_at_speed.items()
    )
    return [("too short at speed", f"{counts} (copies left out)")]


def _format_rejected(summary: PrepareSummary, out: Path) -> str:
    if not summary.rejected:
        return "0"
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary.rejected.items())
    return f"{sum(summary.rejected.values()):,} ({kinds}), listed in {out / REJECTED_FILE}"


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(",") if text.strip())
    except ValueError:
        raise ConfigError(
            "--speeds", expected="numbers joined by commas, such as 0.9,1,1.1", got=repr(text)
        ) from None
