"""Signals that ask a run to stop, and who hears them before and after."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from interkd.pipeline.training.stop import StopRequest


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGINT"])
def test_the_former_handlers_are_back_afterwards(name: str) -> None:
    numbers = (signal.SIGUSR2, signal.SIGINT)
    former = [signal.getsignal(number) for number in numbers]
    stop = StopRequest(name)
    with stop.caught():
        signal.raise_signal(getattr(signal, name))
    assert stop.asked
    assert [signal.getsignal(number) for number in numbers] == former


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    with StopRequest("SIGUSR2").caught():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_handler_that_python_did_not_set_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def set_handler(number: int, handler: Any) -> None:
        given.append(handler)  # and None is what was there

    monkeypatch.setattr(signal, "signal", set_handler)
    with StopRequest("SIGUSR2").caught():
        assert len(given) == 2
    assert len(given) == 2
