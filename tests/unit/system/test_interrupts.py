"""Requests to end reach a task even when they come at a bad moment."""

import os
import signal

import pytest

from pvetools.system import task


class Finalized:
    """Its finalizer is where the signal comes in."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(10000):  # the handler runs in here, and Python swallows what it raises
            pass


def test_an_interrupt_that_a_finalizer_swallowed_is_raised_again():
    with pytest.raises(KeyboardInterrupt), task.interruptible():
        thing = Finalized()
        del thing
        signal.sigtimedwait([signal.SIGUSR1], 10)
        pytest.fail("the interrupt got lost")


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    with task.interruptible():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before


def test_nothing_is_raised_again_when_the_block_has_ended():
    with task.interruptible() as deaf:
        thing = Finalized()
        del thing
        deaf()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.sigtimedwait([signal.SIGALRM], 0.05) is None
