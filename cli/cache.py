"""`interkd cache`: look into a teacher cache, check it, transcribe from it, make it anew."""

from __future__ import annotations

import json
from pathlib import Path

import click

from interkd.cli.cache_operations import (
    STORE,
    compact_command,
    diff_command,
    parts_bar,
    print_rows,
    stats_command,
    write_output,
)
from interkd.cli.cluster_options import cluster_options, cluster_settings
from interkd.kernels.errors import CorruptStoreError, StoreError
from interkd.pipeline.cache.inspect import StoreInfo, info
from interkd.pipeline.cache.sample_check import (
    DIVERGENCE_TOLERANCE,
    LARGEST_CHANGED_SHARE,
    SampleReport,
    sample_check,
)
from interkd.pipeline.cache.transcripts import transcribe_store
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.scoring.trn import format_trn


@click.group("cache")
def cache_command() -> None:
    """Look into a teacher cache, check it, compare it, make it smaller."""


for command in (stats_command, compact_command, diff_command):
    cache_command.add_command(command)


@cache_command.command("info")
@STORE
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def info_command(store: Path, as_json: bool) -> None:
    """Print the size of STORE, what it keeps and what it was made with."""
    with parts_bar("counting") as progress:
        found = info(store, progress=progress)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    print_rows(_rows(found))


def _rows(found: StoreInfo) -> list[tuple[str, str]]:
    fingerprint = found.fingerprint
    shift_ms = 1000 * fingerprint.frame_formula.shift_samples / fingerprint.sample_rate
    rows = [
        ("store", str(found.path)),
        ("teacher", f"{fingerprint.teacher} (weights {fingerprint.weights_sha256[:12]})"),
        ("precision", fingerprint.precision),
        ("tokens", f"{fingerprint.vocab_size}, blank {fingerprint.blank_index}"),
        ("frame shift", f"{shift_ms:g} ms at {fingerprint.sample_rate} Hz"),
        ("kept", f"mass {fingerprint.mass:g}, at most {fingerprint.top_k} tokens a frame"),
        ("quantiser", fingerprint.quantiser),
        ("format version", str(fingerprint.format_version)),
        ("audio", f"{found.hours:.3f} h, {found.utterances:,} utterances, {found.parts} parts"),
        ("frames", f"{found.frames:,}"),
        ("entries a frame", f"{found.entries_per_frame:.3f}"),
        ("blank share", f"{100 * found.blank_share:.2f} %"),
        ("mean mass kept", f"{found.mean_mass:.6f}"),
        ("size", f"{found.total_bytes:,} bytes"),
        ("inodes", f"{found.inodes:,} (files {found.files:,}, folders {found.folders:,})"),
        ("files for 1,000 h", f"{found.files_in_1000_hours:,} with parts as long as these"),
        ("bytes a frame", f"{found.bytes_per_frame:.3f}"),
    ]
    rows += [(f"  {name}", f"{size:,}") for name, size in found.column_bytes.items()]
    rows += [(f"summary {name}", str(value)) for name, value in found.summary.items()]
    return rows


