from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interkd.kernels.errors import CorpusError, ShapeError
from interkd.pipeline.scoring.trn import format_trn, read_trn

printable = st.characters(codec="utf-8")
ids = st.text(printable, min_size=1, max_size=8).filter(lambda s: s.split() == [s])
rows = st.dictionaries(ids, st.text(printable, max_size=20), max_size=6)


def test_is_sclites_form(tmp_path: Path) -> None:
    text = format_trn(["a-1", "a-2"], ["the  cat", ""])
    assert text == "the cat (a-1)\n(a-2)\n"
    (tmp_path / "ref.trn").write_text(text, encoding="utf-8")
    assert read_trn(tmp_path / "ref.trn") == {"a-1": "the cat", "a-2": ""}


@given(rows=rows)
def test_round_trip(rows: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round.trn"
    path.write_text(format_trn(list(rows), list(rows.values())), encoding="utf-8", newline="\n")
    assert read_trn(path) == {utt_id: " ".join(text.split()) for utt_id, text in rows.items()}


@pytest.mark.parametrize("utt_id", ["", "two words", "line\nbreak", " edge"])
def test_refuses_ids_that_cannot_be_read_back(utt_id: str) -> None:
    with pytest.raises(CorpusError, match="utterance id"):
        format_trn([utt_id], ["x"])


def test_refuses_repeats_and_unequal_columns() -> None:
    with pytest.raises(CorpusError, match="twice"):
        format_trn(["a", "a"], ["x", "y"])
    with pytest.raises(ShapeError, match="expected 2"):
        format_trn(["a", "b"], ["x"])


@pytest.mark.parametrize("content", ["no id here\n", "x (a)\ny (a)\n", "x ()\n"])
def test_refuses_damaged_files(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.trn"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match="line"):
        read_trn(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read"):
        read_trn(tmp_path / "none.trn")
