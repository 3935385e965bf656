"""`interkd cache`: look into a teacher cache, check it, transcribe from it."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from interkd.kernels.errors import ConfigError, CorruptStoreError
from interkd.pipeline.cache.inspect import StoreInfo, info
from interkd.pipeline.cache.transcripts import transcribe_store
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.files import write_text
from interkd.pipeline.scoring.trn import format_trn

_STORE = click.argument("store", type=click.Path(path_type=Path))


@click.group("cache")
def cache_command() -> None:
    """Look into a teacher cache: info, verify, decode."""


@cache_command.command("info")
@_STORE
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def info_command(store: Path, as_json: bool) -> None:
    """Print the size of STORE, what it keeps and what it was made with."""
    found = info(store)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    for name, value in _rows(found):
        click.echo(f"{name:<22}{value}")


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
        ("size", f"{found.total_bytes:,} bytes in {found.files} files"),
        ("bytes a frame", f"{found.bytes_per_frame:.3f}"),
    ]
    rows += [(f"  {name}", f"{size:,}") for name, size in found.column_bytes.items()]
    rows += [(f"summary {name}", str(value)) for name, value in found.summary.items()]
    return rows


@cache_command.command("verify")
@_STORE
def verify_command(store: Path) -> None:
    """Check every digest of STORE and every rule of its format."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("verifying", total=None)
        report = verify(
            store, progress=lambda done, parts: bar.update(task, completed=done, total=parts)
        )
    for problem in report.problems:
        click.echo(str(problem))
    if report.problems:
        raise CorruptStoreError(
            f"{store} has {len(report.problems)} problems",
            remedy="delete the parts named above and run cache-teacher again",
        )
    click.echo(
        f"{store}: {report.parts} parts, {report.utterances:,} utterances, {report.frames:,} "
        f"frames, {report.entries:,} entries: every digest matches"
    )


@cache_command.command("decode")
@_STORE
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
        try:
            write_text(out, format_trn(transcripts.utt_ids, transcripts.texts))
        except OSError as error:
            raise ConfigError(f"cannot write {out}", got=error.strerror) from error
    errors = transcripts.word_errors
    click.echo(
        f"WER from the store     {errors.rate:.2f} % ({errors.errors} of {errors.reference_length} "
        f"words, {len(transcripts.utt_ids)} utterances)"
    )
    own = transcripts.teacher_wer
    click.echo(f"teacher's own WER      {'not kept' if own is None else f'{own:.2f} %'}")
