"""Tokenizers: ids and back, files, and everything that they refuse."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interkd.kernels.errors import TokenError
from interkd.pipeline.corpus.tokens import MODEL_FILE, TOKENS_FILE, Tokenizer

TEXTS = ["the cat sat on the mat", "while a dog ran to the park", "and the bird sang its song"]
ENGLISH = Tokenizer.from_characters(["ABCDEFGHIJKLMNOPQRSTUVWXYZ' "])
PIECES = Tokenizer.train_sentencepiece(TEXTS, vocab_size=36)


def test_characters_in_the_usual_order() -> None:
    assert ENGLISH.tokens[:4] == ("<blk>", "▁", "'", "A")
    assert (ENGLISH.vocab_size, ENGLISH.blank_index, ENGLISH.kind) == (29, 0, "characters")
    assert ENGLISH.encode("A BA'Z") == [3, 1, 4, 3, 2, 28]


@settings(deadline=None)
@given(st.lists(st.text("ABCXYZ'", min_size=1, max_size=6), max_size=6).map(" ".join))
def test_characters_round_trip(text: str) -> None:
    ids = ENGLISH.encode(text)
    assert len(ids) == len(text)
    assert ENGLISH.decode(ids) == text


@settings(deadline=None)
@given(st.lists(st.text("abcdehnorst", min_size=1, max_size=6), max_size=6).map(" ".join))
def test_pieces_round_trip(text: str) -> None:
    ids = PIECES.encode(text)
    assert all(2 <= token < PIECES.vocab_size for token in ids)
    assert PIECES.decode(ids) == text


def test_decoding_gives_single_spaces() -> None:
    assert ENGLISH.decode([1, 3, 1, 1, 4, 1]) == "A B"
    assert ENGLISH.decode([]) == ""


@pytest.mark.parametrize("tokenizer", [ENGLISH, PIECES], ids=["characters", "pieces"])
def test_text_outside_the_tokens(tokenizer: Tokenizer) -> None:
    known = "A" if tokenizer is ENGLISH else "a"
    for text in (f"{known} {known}É{known}", f"{known} {known}▁{known}"):
        with pytest.raises(TokenError, match=rf"'{text[3]}' \(U\+[0-9A-F]{{4}}\) at position 3"):
            tokenizer.encode(text)


@pytest.mark.parametrize("token", [0, -1, 29])
def test_ids_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(TokenError, match=rf"expected 1 \.\. 28, got {token}"):
        ENGLISH.decode([3, token])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_is_deterministic(model_type: Literal["bpe", "unigram"]) -> None:
    first, second = (
        Tokenizer.train_sentencepiece(TEXTS, vocab_size=28, model_type=model_type) for _ in "ab"
    )
    assert first == second
    assert first.tokens[:2] == ("<blk>", "<unk>")
    assert first.vocab_size == 28
    assert first.digest == second.digest != PIECES.digest


@pytest.mark.parametrize("texts", [["ab"], []], ids=["too few pieces", "no text"])
def test_training_that_cannot_be(texts: list[str]) -> None:
    with pytest.raises(TokenError, match="cannot train a bpe tokenizer of 256 tokens"):
        Tokenizer.train_sentencepiece(texts, vocab_size=256)


@pytest.mark.parametrize("tokenizer", [ENGLISH, PIECES], ids=["characters", "pieces"])
def test_files_and_pickles_keep_everything(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for loaded in (
        Tokenizer.load(tmp_path),
        Tokenizer.load(tmp_path / TOKENS_FILE),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert loaded == tokenizer
        assert loaded.digest == tokenizer.digest


def test_the_digest_tells_apart_what_joins_alike() -> None:
    ab, ba = (Tokenizer(tokens=("<blk>", *order)) for order in ("AB", "BA"))
    assert ab.digest != ba.digest
    assert len(ab.digest) == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("A\nB\n", "the first token is the blank"),
        ("<blk>\n", "at least one more"),
        ("<blk>\nA\nB\nA\n", "'A' twice"),
        ("<blk>\nA\n\nB\n", "token 2 of a character tokenizer"),
        ("<blk>\nA\n \nB\n", "▁ for the space"),
        ("<blk>\nA\n▁THE\n", f"has its {MODEL_FILE} beside it"),
    ],
)
def test_tokens_files_that_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / TOKENS_FILE
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TokenError, match=message) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)


def test_a_model_of_other_tokens_is_refused(tmp_path: Path) -> None:
    PIECES.save(tmp_path)
    ENGLISH.save(tmp_path)
    with pytest.raises(TokenError, match=r"tokens\.txt is not of this tokenizer\.model"):
        Tokenizer.load(tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(b"not a model")
    with pytest.raises(TokenError, match="is not a SentencePiece model"):
        Tokenizer.load(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="cannot read the tokens"):
        Tokenizer.load(tmp_path / "nowhere.txt")
