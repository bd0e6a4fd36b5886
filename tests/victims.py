"""Processes to be killed, and counts of what became of them: what the campaigns share.

Each victim is forked from a process that has imported everything and computed nothing, so that a kill strikes the work
and not the import. strace strikes at a system call.
"""

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from common.command_line import stoppable
from common.errors import UserError

CALLS = "openat,close,write,pwrite64,lseek,fsync,fallocate,ftruncate,rename,link,unlink,mkdir,rmdir,flock"
LIMIT = 300  # seconds
Counts = collections.Counter[str]


class Victim:
    """A command line in a process that has stopped itself; `finish` lets it run. What it says goes to `log`."""

    def __init__(self, main: Callable, arguments: Sequence[Any], log: Path):
        self.log, self.tracer = log, None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED)
            return
        code: object = 70
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(2, 1)
            with stoppable():
                os.kill(os.getpid(), signal.SIGSTOP)
                main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 0)

    def strike(self, trace: Path, call: str = CALLS, number: int = 65535, fault: str = "signal=SIGKILL") -> None:
        """Have strace do `fault` to it, or to a thread of it, at its call `number` of `call`, and write a trace."""
        command = ["strace", "-f", "-y", "-o", str(trace), "-e", f"trace={CALLS}"]
        command += ["-e", f"inject={call}:{fault}:when={number}", "-p", str(self.pid)]
        self.tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = self.tracer.stderr.readline()
        if "attached" not in line:
            os.kill(self.pid, signal.SIGKILL)
            raise UserError(f"strace cannot attach here: {line.strip()}")

    def finish(self, seconds: float = LIMIT, number: int = signal.SIGKILL) -> int:
        """Let it run, and send it a signal after so many seconds; its exit code, negative for a signal."""
        os.kill(self.pid, signal.SIGCONT)
        left, last = seconds, time.monotonic()
        status = None
        while left > 0 and status is None:
            done, ended = os.waitpid(self.pid, os.WNOHANG)
            status = ended if done else None
            time.sleep(0.001)
            now = time.monotonic()
            left, last = left - min(now - last, 1), now  # a pause of this very process does not count
        if status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            status = os.waitpid(self.pid, 0)[1]
        if self.tracer is not None:
            self.tracer.wait()
        return os.waitstatus_to_exitcode(status)

    @property
    def said(self) -> str:
        """What it wrote on stdout and stderr."""
        return self.log.read_text(errors="replace")


def calls_of(trace: Path, about: str = "") -> list[tuple[str, int]]:
    """Each system call of a trace whose line has `about`: its name, and its number among its like in its thread."""
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    calls = []
    for thread, name, rest in re.findall(r"^(\d+) +(\w+)\((.*)", trace.read_text(errors="replace"), re.MULTILINE):
        seen[thread, name] += 1
        if about in rest:
            calls.append((name, seen[thread, name]))
    return calls


def report(counts: Counts) -> None:
    """Print what was counted, and exit with 1 where something bad was: that is in capitals."""
    counts = +counts
    for what, n in sorted(counts.items()):
        click.echo(f"{n:6}  {what}")
    sys.exit(any(re.search(r"\b(?!SIG)[A-Z]{3,}", what) for what in counts))
