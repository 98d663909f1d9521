"""Ctrl-C and SIGTERM: one interruption, held back where an update must be whole."""

import os
import signal
from collections.abc import Iterator

import pytest

from vla_razor.interruption import SIGNALS, stoppable, uninterrupted


@pytest.fixture(autouse=True)
def in_the_foreground() -> Iterator[None]:
    """Whatever the tests were started from, and whatever is left of an interruption."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_either_is_a_keyboard_interrupt_that_waits_for_the_end_of_an_update(number: signal.Signals) -> None:
    done = []

    def update() -> None:
        with stoppable():
            with uninterrupted():
                send(number)
                done.append("the rest of the update")
            done.append("what comes after it")

    with pytest.raises(KeyboardInterrupt):
        update()
    assert done == ["the rest of the update"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_repeated_sigterm_does_not_disturb_what_is_being_saved() -> None:
    saved = []

    def stopped(number: int) -> None:
        try:
            with stoppable():
                try:
                    send(number)
                finally:
                    send(signal.SIGTERM)
                    saved.append(number)
        finally:
            send(signal.SIGTERM)

    for number in SIGNALS:
        with pytest.raises(KeyboardInterrupt):
            stopped(number)
    assert saved == list(SIGNALS)


def test_a_second_ctrl_c_insists() -> None:
    def stopped() -> None:
        with stoppable():
            try:
                send(signal.SIGTERM)
            except KeyboardInterrupt:
                send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        stopped()


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """As of a job in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stoppable(), uninterrupted():
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
