"""Programs that end before they need TensorFlow, forked from one process that cannot load it."""

import functools
import json
import subprocess
import sys
import tempfile

_SERVER = """
import json, os, runpy, sys
import matplotlib
from absl import app, flags

for name in ("tensorflow", "keras", "keras_dsnet"):
    sys.modules[name] = None
for line in sys.stdin:
    argv, folder, out, err = json.loads(line)
    child = os.fork()
    if not child:
        code = 1
        try:
            for number, name in ((1, out), (2, err)):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
            os.chdir(folder)
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _server():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", _SERVER], **pipes)


def run_light_program(program, *arguments, folder="."):
    """Runs a Python file to its end; to import TensorFlow or Keras is an error there.

    Args:
        program: the file's path.
        *arguments: of its command line, made strings.
        folder: to run in.

    Returns:
        `subprocess.CompletedProcess` with exit code, stdout and stderr.
    """
    server = _server()
    argv = [str(program), *map(str, arguments)]
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        server.stdin.write(json.dumps([argv, str(folder), out.name, err.name]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(argv, code, out.read(), err.read())
