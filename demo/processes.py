"""The child processes of one run, and waiting for things to happen while they live."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import psutil

Result = TypeVar("Result")

HOST = "127.0.0.1"
TAIL_LINES = 25
STOP_GRACE_S = 15.0


class DemoError(Exception):
    """The run cannot go on. The message is for the person at the terminal and says what to do."""


class WaitTimeoutError(DemoError):
    """What was waited for did not happen in time."""


class Interrupted(Exception):  # noqa: N818 - nobody's error, and nothing that catches errors may swallow it
    """Somebody asked the run to stop.

    :param signum: the signal that asked
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@dataclass(frozen=True)
class Child:
    """A started process and the file that takes its output.

    :param lasting: it serves until it is stopped, so its end is a failure whatever its exit code
    """

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    lasting: bool

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        """Return the end of the child's log, indented, under its path.

        :param lines: how many lines at most
        """
        tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"--- {self.log} (last {len(tail)} lines)", *(f"    {line}" for line in tail)])


class Processes:
    """Every child of one run. Leaving the `with` block leaves no child, grandchild or orphan of theirs behind.

    Each child leads its own session, so a Ctrl-C at the terminal reaches only us and we stop them in order.

    :param log_dir: where each child's output goes, as `<name>.log`; created if missing
    :param catch_signals: within the block, SIGINT, SIGTERM and SIGHUP become `Interrupted`, raised by the next
        `wait_for` and not in between: raising from the handler could strike between fork and bookkeeping and leak a
        child. Stopping waits without `wait_for`, so an impatient second Ctrl-C cannot cut it short.
    :param grace_s: seconds that children have to end by themselves
    """

    def __init__(self, log_dir: Path, *, catch_signals: bool = False, grace_s: float = STOP_GRACE_S):
        self.log_dir = log_dir
        self.grace_s = grace_s
        log_dir.mkdir(parents=True, exist_ok=True)
        self._signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if catch_signals else ()
        self._restored_handlers = contextlib.ExitStack()
        self._children: list[Child] = []
        self._interrupted_by: int | None = None

    def __enter__(self) -> Self:
        for signum in self._signals:
            self._restored_handlers.callback(signal.signal, signum, signal.signal(signum, self._note_signal))
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._restored_handlers:
            self.stop()

    def _note_signal(self, signum: int, frame: object) -> None:
        self._interrupted_by = self._interrupted_by or signum

    def start(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], lasting: bool = True) -> Child:
        """Start a program in a session of its own, without stdin, its output in `<name>.log`.

        :param name: what to call it in messages; unique within the run
        :param argv: program and arguments
        :param env: its whole environment
        :param lasting: it serves until it is stopped, so its end is a failure whatever its exit code
        """
        log = self.log_dir / f"{name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )
        child = Child(name, popen, log, lasting)
        self._children.append(child)
        return child

    def run(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float) -> None:
        """Start a program and wait until it has succeeded.

        :param timeout_s: seconds it may take
        :raises DemoError: it failed or took too long; the message carries the end of its log
        """
        child = self.start(name, argv, env=env, lasting=False)
        self.wait_for(lambda: child.popen.poll() is not None, timeout_s=timeout_s, what=f"{name} to finish")
        self._children.remove(child)
        if child.popen.returncode:
            raise DemoError(f"{name} failed with exit code {child.popen.returncode}\n{child.log_tail()}")

    def wait_for(
        self, condition: Callable[[], Result | None], *, timeout_s: float, what: str, poll_s: float = 0.25
    ) -> Result:
        """Call the condition until it returns something true, and return that.

        :param condition: asked every `poll_s` seconds
        :param timeout_s: seconds until giving up
        :param what: completes "waited 60 s for ..."
        :raises Interrupted: a signal came in
        :raises WaitTimeoutError: time is up; the message carries the end of every log
        :raises DemoError: a child died meanwhile; the message carries the end of its log
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self._interrupted_by is not None:
                raise Interrupted(self._interrupted_by)
            if result := condition():
                return result
            self.require_all_alive()
            if time.monotonic() > deadline:
                tails = "\n".join(child.log_tail(8) for child in self._children)
                raise WaitTimeoutError(f"waited {timeout_s:.0f} s in vain for {what}\n{tails}")
            time.sleep(poll_s)

    def require_all_alive(self) -> None:
        """Do nothing while every lasting child lives.

        :raises DemoError: one does not; the message carries the end of its log
        """
        for child in self._children:
            if child.lasting and child.popen.poll() is not None:
                raise DemoError(f"{child.name} died with exit code {child.popen.returncode}\n{child.log_tail()}")

    def stop(self) -> None:
        """End every child and everything they started. Calling it again is harmless."""
        family = list(self._family())
        for child in reversed(self._children):
            if child.popen.poll() is None:
                child.popen.terminate()
        _wait_until(lambda: all(child.popen.poll() is not None for child in self._children), self.grace_s)
        # Whatever outlives its parent's orderly exit, or was orphaned by a crash, has had its chance.
        survivors = {process.pid: process for process in (*family, *self._family()) if is_alive(process)}
        for process in survivors.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for child in self._children:
            child.popen.kill()
            child.popen.wait()
        _wait_until(lambda: not any(map(is_alive, survivors.values())), STOP_GRACE_S)
        self._children.clear()

    def _family(self) -> Iterator[psutil.Process]:
        """Yield our children, whoever is still in the session one of them led, and all descendants of both."""
        leaders = {child.popen.pid for child in self._children}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
                if os.getsid(process.pid) in leaders:
                    yield process
                    yield from process.children(recursive=True)


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process can still do something. A zombie cannot; when it is reaped is up to its parent."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def claim_port(wanted: int | None, variable: str) -> int:
    """Return a port of this machine that nobody listens on.

    :param wanted: the port to use; None: any free one
    :param variable: the setting that chooses it, for the message
    :raises DemoError: the wanted port is taken
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or 0))
        except OSError as error:
            raise DemoError(
                f"port {wanted} cannot be used ({error.strerror}): "
                f"set {variable} to another one, or unset it to get a free one"
            ) from error
        return int(probe.getsockname()[1])


def local_environment(extra: Mapping[str, str], *, without: Iterable[str] = ()) -> dict[str, str]:
    """Return our environment for a child that only talks to this machine.

    :param extra: what to set on top
    :param without: prefixes of variables the child must not inherit
    """
    prefixes = tuple(without)
    inherited = {name: value for name, value in os.environ.items() if not (prefixes and name.startswith(prefixes))}
    return inherited | no_proxy() | {"PYTHONUNBUFFERED": "1"} | dict(extra)


def no_proxy() -> dict[str, str]:
    """Return the variables that keep requests to this machine away from a proxy, which could not reach it."""
    inherited = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = dict.fromkeys([*filter(None, inherited.split(",")), HOST, "localhost"])
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(hosts))
