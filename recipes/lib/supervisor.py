"""The supervisor of a worker, whose training runs in a child process.

A lost worker can leave TensorFlow waiting in native code for ever, or make it abort the process.
The supervisor never imports TensorFlow, so that it can always end its child and name the lost
worker.
"""

import contextlib
import json
import math
import os
import select
import signal
import sys
import threading
import time

from absl import flags
from keras_dsnet_recipes.lib.cluster import read_cluster
from keras_dsnet_recipes.lib.membership import BEAT_SECONDS, LostError, Membership

FLAGS = flags.FLAGS
STRATEGY = "multi_worker"
# "A temporary failure, try again" of sysexits.h: another worker was lost.
EXIT_LOST = 75
_FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1")
# Codes with which a child ends by its own account, before or after it hears of another worker.
_ABORTED = tuple(-getattr(signal, name) for name in ("SIGABRT", "SIGSEGV", "SIGBUS"))
# TensorFlow's error after one worker has heard nothing of another for some seconds.
_BROKEN_CONNECTION = "Collective ops is aborted by: "
# Time to hear of a lost worker after the child has noticed it.
_SLACK_SECONDS = 15.0
# Time for the own error or checkpoint of this worker, after another was lost or has ended itself.
_LAST_SECONDS = {False: 3.0, True: 30.0}
# The writing end of the pipe to the supervisor, in the child only.
_to_supervisor = None


def is_wanted():
    """Returns whether the flags ask for training on several machines."""
    return "strategy" in FLAGS and FLAGS.strategy == STRATEGY


def is_child():
    """Returns whether this process is the child of a supervisor."""
    return _to_supervisor is not None


def supervise(run, values):
    """Runs a function in a child process after all workers have come.

    Args:
        run: Function without arguments that returns an exit code.
        values: Dict that JSON can hold, the flags that must be equal on all workers.

    Returns:
        The exit code, in both processes: that of the child, or `EXIT_LOST` if another worker was
        missing or lost.

    Raises:
        ValueError: On all workers, if they differ in a flag.
        OSError: If worker 0 cannot listen on its address.
    """
    membership = Membership(read_cluster(), FLAGS.worker_timeout)
    try:
        membership.join(values, FLAGS.start_timeout, lambda line: print(line, flush=True))
    except LostError as lost:
        return _end_as_lost(lost)
    down, up = os.pipe(), os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        membership.close()
        os.close(down[1])
        os.close(up[0])
        return _run_as_child(run, membership.cluster.index, down[0], up[1])
    os.close(down[0])
    os.close(up[1])
    try:
        return _Watch(membership, child, up[0], down[1]).run()
    finally:
        membership.close()


