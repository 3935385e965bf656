"""Figures as files: PNG, and SVG that stands inside HTML."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.figure import Figure


def to_png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": "interkd"})
    return buffer.getvalue()


def to_svg(figure: Figure, *, label: str) -> str:
    """The figure's `<svg>` element without XML prologue, metadata and namespaces.

    HTML knows the SVG namespace by itself; the fixed salt makes equal figures equal texts.

    Args:
        figure: The figure.
        label: What it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": "interkd"}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for namespace in ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"):
        text = text.replace(f'xmlns="{namespace}"', "").replace(f'xmlns:xlink="{namespace}"', "")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
