"""Every error that interkd raises on purpose: one tree, one line a message.

InterkdError
├── ConfigError            a setting that cannot be: unknown key, value out of range
├── BackendError           a kernel backend or device that is not there
├── ShapeError             arrays whose shapes or dtypes do not fit
├── CorpusError            a manifest row, an audio file or a transcript
│   └── TokenError         text or tokens that do not fit the tokenizer
├── TeacherError           a teacher that cannot be loaded or breaks its contract
├── FrameCountError        student and teacher frames that differ by more than one
├── StoreError             a teacher cache that cannot be used
│   ├── FingerprintError   a cache of another teacher, tokenizer or frame shift
│   └── CorruptStoreError  bytes that are not what was written
├── CheckpointError        a checkpoint that cannot be loaded or resumed
└── ClusterError           workers or Slurm jobs that cannot be started, or that die
"""

from __future__ import annotations

from typing import Self


class InterkdError(Exception):
    """Base of the tree; its text says what, expected, got and what to do, in one line.

    Args:
        what: What is wrong, naming the file, utterance, key or column.
        expected: The value that would have been right, where there is one.
        got: The value found.
        remedy: What the user can do about it.
    """

    def __init__(
        self, what: str, *, expected: object = None, got: object = None, remedy: str | None = None
    ) -> None:
        self.what = what
        self.expected = expected
        self.got = got
        self.remedy = remedy
        parts = [what]
        if expected is not None or got is not None:
            parts.append(
                f"expected {expected}, got {got}" if expected is not None else f"got {got}"
            )
        if remedy is not None:
            parts.append(remedy)
        super().__init__(" ".join("; ".join(parts).split()))

    def within(self, where: str) -> Self:
        """The same error, its text beginning with the file or run that it is about."""
        return type(self)(
            f"{where}: {self.what}", expected=self.expected, got=self.got, remedy=self.remedy
        )


class ConfigError(InterkdError):
    """A setting that cannot be."""


class BackendError(InterkdError):
    """A kernel backend or device that is not there."""


class ShapeError(InterkdError):
    """Arrays whose shapes or dtypes do not fit."""


class CorpusError(InterkdError):
    """A manifest row, an audio file or a transcript that cannot be used."""


class TokenError(CorpusError):
    """Text or tokens that do not fit the tokenizer."""


class TeacherError(InterkdError):
    """A teacher that cannot be loaded or breaks its contract."""


class FrameCountError(InterkdError):
    """Student and teacher frame counts that differ by more than one."""


class StoreError(InterkdError):
    """A teacher cache that cannot be used."""


class FingerprintError(StoreError):
    """A teacher cache made by another teacher, tokenizer or frame shift."""


class CorruptStoreError(StoreError):
    """Bytes in a teacher cache that are not what was written."""


class CheckpointError(InterkdError):
    """A checkpoint that cannot be loaded or resumed."""


class ClusterError(InterkdError):
    """Workers or Slurm jobs that cannot be started, or that die."""
