"""Text to token ids and back: characters or SentencePiece, the CTC blank at index 0.

A tokenizer is stored as `tokens.txt`, one token a line, the blank first; a SentencePiece one has
its `tokenizer.model` beside it, and its piece `i` is token `i + 1`. In both kinds `▁` stands for
the space between words.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from interkd.kernels.errors import TokenError

BLANK = "<blk>"
UNKNOWN = "<unk>"
WORD_BOUNDARY = "▁"
TOKENS_FILE = "tokens.txt"
MODEL_FILE = "tokenizer.model"


def is_blank_name(token: str) -> bool:
    """Whether a tokenizer's first token may be called so."""
    return token.startswith("<") and token.endswith(">")


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The tokens that a CTC head can emit, in the order of its outputs.

    Attributes:
        tokens: V distinct tokens, the blank among them.
        blank_index: Index of the blank; always 0.
        kind: Whether a token is one character or a SentencePiece piece.
        model: The serialised SentencePiece model; None for characters.

    Raises:
        TokenError: If the tokens are not distinct, the first is not a `<...>` name, or they do not
            fit the kind.
    """

    tokens: tuple[str, ...]
    blank_index: int = 0
    kind: Literal["characters", "sentencepiece"] = "characters"
    model: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.tokens) < 2 or self.blank_index != 0:
            raise TokenError(
                "tokens", expected="the blank at index 0 and at least one more", got=self.tokens
            )
        if not is_blank_name(self.tokens[0]):
            raise TokenError(
                "the first token is the blank", expected=f"a name like {BLANK}", got=self.tokens[0]
            )
        if len(set(self.tokens)) != len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if t in self.tokens[:i])
            raise TokenError("tokens are not distinct", got=f"'{twice}' twice")
        if self.kind == "characters":
            for index, token in enumerate(self.tokens[1:], start=1):
                if len(token) != 1 or token.isspace():
                    raise TokenError(
                        f"token {index} of a character tokenizer",
                        expected=f"one visible character ({WORD_BOUNDARY} for the space)",
                        got=repr(token),
                        remedy=f"a SentencePiece {TOKENS_FILE} has its {MODEL_FILE} beside it",
                    )
        elif self.tokens[1:] != (pieces := _pieces(self._processor)):
            raise TokenError(
                f"{TOKENS_FILE} is not of this {MODEL_FILE}",
                expected=f"the blank and {len(pieces)} pieces in the model's order",
                got=f"{len(self.tokens)} tokens",
            )

    @property
    def vocab_size(self) -> int:
        """V, with the blank."""
        return len(self.tokens)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the token list and the blank's index, hexadecimal."""
        content = json.dumps([self.blank_index, self.tokens], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def _index(self) -> dict[str, int]:
        index = {token: i for i, token in enumerate(self.tokens) if i != self.blank_index}
        if WORD_BOUNDARY in index:
            index[" "] = index.pop(WORD_BOUNDARY)
        return index

    @cached_property
    def _processor(self) -> Any:
        if self.model is None:
            raise TokenError(f"a SentencePiece tokenizer without its {MODEL_FILE}")
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise TokenError(f"{MODEL_FILE} is not a SentencePiece model") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without blanks.

        Args:
            text: Words separated by single spaces.

        Returns:
            Ids in `[1, V)`; empty for an empty text.

        Raises:
            TokenError: Naming the first character outside the tokens and its position.
        """
        if WORD_BOUNDARY in text:  # SentencePiece would take it for a space
            raise _foreign(text, text.index(WORD_BOUNDARY))
        if self.kind == "characters":
            try:
                return [self._index[character] for character in text]
            except KeyError:
                raise _foreign(
                    text, next(i for i, c in enumerate(text) if c not in self._index)
                ) from None
        ids: list[int] = self._processor.encode(text)
        unknown = self._processor.unk_id()
        if unknown in ids:
            surface = self._processor.encode(text, out_type=str)[ids.index(unknown)]
            raise _foreign(text, text.index(surface.strip(WORD_BOUNDARY)[:1]))
        return [piece + 1 for piece in ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids: words separated by single spaces.

        Args:
            token_ids: Ids in `[1, V)`, repeats and blanks already removed.

        Raises:
            TokenError: If an id is the blank or outside the vocabulary.
        """
        for token in token_ids:
            if not 0 < token < len(self.tokens):
                raise TokenError("token id", expected=f"1 .. {len(self.tokens) - 1}", got=token)
        return spell(self.tokens, token_ids)

    def save(self, folder: Path) -> None:
        """Writes `tokens.txt`, and `tokenizer.model` for SentencePiece, into an existing folder."""
        text = "".join(f"{token}\n" for token in self.tokens)
        (folder / TOKENS_FILE).write_text(text, encoding="utf-8", newline="\n")
        if self.model is not None:
            (folder / MODEL_FILE).write_bytes(self.model)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads a tokenizer.

        Args:
            path: A folder with `tokens.txt`, or that file. With a `tokenizer.model` beside it the
                kind is SentencePiece, else characters.

        Raises:
            TokenError: If a file is missing or unreadable, or the tokens do not fit.
        """
        path = path / TOKENS_FILE if path.is_dir() else path
        model_path = path.with_name(MODEL_FILE)
        try:
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            model = model_path.read_bytes() if model_path.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise TokenError(f"cannot read the tokens of {path}", got=str(error)) from error
        try:
            if model is None:
                return cls(tokens=tuple(lines))
            return cls(tokens=tuple(lines), kind="sentencepiece", model=model)
        except TokenError as error:
            raise error.within(str(path)) from error

    @classmethod
    def from_characters(cls, texts: Iterable[str]) -> Tokenizer:
        """A character tokenizer of every character seen, in code point order after the `▁`.

        Raises:
            TokenError: If a character cannot be a token (a space other than " ", or `▁`).
        """
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        seen.discard(" ")
        if WORD_BOUNDARY in seen:
            raise TokenError(f"the texts contain '{WORD_BOUNDARY}', which stands for the space")
        return cls(tokens=(BLANK, WORD_BOUNDARY, *sorted(seen)))

    @classmethod
    def train_sentencepiece(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        model_type: Literal["bpe", "unigram"] = "bpe",
    ) -> Tokenizer:
        """Trains a SentencePiece tokenizer; the same texts always give the same tokens.

        Every character of the texts is covered and no text normalisation is done.

        Args:
            texts: Training transcripts, at least one that is not empty.
            vocab_size: V of the result: the blank, `<unk>` (which is never encoded) and the pieces.
            model_type: `bpe` or `unigram`.

        Raises:
            TokenError: If SentencePiece cannot make that many pieces of these texts.

        Source: Kudo and Richardson 2018 (SentencePiece); Sennrich et al. 2016 (BPE); Kudo 2018
        (unigram).
        """
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                model_type=model_type,
                vocab_size=vocab_size - 1,
                character_coverage=1.0,
                normalization_rule_name="identity",
                max_sentence_length=1 << 24,  # the default drops transcripts over 4,192 bytes
                num_threads=1,
                shuffle_input_sentence=False,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise TokenError(
                f"cannot train a {model_type} tokenizer of {vocab_size} tokens", got=str(error)
            ) from error
        model = written.getvalue()
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        return cls(tokens=(BLANK, *_pieces(processor)), kind="sentencepiece", model=model)


def _pieces(processor: Any) -> tuple[str, ...]:
    return tuple(processor.id_to_piece(i) for i in range(processor.get_piece_size()))


def _foreign(text: str, position: int) -> TokenError:
    character = text[position]
    return TokenError(
        "text outside the tokens",
        got=f"{character!r} (U+{ord(character):04X}) at position {position} of {text[:60]!r}",
    )


def spell(tokens: Sequence[str], token_ids: Sequence[int]) -> str:
    """The text of token ids over any tokens in which `▁` stands for the space between words."""
    joined = "".join(tokens[token] for token in token_ids)
    return " ".join(joined.replace(WORD_BOUNDARY, " ").split())
