"""`interkd export`: a checkpoint to ship."""

from __future__ import annotations

from pathlib import Path

import click

from interkd.pipeline.export import DTYPES, export


@click.command("export")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder.")
@click.option("--dtype", default="float16", show_default=True, type=click.Choice(sorted(DTYPES)))
@click.option(
    "--head",
    default="final",
    show_default=True,
    help="Where the student ends, e.g. layer24: a smaller one, with what came before this head.",
)
def export_command(checkpoint: Path, out: Path, dtype: str, head: str) -> None:
    """Write a checkpoint's weights, shape and tokens without the training's state."""
    size = export(checkpoint, out, dtype=dtype, head=head)
    click.echo(f"{out}: {size:,} bytes, weights in {dtype}")
