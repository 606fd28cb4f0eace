"""StopSignals: the first signal is noted and announced."""

import os
import signal

import pytest

from etpo_jax.runs.stopping import NOTICE, StopSignals


@pytest.fixture
def interruptible():
    """Python's own SIGINT: a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("notice", [NOTICE, ""])
def test_the_first_signal_is_announced_and_the_second_acts(capfd, notice):
    with StopSignals(notice) as stop:
        assert not stop.is_stopped()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received is signal.SIGINT
        assert capfd.readouterr().err.split("\n") == (["", notice, ""] if notice else [""])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_of_one_host_stops_all():
    stop = StopSignals()
    stop.share(lambda mine: [mine, 0])
    assert stop.received is None
    stop.share(lambda mine: [mine, signal.SIGTERM])
    assert stop.received is signal.SIGTERM
