"""The connections among the supervisors of the workers, which show who was lost.

The supervisor of worker 0 listens on the address of worker 0, before TensorFlow does, until all
others have come. It then closes the listener and keeps the connections. Messages are lines of JSON.
"""

import contextlib
import json
import select
import socket
import time

from keras_dsnet_recipes.lib.cluster import split_address

BEAT_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_NOTICE_SECONDS = 5.0
_LONGEST_LINE = 2**20


class LostError(Exception):
    """A worker is missing or was lost.

    Args:
        line: Str, the line for the user.
        ended: Bool, whether the worker ended by itself, as others may do for the same reason.
    """

    def __init__(self, line, ended=False):
        super().__init__(line)
        self.ended = ended


class Membership:
    """The membership of this worker's supervisor in its cluster.

    Args:
        cluster: `Cluster`.
        timeout: Float, the seconds without a message after which a worker is lost.
    """

    def __init__(self, cluster, timeout):
        self.cluster = cluster
        self.timeout = timeout
        self._peers = {}
        self._done = set()
        self._beat_time = 0.0

    def join(self, values, patience, note):
        """Waits until all workers have come, and checks that they agree.

        Args:
            values: Dict that JSON can hold, the flags that must be equal on all workers.
            patience: Float, the seconds to wait.
            note: Function of a line that is shown while this waits.

        Raises:
            ValueError: On every worker, if the workers have different values.
            LostError: If a worker does not come. The message names it.
            OSError: If worker 0 cannot listen on its address.
        """
        if len(self.cluster.workers) == 1:
            return
        waiting = _Waiting(patience, note)
        greeting = {"hello": self.cluster.index, "workers": self.cluster.workers, "values": values}
        if self.cluster.index == 0:
            verdict = self._gather(greeting, waiting)
        else:
            verdict = self._greet(greeting, waiting)
        if "refused" in verdict:
            self.close()
            raise ValueError(verdict["refused"])
        now = time.monotonic()
        for peer in self._peers.values():
            peer.heard = now

    def _gather(self, greeting, waiting):
        """Waits as worker 0 for the greetings of all others, and answers them."""
        greetings, strangers = {0: greeting}, []
        with _listen(self.cluster.workers[0]) as listener:
            while len(greetings) < len(self.cluster.workers):
                missing = [i for i in range(len(self.cluster.workers)) if i not in greetings]
                if waiting.is_over(", ".join(map(self.cluster.name, missing))):
                    line = waiting.line(self.cluster, missing)
                    self._send_all({"absent": line})
                    raise LostError(line)
                sockets = [listener, *strangers, *self._peers.values()]
                for ready in select.select(sockets, [], [], _RETRY_SECONDS)[0]:
                    if ready is listener:
                        strangers.append(_Peer(listener.accept()[0]))
                        continue
                    lines = ready.read()
                    if ready in strangers and (lines or ready.is_closed):
                        strangers.remove(ready)
                        index = self._index_of(lines, greetings)
                        if index is None:
                            ready.close()
                        else:
                            greetings[index], self._peers[index] = lines[0], ready
                    elif ready.is_closed:
                        # It may be started again while this worker waits for others.
                        index = next(i for i, peer in self._peers.items() if peer is ready)
                        del greetings[index], self._peers[index]
        for stranger in strangers:
            stranger.close()
        difference = _difference(self.cluster, greetings)
        verdict = {"refused": difference} if difference else {"start": True}
        self._send_all(verdict)
        return verdict

    def _index_of(self, lines, greetings):
        """Returns the number of the worker that sent a greeting, or None if it is not valid."""
        greeting = lines[0] if lines and isinstance(lines[0], dict) else {}
        index = greeting.get("hello")
        is_free = isinstance(index, int) and index not in greetings
        return index if is_free and 0 < index < len(self.cluster.workers) else None

    def _greet(self, greeting, waiting):
        """Sends the greeting to worker 0, and waits for its answer."""
        while True:
            if waiting.is_over(self.cluster.name(0)):
                raise LostError(waiting.line(self.cluster, [0]))
            try:
                address = split_address(self.cluster.workers[0])
                peer = _Peer(socket.create_connection(address, timeout=_NOTICE_SECONDS))
            except OSError:
                time.sleep(_RETRY_SECONDS)
                continue
            peer.send(greeting)
            while not peer.is_closed:
                if waiting.is_over("all workers"):
                    raise LostError(waiting.line(self.cluster, [0]))
                for line in peer.read(_RETRY_SECONDS):
                    if "absent" in line:
                        raise LostError(line["absent"])
                    self._peers[0] = peer
                    return line
            time.sleep(_RETRY_SECONDS)

    def sockets(self):
        """Returns the connections, for `select`."""
        return list(self._peers.values())

    def receive(self):
        """Reads what has arrived. Sends a sign of life every second.

        Raises:
            LostError: If a worker was lost. Its message names the worker.
        """
        now = time.monotonic()
        if now - self._beat_time >= BEAT_SECONDS:
            self._beat_time = now
            self._send_all({"beat": True})
        for index, peer in list(self._peers.items()):
            for line in peer.read():
                peer.heard = now
                self._take(index, line)
            if index in self._done:
                if peer.is_closed:
                    del self._peers[index]
                continue
            if peer.is_closed:
                self.tell_lost(f"{self.cluster.name(index)} was lost: its connection has ended")
            elif now - peer.heard > self.timeout:
                self.tell_lost(
                    f"{self.cluster.name(index)} was lost: it gave no sign of life for "
                    f"{self.timeout:g} seconds"
                )

    def _take(self, index, line):
        if "lost" in line:
            self.tell_lost(line["lost"], line.get("ended", False), sender=index)
        if "done" in line:
            self._done.add(index)

    def tell_lost(self, line, ended=False, sender=None):
        """Tells the others that a worker was lost, and raises the error of it.

        Args:
            line: Str, names the worker.
            ended: Bool, see `LostError`.
            sender: Int, the worker that has told this one. Optional.
        """
        for index, peer in self._peers.items():
            if index != sender:
                peer.send({"lost": line, "ended": ended})
        raise LostError(line, ended)

    def tell_done(self):
        """Tells the others that this worker has ended without an error."""
        self._send_all({"done": True})

    def is_chief_done(self):
        """Returns whether worker 0 has told that it is done."""
        return 0 in self._done

    def is_last(self):
        """Returns whether all connected workers are done."""
        return set(self._peers) <= self._done

    def _send_all(self, message):
        for peer in self._peers.values():
            peer.send(message)

    def close(self):
        """Closes the connections."""
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()


