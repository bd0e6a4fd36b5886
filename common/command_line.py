"""What all command lines share: one sentence, and no traceback, when the user stops them or the system refuses."""

import contextlib
import importlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import click

from common.errors import UserError, refusal_of
from common.progress import be_quiet

AGAIN = "run the same command again"


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM. Code that has saved something adds a note to it, which the user reads at the end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Real(click.FloatRange):
    """A number in a range: click itself lets nan through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of a text."""
        number = super().convert(value, param, ctx)
        return self.fail(f"{value} is not a number.", param, ctx) if math.isnan(number) else number


class CommandLine(click.Group):
    """A group of commands that end with one sentence: exit code 130 on SIGINT, 143 on SIGTERM, 2 for a UserError.

    What the system refuses, such as memory, counts as a UserError: see `refusal_of`. Every command has --quiet.
    again: what a user who stopped a command should do to go on.
    """

    again = AGAIN

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Raises UserError for an empty one: as a path it would be the current folder."""
        if "" in args and not ctx.resilient_parsing:
            raise UserError("an argument is empty, as of a variable that is not set: give it a value, or leave it out")
        return super().parse_args(ctx, args)

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        """Add a command, with the option --quiet."""
        command.params.append(
            click.Option(["--quiet"], is_flag=True, expose_value=False, callback=_quiet, help="Show no progress.")
        )
        super().add_command(command, name)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Parse the arguments and run the command. A stream that was closed takes everything, and shows nothing."""
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        with refusals_in_a_sentence():
            return super().main(*args, **extra)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the arguments."""
        with stoppable(self.again):
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with stoppable(self.again):
            return super().invoke(ctx)


def _quiet(context: click.Context, option: click.Parameter, quiet: bool) -> None:
    if quiet:
        be_quiet()


def run_stage(name: str) -> None:
    """Run the command line of a package. Its imports, which take a moment, end in a sentence, too."""
    with stoppable(), refusals_in_a_sentence():
        importlib.import_module(f"{name}.cli").main(prog_name=f"python -m {name}")


@contextlib.contextmanager
def refusals_in_a_sentence() -> Iterator[None]:
    """Where the body fails since the system refused something, say so and exit with code 2."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError, ImportError, ValueError) as error:
        if not (sentence := refusal_of(error)):
            raise
        UserError(sentence).show()
        try:
            sys.stdout.flush()
        except OSError:  # what could not be written is still there, and Python would try again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(UserError.exit_code) from error


@contextlib.contextmanager
def stoppable(again: str = AGAIN) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `Stopped`, and let that end the process; a second one ends it at once.

    Both are safe: whatever is written is written atomically, so that even `kill -9` loses no more than a step.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not (stop := _stop_behind(error)):
            raise
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        _end(stop, again)
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _stop:  # else it was stopped, and nothing is to cut its end off
                signal.signal(number, handler)


@contextlib.contextmanager
def keeping(what: Callable[[], str]) -> Iterator[None]:
    """If the body is stopped, the last message says what is saved: `what()`."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if stop := _stop_behind(error):
            stop.add_note(f"{what()}; {AGAIN} to resume")
        raise


def _stop_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt that `error` is, or that it hides: a library's clean-up may fail after the interrupt."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for later in (signal.SIGINT, signal.SIGTERM):
        signal.signal(later, _stop_at_once)
    raise Stopped(number)


def _stop_at_once(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, f"stopped while cleaning up: {AGAIN}\n".encode())
    os._exit(128 + number)


def _end(stop: KeyboardInterrupt, again: str) -> NoReturn:
    click.echo(f"\nstopped: {'; '.join(getattr(stop, '__notes__', [again]))}", err=True)
    code = getattr(stop, "exit_code", 128 + signal.SIGINT)
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    if others:  # the interpreter would wait for these, however long what they do takes
        sys.stdout.flush()
        os._exit(code)
    raise SystemExit(code)
