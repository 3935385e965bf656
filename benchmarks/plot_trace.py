"""Traces of training steps as one picture: when the host asks for work and when the GPU does it.

python benchmarks/bench_training.py --variants eager,compiled-graph --traces traces
python benchmarks/plot_trace.py traces/*.json.gz --out docs/step-trace.png
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from interkd.pipeline.figures import to_png

GPU = ("kernel", "gpu_memcpy", "gpu_memset")
HOST = ("cuda_runtime", "cuda_driver")
Bars = list[tuple[float, float]]


def read_bars(trace: Path) -> dict[str, Bars]:
    """Begin and length of what host and GPU did, in ms from the GPU's first work on."""
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    timed = [event for event in events if event.get("ph") == "X"]
    lanes = {
        "host asks": [e for e in timed if e.get("cat") in HOST and "Launch" in e["name"]],
        "GPU works": [e for e in timed if e.get("cat") in GPU],
    }
    start = min(event["ts"] for event in lanes["GPU works"])
    return {
        lane: sorted(((e["ts"] - start) / 1e3, e["dur"] / 1e3) for e in found)
        for lane, found in lanes.items()
    }


def busy_share(bars: Bars) -> float:
    """Share of the time from the first bar to the last one's end that some bar covers."""
    covered, reached = 0.0, bars[0][0]
    for begin, length in bars:
        covered += max(0.0, begin + length - max(begin, reached))
        reached = max(reached, begin + length)
    return covered / (reached - bars[0][0])


def main() -> None:
    """Draws two lanes a trace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--milliseconds", type=float, default=100.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figure = Figure(figsize=(9, 1.4 * len(options.traces)), layout="constrained")
    axes = figure.subplots(len(options.traces), 1, sharex=True, squeeze=False)[:, 0]
    for axis, trace in zip(axes, options.traces, strict=True):
        lanes = read_bars(trace)
        for height, (lane, bars) in enumerate(reversed(lanes.items())):
            axis.broken_barh(bars, (height + 0.1, 0.8), color=f"C{height}", linewidth=0)
            axis.text(-0.01, height + 0.5, lane, transform=axis.get_yaxis_transform(), ha="right")
        axis.set_yticks([])
        axis.set_xlim(0, options.milliseconds)
        name = trace.name.removesuffix(".json.gz")
        axis.set_title(f"{name}: GPU {100 * busy_share(lanes['GPU works']):.0f} % busy", loc="left")
    axes[-1].set_xlabel("ms")
    options.out.write_bytes(to_png(figure))


if __name__ == "__main__":
    main()