class _Waiting:
    """The wait for other workers, with a note after some seconds."""

    def __init__(self, patience, note):
        self.patience, self.note = patience, note
        self._start = time.monotonic()
        self._noted = None

    def is_over(self, whom):
        """Returns whether the wait has taken too long. `whom` is who is still missing."""
        waited = time.monotonic() - self._start
        if waited > _NOTICE_SECONDS and self._noted != whom:
            self._noted = whom
            self.note(f"waiting for {whom}")
        return waited > self.patience

    def line(self, cluster, missing):
        names = ", ".join(map(cluster.name, missing))
        verb = "has" if len(missing) == 1 else "have"
        return f"{names} {verb} not come within --start_timeout={self.patience:g} seconds"


class _Peer:
    """A connection that sends and reads lines of JSON."""

    def __init__(self, connection):
        connection.settimeout(_NOTICE_SECONDS)
        self._connection = connection
        self._buffer = b""
        self.is_closed = False
        self.heard = time.monotonic()

    def fileno(self):
        return self._connection.fileno()

    def send(self, message):
        """Sends a message; a connection that has ended is noticed by the next read."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def read(self, seconds=0.0):
        """Returns the messages that have arrived, as dicts."""
        while not self.is_closed and select.select([self], [], [], seconds)[0]:
            seconds = 0.0
            try:
                received = self._connection.recv(2**16)
            except OSError:
                received = b""
            self._buffer += received
            self.is_closed = not received or len(self._buffer) > _LONGEST_LINE
        *lines, self._buffer = self._buffer.split(b"\n")
        messages = []
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if not isinstance(message, dict):
                # It is another program that has connected by mistake.
                self.is_closed = True
                break
            messages.append(message)
        return messages

    def close(self):
        self._connection.close()


def _listen(address):
    host, port = split_address(address)
    try:
        # Any interface, as TensorFlow's server does: the own name may lead to another one.
        if socket.has_dualstack_ipv6():
            listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            listener = socket.create_server(("", port))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: port {port} of worker 0 ({host})") from error
    return listener


def _difference(cluster, greetings):
    """Returns a line about the first value in which workers differ, or None."""
    first = greetings[0]
    for index in range(1, len(cluster.workers)):
        other = greetings[index]
        if other.get("workers") != first["workers"]:
            return (
                "All workers must have the same cluster in TF_CONFIG. Received: "
                f"{', '.join(first['workers'])} on worker 0, "
                f"{', '.join(map(str, other.get('workers', ())))} on worker {index}"
            )
        theirs = other.get("values", {})
        for name in sorted({*first["values"], *theirs}):
            ours = first["values"].get(name)
            if ours != theirs.get(name):
                return (
                    f"--{name} must be the same on all workers. Received: "
                    f"--{name}={_text(ours)} on worker 0, "
                    f"--{name}={_text(theirs.get(name))} on worker {index}"
                )
    return None


def _text(value):
    return ",".join(map(str, value)) if isinstance(value, list) else value
