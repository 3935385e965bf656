from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from interkd.kernels.errors import CorruptStoreError, StoreError
from interkd.pipeline.cache.inspect import decode_store, info
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.stats import LogHistogram, StoreStats, stats
from interkd.pipeline.cache.stats_plot import plot_stats
from interkd.pipeline.cache.stats_report import overview, render_html, tables
from interkd.pipeline.figures import to_png, to_svg

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import StoreMaker

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module", params=["made", "teacher-cache-v1", "teacher-cache-v2"])
def path(request: pytest.FixtureRequest, written_store: Path, tmp_path_factory: object) -> Path:
    return written_store if request.param == "made" else GOLDEN / str(request.param)


Frame = dict[int, float]


def frames_of(path: Path) -> list[list[tuple[int, Frame]]]:
    """Of every utterance, each frame's best token and probabilities."""
    store = TeacherStore.open(path)
    utterances = []
    for utt_id in store.utterance_ids:
        targets = store.targets([utt_id])
        offsets = targets.entry_offsets.tolist()
        tokens, log_probs = targets.tokens.tolist(), targets.log_probs.tolist()
        frames: list[tuple[int, Frame]] = []
        for first, last in itertools.pairwise(offsets):
            probs = [math.exp(value) for value in log_probs[first:last]]
            best = tokens[first]
            if store.metadata.version == 1:
                best = tokens[first + probs.index(max(probs))]
            total = max(1.0, sum(probs))
            frame = {t: p / total for t, p in zip(tokens[first:last], probs, strict=True)}
            frames.append((best, frame))
        utterances.append(frames)
    return utterances


def entropy(frame: Frame) -> float:
    classes = [*frame.values(), max(0.0, 1 - sum(frame.values()))]
    return -sum(p * math.log(p) for p in classes if p > 0)


def test_counts(path: Path) -> None:
    found = stats(path)
    counts = found.counts
    utterances = frames_of(path)
    frames = [frame for utterance in utterances for _, frame in utterance]
    assert (counts.utterances, counts.frames) == (len(utterances), len(frames))
    assert found.hours == info(path).hours
    assert counts.entropy.mean * len(frames) == pytest.approx(sum(map(entropy, frames)), abs=1e-6)
    lacking = [max(0.0, 1 - sum(frame.values())) for frame in frames]
    assert counts.left_out.total == pytest.approx(sum(lacking), abs=1e-6)
    assert counts.entropy.counts.sum() == counts.left_out.counts.sum() == len(frames)
    for threshold, share in found.blank_shares.items():
        above = sum(frame[0] > threshold for frame in frames)
        assert share == above / len(frames)
    sizes = Counter(map(len, frames))
    assert counts.entries.tolist() == [sizes[n] for n in range(max(sizes) + 1)]
    runs = [
        (token, len(list(run)))
        for utterance in utterances
        for token, run in itertools.groupby(best for best, _ in utterance)
    ]
    lengths = Counter(length for token, length in runs if token == 0)
    expected = [lengths[n] for n in range(max(lengths) + 1)]
    assert counts.blank_runs.tolist() == expected
    spelled = Counter(token for _, tokens in decode_store(path) for token in tokens)
    names = found.fingerprint.tokens
    assert found.spike_count == spelled.total()
    assert dict(found.top_spikes) == {names[t]: n for t, n in spelled.most_common(20)}


def test_bits_add_up_to_the_size_of_the_store(path: Path) -> None:
    found, size = stats(path), info(path)
    total = sum(found.column_bits.values()) * found.counts.frames
    assert total == pytest.approx(8 * size.total_bytes)
    assert set(found.column_bits) == set(size.column_bytes)


def test_progress_and_parts(store: Path) -> None:
    seen: list[tuple[int, int]] = []
    stats(store, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_histogram_quantiles() -> None:
    values = np.random.default_rng(0).lognormal(-3, 1, 10_000)
    histogram = LogHistogram.of(values, (-6, 2))
    for share in (0.01, 0.5, 0.99):
        exact = float(np.quantile(values, share))
        assert exact * 0.94 < histogram.quantile(share) < exact * 1.06
    assert histogram.mean == pytest.approx(values.mean())
    halves = LogHistogram.of(values[:3000], (-6, 2)) + LogHistogram.of(values[3000:], (-6, 2))
    assert halves.counts.tolist() == histogram.counts.tolist()
    small = LogHistogram.of(np.array([0.0, 1e-9]), (-6, 2))
    assert (small.counts[0], small.counts.sum()) == (2, 2)
    nothing = LogHistogram.of(np.zeros(0), (-6, 2))
    assert (nothing.mean, nothing.quantile(0.5)) == (0.0, 0.0)


def test_json(path: Path) -> None:
    values = json.loads(json.dumps(stats(path).to_dict(), allow_nan=False))
    assert values["frames"] == sum(values["frames_by_entries"])
    assert values["frames"] == sum(count for _, _, count in values["entropy_nats"]["bins"])
    assert set(values["blank_share_above"]) == {"0.5", "0.9", "0.99", "0.999"}


def test_page_stands_alone(path: Path) -> None:
    found = stats(path)
    page = render_html(found, to_svg(plot_stats(found), label="stats"))
    assert page.count("<svg") == page.count("</svg>") == 1
    assert not re.search(r"<script|<link|src=|url\(http|href=\"http|https?://", page)
    for _, value in overview(found):
        assert value.replace("'", "&#x27;").split(",")[0] in page
    for title in tables(found):
        assert f"<h2>{title}</h2>" in page


def test_figure_is_a_png(path: Path) -> None:
    figure = plot_stats(stats(path))
    content = to_png(figure)
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (1650, 1440)
    assert len(figure.axes) == 6


def test_tokens_that_look_like_markup(maker: StoreMaker, tmp_path: Path) -> None:
    tokens = ("<blk>", "<b>", "$x_1$", "語", *(f"t{i}" for i in range(25)))
    fingerprint = maker.fingerprint(tokens=tokens)
    found = stats(maker.write(tmp_path / "s", maker.utterances(fingerprint, [300]), fingerprint))
    page = render_html(found, to_svg(plot_stats(found), label="stats"))
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_a_store_without_frames(maker: StoreMaker, tmp_path: Path) -> None:
    fingerprint = maker.fingerprint()
    empty: StoreStats = stats(
        maker.write(tmp_path / "s", maker.utterances(fingerprint, [0, 0]), fingerprint)
    )
    assert (empty.counts.frames, empty.spike_count, empty.top_spikes) == (0, 0, [])
    assert empty.blank_run_quantile(0.5) == 0
    assert json.dumps(empty.to_dict(), allow_nan=False)
    assert render_html(empty, to_svg(plot_stats(empty), label="stats"))


def test_stores_that_cannot_be_read(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no teacher cache at"):
        stats(tmp_path / "nothing")
    damaged = Path(shutil.copytree(store, tmp_path / "damaged"))
    part = damaged / "part-00001.zip"
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(CorruptStoreError, match="part-00001"):
        stats(damaged)
