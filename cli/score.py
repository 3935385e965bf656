"""`interkd score`: error rates of a checkpoint, or whether two of them differ."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from interkd.cli.reporter import TerminalReporter
from interkd.pipeline.scoring.compare import Comparison, compare
from interkd.pipeline.scoring.report import Interval, ScoreReport, format_weights
from interkd.pipeline.scoring.score import ScoreConfig, score


@click.command("score")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Checkpoint or training run.")
@click.option("--manifest", type=click.Path(path_type=Path), help="What to recognise.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the model runs.",
)
@click.option(
    "--batch-seconds",
    type=float,
    default=120.0,
    show_default=True,
    help="Most audio in a batch, padding included.",
)
@click.option(
    "--bootstrap-samples",
    type=int,
    default=10_000,
    show_default=True,
    help="Resamples behind intervals and p-values.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the resampling.")
@click.option(
    "--resample",
    type=click.Choice(["utterance", "speaker"]),
    default="utterance",
    show_default=True,
    help="What the bootstrap draws.",
)
@click.option(
    "--compare",
    "pair",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="A B",
    help="Compare two score folders (or report.json files) instead.",
)
@click.option("--head", help="With --compare: the head to compare.  [default: the last]")
def score_command(
    checkpoint: Path | None,
    manifest: Path | None,
    out: Path | None,
    device: str,
    batch_seconds: float,
    bootstrap_samples: int,
    seed: int,
    resample: str,
    pair: tuple[Path, Path] | None,
    head: str | None,
) -> None:
    """Recognise a manifest with every head of a checkpoint and report error rates.

    \b
      interkd score --checkpoint runs/a --manifest dev.jsonl --out scores/a
      interkd score --compare scores/a scores/b
    """  # noqa: D301 (click reads the \\b)
    if pair is not None:
        if checkpoint or manifest or out:
            raise click.UsageError("--compare stands alone: no --checkpoint, --manifest or --out")
        result = compare(*pair, head=head, samples=bootstrap_samples, seed=seed, resample=resample)
        _print_comparison(result)
        return
    if checkpoint is None or manifest is None or out is None:
        raise click.UsageError("give --checkpoint, --manifest and --out, or --compare A B")
    if head is not None:
        raise click.UsageError("--head belongs to --compare; a report holds every head")
    config = ScoreConfig(
        checkpoint=checkpoint,
        manifest=manifest,
        out=out,
        device=device,
        batch_seconds=batch_seconds,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        resample=resample,
    )
    report = score(config, reporter=TerminalReporter())
    _print_report(report, out)


def _print_report(report: ScoreReport, out: Path) -> None:
    results = report.results
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("head")
    for title in ("WER %", "95 % interval", "S", "I", "D", "CER %", "95 % interval", "weights"):
        table.add_column(title, justify="right", no_wrap=True)
    for head, words, characters in zip(
        results.heads, report.word_intervals, report.character_intervals, strict=True
    ):
        counts = head.word_total
        table.add_row(
            head.name,
            f"{counts.rate:.2f}",
            _range(words),
            f"{counts.substitutions}",
            f"{counts.insertions}",
            f"{counts.deletions}",
            f"{head.character_total.rate:.2f}",
            _range(characters),
            format_weights(head.weight_count),
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if report.trained_with:
        click.echo(f"trained with {report.trained_with}")
    factor = results.real_time_factor
    click.echo(
        f"real-time factor {factor:.3g} on {report.device}: "
        f"{1 / factor:,.0f} s of audio a second, "
        f"{len(results.utterances)} utterances, {results.audio_seconds / 60:.1f} min"
    )
    click.echo(f"report: {out / 'report.html'}")


def _print_comparison(result: Comparison) -> None:
    paired = result.paired
    click.echo(f"A  {result.wer_a:6.2f} % WER  {result.name_a}")
    click.echo(f"B  {result.wer_b:6.2f} % WER  {result.name_b}")
    click.echo(
        f"A - B  {paired.difference:+.2f} points, 95 % interval {paired.low:+.2f} to "
        f"{paired.high:+.2f}, p = {paired.p_value:.2g}, {result.utterances} utterances"
    )
    if result.is_significant:
        better = "A" if paired.difference < 0 else "B"
        click.echo(f"significant: {better} is better (p < 0.05)")
    else:
        click.echo("not significant: chance alone may explain the difference (p >= 0.05)")


def _range(interval: Interval) -> str:
    return f"{interval.low:.2f}-{interval.high:.2f}"
