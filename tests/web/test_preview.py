"""Tests the server that shows a routed file in a browser."""

import http.client
import json
import re
import shutil
import socket
import struct
import sys
import threading

import pytest
from routed_networks import SHORT_SPEC, small_network

from keras_dsnet.export import preview


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a file of one piece, one in several, and a page."""
    folder = tmp_path_factory.mktemp("files")
    network = small_network(spec=SHORT_SPEC)
    options = {"format": "litert", "routes": (0, 2), "verbose": False}
    (folder / "parts").mkdir()
    network.export(folder / "my model.tflite", **options)
    network.export(folder / "parts" / "m.tflite", layout="staged", split=True, **options)
    page = folder / "page"
    (page / "litert").mkdir(parents=True)
    (page / "index.html").write_text("<head><title>page</title></head>")
    (page / "main.js").write_text("export {};")
    (page / "litert" / "x.wasm").write_bytes(b"\0asm")
    (folder / "secret.txt").write_text("secret")
    (page / "link.txt").symlink_to(folder / "secret.txt")
    return folder


class Client:
    """Sends requests to a running server, with addresses exactly as given."""

    def __init__(self, server):
        self._port = server.server_port

    def get(self, address, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        connection.request(method, address)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content


@pytest.fixture
def open_client(files):
    running = []

    def start(name):
        server = preview.make_server(files / name, 0, files / "page")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        running.append((server, thread))
        return Client(server)

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/main.js?again", "text/javascript; charset=utf-8"),
        ("/litert/x.wasm", "application/wasm"),
        ("/preview.json", "application/json"),
        ("/preview/my%20model.tflite", "application/octet-stream"),
    ],
)
def test_files_have_the_types_that_browsers_demand(open_client, address, kind):
    response, content = open_client("my model.tflite").get(address)
    assert response.status == 200
    assert response.getheader("Content-Type") == kind
    assert int(response.getheader("Content-Length")) == len(content) > 0


def test_the_page_is_told_which_file_it_shows(open_client, files):
    client = open_client("my model.tflite")
    _, page = client.get("/")
    assert b'<head><meta name="preview" content="my model.tflite">' in page
    assert json.loads(client.get("/preview.json")[1]) == ["my model.tflite"]
    content = (files / "my model.tflite").read_bytes()
    assert client.get("/preview/my%20model.tflite")[1] == content
    response, nothing = client.get("/", "HEAD")
    assert response.status == 200
    assert nothing == b""


def test_all_parts_of_a_split_file_are_served(open_client, files):
    client = open_client("parts/m.tflite")
    names = json.loads(client.get("/preview.json")[1])
    assert names[0] == "m.tflite"
    assert sorted(names) == sorted(path.name for path in (files / "parts").iterdir())
    for name in names:
        assert client.get(f"/preview/{name}")[1] == (files / "parts" / name).read_bytes()


def test_a_browser_that_breaks_off_leaves_no_traceback(open_client, files, capfd):
    (files / "page" / "large.js").write_bytes(bytes(2**25))
    client = open_client("my model.tflite")
    with socket.create_connection(("127.0.0.1", client._port)) as connection:
        connection.sendall(b"GET /large.js HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(100)
        # Closed with a reset, since what has arrived is not read.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert client.get("/main.js")[0].status == 200
    (files / "page" / "large.js").unlink()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "address",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/litert/../../secret.txt",
        "//secret.txt",
        "/preview/../secret.txt",
        "/preview/secret.txt",
        "/preview/",
        "/link.txt",
        "/litert",
        "/etc/passwd",
        "/parts/m.tflite",
    ],
)
def test_nothing_else_is_served(open_client, address):
    response, content = open_client("my model.tflite").get(address)
    assert response.status == 404
    assert b"secret" not in content.replace(b"secret.txt", b"")


def test_nothing_can_be_sent_to_the_server(open_client):
    assert open_client("my model.tflite").get("/", "POST")[0].status == 501


def test_a_page_may_load_nothing_from_elsewhere(open_client):
    response, _ = open_client("my model.tflite").get("/")
    policy = response.getheader("Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    page = (preview._WEB_DIR.parent / "index.html").read_text(encoding="utf-8")
    assert f'content="{policy}"' in page


def run(monkeypatch, capsys, *arguments):
    """Runs the program; returns its exit code and the lines of stderr."""
    monkeypatch.setattr(sys, "argv", ["preview", *map(str, arguments)])
    preview.FLAGS.unparse_flags()
    code = preview.main()
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one file name; usage: python -m keras_dsnet.export.preview"),
        (["none.tflite"], "No such file or directory: .*none.tflite"),
        (["secret.txt"], "secret.txt is not a TFLite file"),
        (["my model.tflite", "--port=70000"], "port must be from 0 to 65535. Received: 70000"),
        (["my model.tflite", "--web_dir=nowhere"], "no page in nowhere: build it by `make web`"),
        (["alone.tflite"], "is split, and its part .* is not beside it"),
        (["my model.tflite", "--colour"], "Unknown command line flag 'colour'"),
    ],
)
def test_a_mistake_is_one_line(files, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(files)
    shutil.copy("parts/m.tflite", "alone.tflite")
    code, lines = run(monkeypatch, capsys, "--web_dir=page", *arguments)
    (line,) = lines
    assert code == 1
    assert re.match(f"error: .*{message}", line)


def test_a_port_in_use_is_one_line(files, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        model = files / "my model.tflite"
        flags = [f"--port={port}", f"--web_dir={files / 'page'}"]
        code, lines = run(monkeypatch, capsys, model, *flags)
    assert code == 1
    assert lines == [f"error: port {port} of 127.0.0.1 cannot be used: Address already in use"]


def test_help_names_the_flags(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["preview", "--help"])
    preview.FLAGS.unparse_flags()
    assert preview.main() == 0
    printed = capsys.readouterr().out
    assert "--web_dir" in printed
    assert "--port" in printed
