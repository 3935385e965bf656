"""Shares the parts of a store between the writers that work on it at the same time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from interkd.pipeline.cache.claims import Claim, Owner, claim, remove_stale_claims
from interkd.pipeline.cache.files import remove_leftovers
from interkd.pipeline.cache.format import part_name
from interkd.pipeline.cache.writer import StoreWriter, writing

_POLL_SECONDS = 1.0


class PartClaims:
    """The parts that this writer has claimed; leaving the context frees what it still holds.

    Args:
        writer: Of the store.
        stale_seconds: Silence after which another host's claim is void.
        message: Told whom this writer waits for.
        wait: Whether to wait for the parts of others; without, there is one round.
    """

    def __init__(
        self,
        writer: StoreWriter,
        *,
        stale_seconds: float,
        message: Callable[[str], None],
        wait: bool = True,
    ) -> None:
        self.writer = writer
        self.stale_seconds = stale_seconds
        self.message = message
        self.wait = wait
        self._held: dict[int, Claim] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> PartClaims:
        self._remove_stale()
        return self

    def __exit__(self, *_: object) -> None:
        for index in list(self._held):
            self.release(index)
        self._remove_stale()

    def _remove_stale(self) -> None:
        """Clears what the dead left, of parts that stand too."""
        with contextlib.suppress(OSError):
            remove_stale_claims(self.writer.path, stale_seconds=self.stale_seconds)
            remove_leftovers(self.writer.path)

    def rounds(self, parts: Iterable[int]) -> Iterator[Iterator[int]]:
        """Rounds of free parts, until every part stands or is this writer's own.

        The first round offers what nobody has claimed, each later one, after a pause, what the
        writers that were waited for left unfinished. A part is claimed when the round is asked for
        it; all of a round must be taken, and worked on, before the next.

        Raises:
            StoreError: If the store cannot be written.
        """
        waited_for = ""
        remaining = list(parts)
        while remaining:
            owners: dict[int, Owner] = {}
            yield self._free(remaining, owners)
            if not self.wait:
                return
            remaining = [index for index in owners if self.writer.is_missing(index)]
            if remaining:
                text = f"waiting for {part_name(remaining[0])}: {owners[remaining[0]]}"
                if text != waited_for:
                    self.message(text)
                    waited_for = text
                time.sleep(_POLL_SECONDS)

    def _free(self, parts: list[int], owners: dict[int, Owner]) -> Iterator[int]:
        for index in parts:
            with writing(self.writer.path):
                taken = claim(self.writer.path, part_name(index), stale_seconds=self.stale_seconds)
            if not isinstance(taken, Claim):
                owners[index] = taken
                continue
            with self._lock:
                self._held[index] = taken
            if self.writer.is_missing(index):
                yield index
            else:
                self.release(index)

    def release(self, index: int) -> None:
        """Frees a part, if it is held."""
        with self._lock:
            held = self._held.pop(index, None)
        if held is not None:
            with contextlib.suppress(OSError):  # this process's end frees it too
                held.release()
