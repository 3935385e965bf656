"""`interkd cache stats`, `compact` and `diff`, and what the subcommands of `cache` share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress as Bar

from interkd.cli.cluster_options import cluster_options, cluster_settings
from interkd.kernels.errors import ConfigError
from interkd.pipeline.cache.codec import QUANTISERS
from interkd.pipeline.cache.compact import CompactReport, compact
from interkd.pipeline.cache.compact_plan import VERSION_1_QUANTISER
from interkd.pipeline.cache.diff import FrameDifferences, StoreDiff, diff
from interkd.pipeline.cache.stats import stats
from interkd.pipeline.cache.stats_report import overview, render_html, tables
from interkd.pipeline.files import write_text

STORE = click.argument("store", type=click.Path(path_type=Path))
_IDS_SHOWN = 5


class PartsBar:
    """A bar for parts; called with those done and those in all."""

    def __init__(self, bar: Bar, task: str) -> None:
        self.bar = bar
        self.task = bar.add_task(task, total=None)

    def __call__(self, done: int, parts: int) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=done, total=parts)

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        self.bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def parts_bar(task: str) -> Iterator[PartsBar]:
    """A progress bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield PartsBar(bar, task)


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns."""
    for name, value in rows:
        click.echo(f"{name:<21} {value}")


def write_output(path: Path, content: str | bytes) -> None:
    """Writes a file that the user asked for.

    Raises:
        ConfigError: If it cannot be written.
    """
    try:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write_text(path, content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}", got=error.strerror) from error


@click.command("stats")
@STORE
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all counts here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write the figure (PNG) here.")
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path), help="Write one page with all here."
)
@cluster_options
def stats_command(
    store: Path,
    json_file: Path | None,
    plot: Path | None,
    html_file: Path | None,
    cluster: str,
    workers: int,
    profile: Path | None,
) -> None:
    """Print what the posteriors in STORE look like.

    Entropy, blanks, runs of blanks, tokens kept of a frame, the probability that they lack, the
    most frequent spikes, bits of each column. Entropy is that of the stored distribution: the
    tokens kept, and all else as one more class. A spike is a run of frames with the same most
    probable token: what greedy decoding writes.
    """
    with parts_bar("counting") as progress:
        where = cluster_settings(cluster, workers, profile)
        found = stats(store, progress=progress, cluster=where, message=progress.message)
    print_rows(overview(found))
    for title, rows in tables(found).items():
        click.echo(f"\n{title}")
        print_rows((f"  {name}", value) for name, value in rows)
    if json_file is not None:
        text = json.dumps(found.to_dict(), indent=2, ensure_ascii=False)
        write_output(json_file, f"{text}\n")
    if plot is None and html_file is None:
        return
    from interkd.pipeline.cache.stats_plot import plot_stats  # matplotlib is slow
    from interkd.pipeline.figures import to_png, to_svg

    figure = plot_stats(found)
    if plot is not None:
        write_output(plot, to_png(figure))
    if html_file is not None:
        write_output(html_file, render_html(found, to_svg(figure, label="Statistics of the store")))


@click.command("compact")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--part-minutes", default=60.0, show_default=True, help="Audio in a part of the new store."
)
@click.option(
    "--quantiser",
    type=click.Choice(list(QUANTISERS)),
    help=f"Of the new store; the old one's by default, {VERSION_1_QUANTISER} for format version 1.",
)
@click.option("--mass", type=float, help="Probability to keep; the old one's by default.")
@click.option(
    "--drop", type=click.Path(path_type=Path), help="File with ids to leave out, one a line."
)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="File with the ids to take, one a line."
)
@cluster_options
def compact_command(
    source: Path,
    out: Path,
    part_minutes: float,
    quantiser: str | None,
    mass: float | None,
    drop: Path | None,
    keep: Path | None,
    cluster: str,
    workers: int,
    profile: Path | None,
) -> None:
    """Write a store anew: SOURCE, which stays as it is, to the folder OUT.

    Small parts are merged and large ones split (--part-minutes), utterances left out (--drop,
    --keep), probabilities kept with fewer bits (--quantiser) or fewer tokens (--mass), and a store
    of format version 1 becomes one of today's. With quantiser and mass unchanged the codes are
    copied bit for bit. More bits or a larger mass than SOURCE has are refused: what was not kept
    cannot come back. The teacher's error rates hold for its utterances together, so they are kept
    only where none is left out.

    Killed or interrupted, it is simply started again: parts that stand are skipped.
    """
    if drop is not None and keep is not None:
        raise click.UsageError("--drop and --keep cannot be given together")
    with parts_bar("compacting") as progress:
        report = compact(
            source,
            out,
            part_minutes=part_minutes,
            quantiser=quantiser,
            mass=mass,
            drop=_read_ids(drop) if drop is not None else (),
            keep=_read_ids(keep) if keep is not None else None,
            progress=progress,
            cluster=cluster_settings(cluster, workers, profile),
            message=progress.message,
        )
    print_rows(_compact_rows(report))


def _read_ids(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}", got=error.strerror) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8", got=str(error)) from error
    return [line for line in lines if line]


def _compact_rows(report: CompactReport) -> list[tuple[str, str]]:
    ratio = report.source_bytes / max(1, report.out_bytes)
    rows = [
        ("store", str(report.out)),
        ("utterances", f"{report.utterances:,} ({report.dropped:,} left out)"),
        (
            "parts",
            f"{report.parts:,} from {report.source_parts:,}, {report.parts_written:,} written now",
        ),
        ("codes", "copied bit for bit" if report.copied else "made anew"),
        ("bytes", f"{report.out_bytes:,} from {report.source_bytes:,} (by {ratio:.2f})"),
        ("seconds", f"{report.seconds:.1f}"),
    ]
    if report.lost_facts:
        rows.append(("no longer known", ", ".join(report.lost_facts)))
    return rows


@click.command("diff")
@click.argument("left", metavar="A", type=click.Path(path_type=Path))
@click.argument("right", metavar="B", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def diff_command(left: Path, right: Path, as_json: bool) -> None:
    """Print in what the stores A and B differ, of whatever format versions.

    Settings, utterances that only one holds, audio, and of the common utterances every frame: the
    same codes, tokens and most probable token, the Kullback-Leibler divergence both ways over the
    tokens that both keep and all else as one bucket, and the largest difference of a probability.
    How the stores are cut into parts does not count, nor does the teacher's name.

    The exit code is 0 if they are equal, 1 if they differ, 2 after an error.
    """
    with parts_bar("comparing") as progress:
        found = diff(left, right, progress=progress)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_rows(_diff_rows(found))
    if not found.is_equal:
        sys.exit(1)


def _diff_rows(found: StoreDiff) -> Iterator[tuple[str, str]]:
    yield ("A", str(found.left))
    yield ("B", str(found.right))
    for field in found.fields:
        yield (field.field, f"{field.left} | {field.right}")
    for name, ids in (
        ("only in A", found.only_left),
        ("only in B", found.only_right),
        ("other audio", found.other_audio),
        ("other frame counts", found.other_lengths),
    ):
        if ids:
            more = ", ..." if len(ids) > _IDS_SHOWN else ""
            yield (name, f"{len(ids):,} utterances: {', '.join(ids[:_IDS_SHOWN])}{more}")
    if found.frames is None:
        yield ("frames", "not compared: the vocabularies differ")
    else:
        yield from _frame_rows(found.frames)
    yield ("equal", "yes" if found.is_equal else "no")


def _frame_rows(frames: FrameDifferences) -> Iterator[tuple[str, str]]:
    yield ("frames compared", f"{frames.frames:,} of {frames.utterances:,} utterances")
    for name, count in (
        ("  equal", frames.identical),
        ("  same tokens", frames.same_tokens),
        ("  same best token", frames.same_best),
    ):
        yield (name, f"{count:,} ({100 * count / max(1, frames.frames):.3f} %)")
    yield ("KL(A || B), common tokens", f"{frames.mean_divergence:.3g} nats a frame")
    yield ("  largest", f"{frames.largest_divergence:.3g} nats")
    yield ("KL(B || A), common tokens", f"{frames.mean_reverse:.3g} nats a frame")
    where = f" in {frames.largest_at}" if frames.largest_at is not None else ""
    yield ("largest difference", f"{frames.largest_difference:.3g}{where}")
