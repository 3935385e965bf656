"""`interkd export`: a checkpoint to ship."""

from __future__ import annotations

from pathlib import Path

import click

from interkd.pipeline.export import DTYPES, export


@click.command("export")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder.")
@click.option("--dtype", default="float16", show_default=True, type=click.Choice(sorted(DTYPES)))
def export_command(checkpoint: Path, out: Path, dtype: str) -> None:
    """Write a checkpoint's weights, shape and tokens without the training's state."""
    size = export(checkpoint, out, dtype=dtype)
    click.echo(f"{out}: {size:,} bytes, weights in {dtype}")