def report_failure(line):
    """Ends the child of a supervisor after an error that a lost worker may have caused.

    The supervisor shows the line only if no worker was lost.

    Args:
        line: Str, the error.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(_to_supervisor, json.dumps(line).encode()[:4096] + b"\n")
    # TensorFlow's shutdown would wait for the other workers.
    os._exit(EXIT_LOST)


def _run_as_child(run, index, from_supervisor, to_supervisor):
    """Runs a function with signs of life to the supervisor, and ends if that was killed."""
    global _to_supervisor
    _to_supervisor = to_supervisor
    finished = threading.Event()

    def beat():
        end = math.inf
        while True:
            told, _, _ = select.select([from_supervisor], [], [], BEAT_SECONDS)
            # A byte says that worker 0 is done. Nothing is read after the supervisor was killed.
            ended = bool(told) and not os.read(from_supervisor, 1)
            if told:
                end = time.monotonic() + FLAGS.worker_timeout
            try:
                os.write(to_supervisor, b"\n")
            except OSError:
                ended = True
            if finished.is_set() and end < math.inf:
                os._exit(0)
            if ended or time.monotonic() > end:
                os._exit(0 if finished.is_set() else EXIT_LOST)

    threading.Thread(target=beat, daemon=True).start()
    code = run()
    if not code and index:
        # TensorFlow on worker 0 would report a worker that ends before it as lost.
        finished.set()
        sys.stdout.flush()
        while True:
            time.sleep(BEAT_SECONDS)
    return code


def _end_as_lost(line):
    print(f"error: {line}", file=sys.stderr, flush=True)
    return EXIT_LOST


class _Watch:
    """The loop of a supervisor, from the fork of its child to its own end."""

    def __init__(self, membership, child, pipe, lifeline):
        self.membership = membership
        self.child = child
        self.pipe = pipe
        # The child ends when it is closed, as it is when this process is killed.
        self.lifeline = lifeline
        self._child_is_told = False
        self._status = None
        self._heard = time.monotonic()
        self._received = b""

    def run(self):
        """Returns the exit code of the worker."""
        for name in _FORWARDED:
            signal.signal(getattr(signal, name), lambda number, _: self._forward(number))
        # A terminal sends Ctrl-C to the child too, which ends by itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            while self._child_runs():
                self._wait(BEAT_SECONDS / 2)
                self.membership.receive()
                self._check_child()
                if self.membership.is_chief_done() and not self._child_is_told:
                    self._child_is_told = True
                    # A child that has ended meanwhile reads nothing.
                    with contextlib.suppress(BrokenPipeError):
                        os.write(self.lifeline, b"\n")
            return self._end_of_child()
        except LostError as lost:
            return self._end_after(lost)

    def _wait(self, seconds):
        """Waits for news of the child or of others."""
        sources = [*self.membership.sockets(), *([self.pipe] if self.pipe is not None else [])]
        if self.pipe in select.select(sources, [], [], seconds)[0]:
            received = os.read(self.pipe, 2**16)
            self._heard = time.monotonic()
            self._received += received
            if not received:
                os.close(self.pipe)
                self.pipe = None

    def _check_child(self):
        silent = time.monotonic() - self._heard
        if self.pipe is not None and silent > self.membership.timeout:
            self.membership.tell_lost(
                f"{self._own_name()} was lost: its training process gave no sign of life for "
                f"{self.membership.timeout:g} seconds"
            )

    def _own_name(self):
        return self.membership.cluster.name(self.membership.cluster.index)

    def _child_runs(self):
        if self._status is None:
            ended, status = os.waitpid(self.child, os.WNOHANG)
            if ended:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is None

    def _end_of_child(self):
        code = self._status
        if code == 0:
            self._end_with_others()
            return 0
        if code == EXIT_LOST or code in _ABORTED:
            # Another worker's end may have caused it: that one is named as soon as it is known.
            self._listen(self.membership.timeout + _SLACK_SECONDS)
        failure = self._last_line() if code == EXIT_LOST else ""
        if failure.startswith(_BROKEN_CONNECTION):
            # All workers live, so the machine or its network stood still for a while.
            line = f"{self._own_name()} lost its connection to the others for a while"
        else:
            line = f"{self._own_name()} {_ending(1 if failure else code)}"
        with contextlib.suppress(LostError):
            self.membership.tell_lost(line, ended=code > 0)
        if failure.startswith(_BROKEN_CONNECTION):
            return _end_as_lost(line)
        if failure:
            print(f"error: {failure}", file=sys.stderr, flush=True)
            return 1
        if code < 0:
            print(f"error: {line}", file=sys.stderr, flush=True)
        return code if code > 0 else 128 - code

    def _last_line(self):
        lines = [line for line in self._received.split(b"\n") if line]
        return json.loads(lines[-1]) if lines else "the training ended without a message"

    def _listen(self, seconds):
        """Hears the others for a while. Raises LostError if one of them was lost."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.membership.is_last():
            self._wait(BEAT_SECONDS / 2)
            self.membership.receive()

    def _end_with_others(self):
        """Tells the others that this worker is done. Worker 0 passes their news on until then."""
        self.membership.tell_done()
        if self.membership.cluster.index == 0:
            with contextlib.suppress(LostError):
                self._listen(self.membership.timeout)

    def _end_after(self, lost):
        """Ends this worker after another was lost; its own error or checkpoint comes first."""
        end = time.monotonic() + _LAST_SECONDS[lost.ended]
        while self._child_runs() and time.monotonic() < end:
            time.sleep(0.1)
        if self._child_runs():
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
        elif self._status >= 0 and self._status != EXIT_LOST:
            return self._status
        return _end_as_lost(lost)

    def _forward(self, number):
        if self._status is None:
            os.kill(self.child, number)


def _ending(code):
    if code == 128 + signal.SIGTERM:
        return "was asked to end (SIGTERM)"
    if code == 128 + signal.SIGINT:
        return "was interrupted"
    if code < 0:
        return f"was lost: its training process was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}, see its error"
