"""Parts in hand when something goes wrong: what has come whole is written, the rest is not."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from interkd.pipeline.part_writer import PartWriter


@pytest.mark.parametrize(("error", "parts"), [(ValueError, [0, 1]), (KeyboardInterrupt, [])])
def test_parts_that_have_come_whole(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], parts: list[int]
) -> None:
    def encode(*_: object) -> list[Any]:
        time.sleep(0.2)  # the error comes while everything is still queued
        return []

    monkeypatch.setattr(PartWriter, "_encode", encode)
    written: list[int] = []

    def batch(part: int, is_last: bool) -> Any:
        return SimpleNamespace(part=part, is_last=is_last, utterances=[], wait=lambda: None)

    writer = PartWriter(None, lambda index, *_: written.append(index))  # type: ignore[arg-type]
    with pytest.raises(error), writer:  # noqa: PT012
        for part, is_last in ((0, False), (0, True), (1, True), (2, False)):
            writer.put(batch(part, is_last))
        raise error
    assert written == parts
