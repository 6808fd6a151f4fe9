"""A process that waits in a library ends soon after Ctrl-C, unless it has something to finish."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from infra.service import interrupts
from infra.service.interrupts import STOPPED, STUCK

# Waits where no signal is heard, as in a library; says on its output when it does.
PROGRAM = """
import ctypes, signal, sys, threading
from infra.service import interrupts, signals

def deaf():
    mutex = ctypes.create_string_buffer(64)
    threads = ctypes.CDLL(None)
    threads.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    threads.pthread_mutex_lock(mutex)

if sys.argv[1] in ("library", "bounded"):
    signal.signal(signal.SIGINT, lambda *_: None)  # it may come just before the wait, and be heard

with interrupts.guarded():
    if sys.argv[1] == "library":
        deaf()
    if sys.argv[1] == "service":
        with signals.stop_on_signals(exit_code=3):
            deaf()
    if sys.argv[1] == "closing":
        with signals.stop_on_signals(exit_code=3) as stop:
            print("ready", flush=True)
            stop.wait()
        deaf()
    if sys.argv[1] == "finishing":
        with signals.stop_on_signals() as stop, interrupts.finishing():
            print("ready", flush=True)
            stop.wait()
            threading.Event().wait(2 * interrupts._PATIENCE_SECONDS)
            print("finished", flush=True)
    if sys.argv[1] == "bounded":
        with interrupts.finishing(1.5 * interrupts._PATIENCE_SECONDS):
            deaf()
"""


@pytest.mark.parametrize(
    ("how", "out", "ended"),
    [
        ("library", "", (130, f"{STOPPED}\n")),
        ("service", "", (3, f"{STUCK}\n")),
        ("closing", "ready\n", (3, f"{STUCK}\n")),
        ("finishing", "finished\n", (0, "")),
        ("bounded", "", (130, f"{STOPPED}\n")),
    ],
)
def test_process_ends_as_its_work_allows(how: str, out: str, ended: tuple[int, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        said, err = process.communicate(timeout=180)
    assert (said, process.returncode, err) == (out, *ended)


def test_second_signal_ends_process_that_finishes_something() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, "bounded"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=180)
    assert process.returncode in (130, -signal.SIGTERM)


def test_signal_to_an_earlier_command_of_the_process_is_forgotten() -> None:
    interrupts.note()
    with interrupts.guarded():
        assert not interrupts.asked()
