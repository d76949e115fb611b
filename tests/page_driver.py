"""A real browser with the page of web/, for tests."""

import contextlib
import json
import pathlib
import shutil
import subprocess
import threading

from keras_dsnet.export.preview import make_server

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
WEB = REPOSITORY / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def reason_to_skip():
    """Returns why the page cannot be tested here, or None if it can be."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (WEB / "node_modules" / "playwright-core").is_dir():
        return "web/node_modules has no playwright-core: run `make web`"
    if not (WEB / "dist" / "index.html").is_file():
        return "the page is not built: run `make web`"
    if not any(map(shutil.which, BROWSERS)):
        return f"none of {', '.join(BROWSERS)} is installed"
    return None


class PageDriver:
    """Sends commands to web/drive_page.mjs and returns their results.

    Args:
        *options: Options of the browser.
    """

    def __init__(self, *options):
        browser = next(filter(None, map(shutil.which, BROWSERS)))
        command = ["node", str(WEB / "drive_page.mjs"), browser, *options]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def __getattr__(self, command):
        return lambda *arguments: self._ask(command, *arguments)

    def _ask(self, *request):
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the browser ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    @property
    def error(self):
        """The line of the page's error, or "" where it shows none."""
        return self.evaluate("document.getElementById('error').textContent")

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=30)


@contextlib.contextmanager
def served(filename):
    """Serves the built page with a file and gives its address."""
    with make_server(filename, 0, WEB / "dist") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
