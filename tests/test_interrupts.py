"""Signals of a launch: noted while it starts, never inside an import; striking once it runs; a second Ctrl-C leaves at once."""

import os
import signal
import subprocess
import sys

import pytest

from sweeps.interrupts import Interrupts


@pytest.mark.parametrize(("number", "words"), [(signal.SIGINT, ()), (signal.SIGTERM, ("SIGTERM",))])
def test_a_signal_during_the_start_strikes_after_it(
    number: int, words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        interrupts.listen()
        with pytest.raises(KeyboardInterrupt) as struck:
            interrupts.let_through()
        assert struck.value.args == words
        with pytest.raises(KeyboardInterrupt) as again:
            os.kill(os.getpid(), number)
        assert again.value.args == words
    assert signal.getsignal(number) is before
    assert ("as soon as what starts has started" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_a_second_ctrl_c_during_the_start_leaves_at_once() -> None:
    code = (
        "import os, signal\nfrom sweeps.interrupts import Interrupts\n"
        "with Interrupts():\n    for _ in range(2): os.kill(os.getpid(), signal.SIGINT)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 130


def test_a_signal_during_a_start_that_leaves_early_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(ValueError, match="no room"), Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("no room")
