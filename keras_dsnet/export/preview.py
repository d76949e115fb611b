"""The program that shows a routed file in a browser.

It serves the page of web/, which `make web` builds, with one exported file:

python -m keras_dsnet.export.preview MODEL.tflite [--port=8000] [--web_dir=web/dist]
"""

import contextlib
import functools
import html
import http.server
import json
import mimetypes
import os
import pathlib
import sys
import urllib.parse
from typing import Any

from absl import flags

from keras_dsnet.export.dynamic_interpreter import read_metadata
from keras_dsnet.utils import UserError
from keras_dsnet.utils.command_line import command_flags, run_command

_USAGE = "python -m keras_dsnet.export.preview MODEL.tflite"
_MOST_PORT = 65535
_HOST = "127.0.0.1"
# The page of a checkout. An installed wheel has none, since LiteRT.js is larger than the package.
_WEB_DIR = pathlib.Path(__file__).resolve().parents[2] / "web" / "dist"
# Tables of the system may lack these or have others, and a browser runs no module of another type.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".tflite": "application/octet-stream",
}
# The same as in web/index.html, for the case that another page lies in the folder.
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)

FLAGS = command_flags()
flags.DEFINE_integer(
    "port", 8000, "Port on 127.0.0.1. With 0 the system chooses a free one.", flag_values=FLAGS
)
flags.DEFINE_string(
    "web_dir",
    None,
    "Folder of the built page. Defaults to web/dist of the checkout, which `make web` builds.",
    flag_values=FLAGS,
)


def main() -> int:
    """Runs the program until Ctrl+C and returns its exit code.

    A mistake of the user ends it with one line `error: ...` on stderr and exit code 1.
    """
    return run_command(FLAGS, str(__doc__), _serve)


def _serve(files):
    if len(files) != 1:
        raise UserError(f"expected one file name; usage: {_USAGE}. Received: {len(files)}")
    with make_server(files[0], FLAGS.port, FLAGS.web_dir) as server:
        print(f"{files[0]}: http://{_HOST}:{server.server_port}/ (Ctrl+C ends)", flush=True)
        server.serve_forever()


def make_server(
    filename: str | os.PathLike, port: int = 8000, web_dir: str | os.PathLike | None = None
) -> http.server.ThreadingHTTPServer:
    """Returns a server of the page with a file, which `serve_forever` starts.

    It listens on 127.0.0.1 only, and serves the files of the page, the file, and its parts if the
    export was split.

    Args:
        filename: Path of a file that `model.export(..., format="litert")` wrote.
        port: Integer, 0 to 65535. With 0 the system chooses a free port, which is the server's
            attribute `server_port`. Defaults to 8000.
        web_dir: Folder of the built page. Defaults to `None`, "web/dist" of the checkout.

    Raises:
        OSError: If the file cannot be read.
        UserError: If the page was not built, one of the file's parts is not beside it, or the port
            is out of range or in use.
        ValueError: If the file is not a TFLite file with routes.
    """
    if not 0 <= port <= _MOST_PORT:
        raise UserError(f"the port must be from 0 to {_MOST_PORT}. Received: {port}")
    model = pathlib.Path(filename)
    metadata = read_metadata(model.read_bytes(), filename)
    served = {model.name: model}
    for part in metadata.get("staged", {}).get("files", {}).values():
        path = model.parent / part["name"]
        # The name comes from the file, and only files beside it are its parts.
        if path.name != part["name"] or not path.is_file():
            raise UserError(f"{filename} is split, and its part {part['name']} is not beside it")
        served[path.name] = path
    folder = _WEB_DIR if web_dir is None else pathlib.Path(web_dir)
    if not (folder / "index.html").is_file():
        raise UserError(
            f"there is no page in {folder}: build it by `make web` in a checkout of keras_dsnet, "
            "and name its folder web/dist by --web_dir"
        )
    handler = functools.partial(_Handler, page=_files_of(folder), served=served)
    try:
        return http.server.ThreadingHTTPServer((_HOST, port), handler)
    except OSError as error:
        raise UserError(f"port {port} of {_HOST} cannot be used: {error.strerror}") from error


def _files_of(folder):
    """Returns a dict from the address of each file of a folder to its path."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests for a fixed set of files.

    An address is looked up, and never joined to a folder, so no address leads out of the page.

    Args:
        *args: As for `BaseHTTPRequestHandler`.
        page: Dict from address to path, the files of the page.
        served: Dict from name to path, the routed file and its parts.
    """

    server_version = "keras_dsnet"
    sys_version = ""

    def __init__(self, *args: Any, page: dict, served: dict):
        self._page, self._served = page, served
        super().__init__(*args)

    def handle(self):
        """Answers the requests of a browser, until it closes the connection or breaks it off."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self):
        """Answers a GET request."""
        self._answer(has_body=True)

    def do_HEAD(self):
        """Answers a HEAD request."""
        self._answer(has_body=False)

    def log_message(self, *args):
        """Logs no requests, since every load of the page makes dozens."""

    def _answer(self, has_body):
        address = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).removeprefix("/")
        try:
            found = self._content(address or "index.html")
        except OSError:
            found = None
        if found is None:
            self.send_error(http.HTTPStatus.NOT_FOUND)
            return
        content, kind = found
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _POLICY)
        self.end_headers()
        if has_body:
            self.wfile.write(content)

    def _content(self, address):
        """Returns the bytes and the type of an address, or None if nothing has it."""
        if address == "preview.json":
            return json.dumps(list(self._served)).encode(), _TYPES[".json"]
        folder, _, name = address.partition("/")
        path = self._served.get(name) if folder == "preview" else self._page.get(address)
        if path is None:
            return None
        content = path.read_bytes()
        if address == "index.html":
            title = html.escape(next(iter(self._served)), quote=True)
            tag = f'<meta name="preview" content="{title}">'
            content = content.replace(b"<head>", b"<head>" + tag.encode(), 1)
        guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return content, _TYPES.get(path.suffix.lower(), guessed)


if __name__ == "__main__":
    sys.exit(main())
