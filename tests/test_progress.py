import sys

import pytest

from common import progress
from common.progress import EVERY, FIRST, Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds, that a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_quiet", False)
    return now


def run(clock, seconds, rate=2):
    with Progress(1000, "extracting", "images", done=100) as shown:
        for second in range(seconds):
            clock[0] = second + 1.0
            shown.update(rate)


def test_without_a_terminal_a_line_is_said_after_ten_seconds_and_every_thirty(clock, capsys):
    run(clock, 75)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + (75 - FIRST) // EVERY
    assert lines[0] == "extracting: 120 of 1,000 images, 2/s, 7 min 20 s left"
    assert lines[1] == "extracting: 180 of 1,000 images, 2/s, 6 min 50 s left"


def test_short_work_and_quiet_work_say_nothing(clock, capsys):
    run(clock, 9)
    progress.be_quiet()
    run(clock, 100)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(clock, 20)
    assert "extracting:" in capsys.readouterr().err
    assert "/1000" not in capsys.readouterr().err  # it goes when the work is done