@cache_command.command("verify")
@STORE
@click.option(
    "--sample",
    type=click.IntRange(1),
    metavar="N",
    help="Besides, run the teacher again over N utterances and compare; needs the two below.",
)
@click.option(
    "--teacher",
    metavar="SPEC",
    help="interkd:CHECKPOINT | torchscript:FILE | torchaudio:BUNDLE_NAME | python:MODULE:FACTORY",
)
@click.option(
    "--manifest", type=click.Path(path_type=Path), help="Where the utterances' audio lies."
)
@click.option(
    "--teacher-weights", type=click.Path(path_type=Path), help="State dict of a torchaudio bundle."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda[:N].")
@click.option("--seed", default=0, show_default=True, help="Decides which utterances.")
@click.option(
    "--tolerance",
    default=DIVERGENCE_TOLERANCE,
    show_default=True,
    help="Largest mean divergence of the sample, nats a frame.",
)
@cluster_options
def verify_command(
    store: Path,
    sample: int | None,
    teacher: str | None,
    manifest: Path | None,
    teacher_weights: Path | None,
    device: str,
    seed: int,
    tolerance: float,
    cluster: str,
    workers: int,
    profile: Path | None,
) -> None:
    """Check every digest of STORE and every rule of its format.

    With --sample the teacher itself is asked again: N utterances are heard one by one, and their
    posteriors held against the stored ones, beside what quantisation alone makes of them. It fails
    if they are further apart than --tolerance, or the most probable token is another in more than
    0.5 % of the frames. The teacher must be the very one of the store, weights included.
    """
    if sample is not None and (teacher is None or manifest is None):
        raise click.UsageError("--sample needs --teacher and --manifest")
    if sample is None and (teacher is not None or manifest is not None):
        raise click.UsageError("--teacher and --manifest are for --sample")
    with parts_bar("verifying") as progress:
        where = cluster_settings(cluster, workers, profile)
        report = verify(store, progress=progress, cluster=where, message=progress.message)
    for problem in report.problems:
        click.echo(str(problem))
    if report.problems:
        raise CorruptStoreError(
            f"{store} has {len(report.problems)} problems",
            remedy="delete the parts named above and run cache-teacher again",
        )
    click.echo(
        f"{store}: {report.parts} parts, {report.utterances:,} utterances, {report.frames:,} "
        f"frames, {report.entries:,} entries besides the blanks: every digest matches"
    )
    if sample is None or teacher is None or manifest is None:
        return
    with parts_bar("hearing again") as progress:
        found = sample_check(
            store,
            manifest,
            teacher,
            count=sample,
            seed=seed,
            device=device,
            teacher_weights=teacher_weights,
            tolerance=tolerance,
            progress=progress,
        )
    print_rows(_sample_rows(found))
    if not found.passes:
        raise StoreError(
            f"{store} is not what the teacher says now",
            expected=f"a mean divergence of at most {tolerance:g} nats a frame and another best "
            f"token in at most {100 * LARGEST_CHANGED_SHARE:g} % of the frames",
            got=f"{found.found.mean_divergence:.3g} and {100 * found.found.changed_best:.3g} %",
            remedy="cache the teacher again; audio, libraries or padding may have changed since",
        )


def _sample_rows(found: SampleReport) -> list[tuple[str, str]]:
    rows = [("heard again", f"{len(found.utt_ids)} utterances, {found.frames:,} frames")]
    expected = found.expected
    for name, attribute, scale, unit in (
        ("KL, mean", "mean_divergence", 1, " nats a frame"),
        ("KL, largest", "largest_divergence", 1, " nats"),
        ("difference, mean", "mean_difference", 1, ""),
        ("difference, largest", "largest_difference", 1, ""),
        ("best token changed", "changed_best", 100, " % of frames"),
    ):
        text = f"{scale * getattr(found.found, attribute):.3g}{unit}"
        if expected is not None:
            text += f"; quantisation alone {scale * getattr(expected, attribute):.3g}"
        rows.append((name, text))
    if found.largest_at is not None:
        rows.append(("  in utterance", found.largest_at))
    if found.equal_codes is not None:
        rows.append(("equal codes", f"{100 * found.equal_codes:.2f} % of frames"))
    return rows


@cache_command.command("decode")
@STORE
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    required=True,
    help="Utterances to transcribe, with their reference texts.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the transcripts (trn) here.")
def decode_command(store: Path, manifest: Path, out: Path | None) -> None:
    """Transcribe from STORE alone and print the word error rate beside the teacher's own."""
    transcripts = transcribe_store(store, manifest)
    if out is not None:
        write_output(out, format_trn(transcripts.utt_ids, transcripts.texts))
    errors = transcripts.word_errors
    click.echo(
        f"WER from the store     {errors.rate:.2f} % ({errors.errors} of {errors.reference_length} "
        f"words, {len(transcripts.utt_ids)} utterances)"
    )
    own = transcripts.teacher_wer
    click.echo(f"teacher's own WER      {'not kept' if own is None else f'{own:.2f} %'}")
