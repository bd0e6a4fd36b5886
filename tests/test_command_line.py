import os
import signal
import time
from pathlib import Path

import pytest
from fabricate import begin, python

CODE = """
import sys, threading, time
import click
from common.command_line import CommandLine, keeping

@click.group(cls=CommandLine)
def main(): pass

def wait(word="ready"):
    print(word, flush=True)
    time.sleep(60)

@main.command()
def plain():
    wait()

@main.command()
def keeps():
    with keeping(lambda: "3 epochs are kept"):
        wait()

@main.command()
def threads():
    threading.Thread(target=time.sleep, args=(60,)).start()
    wait()

@main.command()
def failing_clean_up():
    with keeping(lambda: "3 epochs are kept"):
        try:
            wait()
        finally:
            raise AttributeError("a lock is released that was not yet made")

@main.command()
def slow():
    try:
        wait()
    finally:
        wait("cleaning")

main()
"""


def start(command):
    process = begin("-c", CODE, command)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["plain", "keeps", "threads", "failing-clean-up"])
def test_a_stopped_command_says_one_sentence_and_how_it_was_stopped(command, number, code):
    process, started = start(command), time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert error.strip().count("\n") == 0
    assert "run the same command again" in error
    assert ("3 epochs are kept" in error) == (command in ("keeps", "failing-clean-up"))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(("first", "second", "code"), [("SIGINT", "SIGINT", 130), ("SIGINT", "SIGTERM", 143)])
def test_a_second_signal_ends_a_slow_clean_up(first, second, code):
    process, started = start("slow"), time.monotonic()
    process.send_signal(signal.Signals[first])
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.Signals[second])
    _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert "run the same command again" in error
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("command", ["extract", "train", "find"])
def test_a_command_is_not_shadowed_by_files_where_it_is_run(tmp_path, command):
    for name in {"extract", "train", "find", "common", "click"} - {command}:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('theirs')")
    python("-m", command, "--help", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
