"""A TFLite file that is timed in a process of its own, as an app would hold it."""

import itertools
import os
import subprocess
import sys

# Runs at the beginning of every turn.
UNTIMED = 2
# The GNU C library's malloc asks for huge pages; other libraries do not read it.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class TimedProcess:
    """An interpreter of a TFLite file in a process of its own, which runs when it is asked to.

    Interpreters that share a process share a heap, and a file of many graphs is a few percent
    slower on a heap that others have cut up. Where the pages of a process happen to lie in memory
    moves it as much, so a comparison starts each file several times.

    Args:
        path: of the file; what it runs is what runs without naming a signature.
        threads: int, of the interpreter.
        huge_pages: bool: ask Linux for huge pages, which leave less to chance.
        widths: of a routed file. It runs every pair of them first: LiteRT prepares a graph that has
            never run whenever it might, which in an app ends with the first images.

    Raises:
        RuntimeError: the process ended.
    """

    def __init__(self, path, threads, huge_pages=False, widths=()):
        self._path = path
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(path), str(threads), *map(str, widths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (HUGE_PAGES if huge_pages else {}),
        )
        self._read()

    def milliseconds(self, count):
        """Returns the mean time of `count` runs in a row, in milliseconds."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self):
        """Ends the process."""
        self._process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            _, messages = self._process.communicate()
            last = (messages.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"{self._path} could not be run: {last}")
        return line


def _load(path, threads, widths):
    """Returns an interpreter that has run on random inputs."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    generator = np.random.default_rng(0)
    for details in interpreter.get_input_details():
        values = generator.normal(size=details["shape"])
        if details["dtype"] == np.uint8:
            values = generator.integers(0, 256, details["shape"])
        interpreter.set_tensor(details["index"], values.astype(details["dtype"]))
    if widths:
        _run_pairs(interpreter, widths)
    interpreter.invoke()
    return interpreter


def _run_pairs(interpreter, widths):
    """Runs paths in which every width follows every width, at every gate."""
    import numpy as np

    runner = interpreter.get_signature_runner("bounded")
    details = runner.get_input_details()
    image = np.zeros(details["image"]["shape"], details["image"]["dtype"])
    (gates,) = details["min_width"]["shape"]
    for pair in itertools.product(widths, widths):
        path = np.resize(np.int32(pair), gates)
        runner(image=image, min_width=path, max_width=path)


def _serve(path, threads, *widths):
    from take_turns import milliseconds

    interpreter = _load(path, int(threads), [int(width) for width in widths])
    print("ready", flush=True)
    for line in sys.stdin:
        # The process whose turn it was before has left its own data in the caches.
        milliseconds(interpreter.invoke, UNTIMED)
        print(milliseconds(interpreter.invoke, int(line)), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
