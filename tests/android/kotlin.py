"""The Kotlin compiler, and the app's Kotlin as a program outside Android."""

import base64
import os
import pathlib
import shutil
import subprocess

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HERE = REPOSITORY / "tests/android"
APP = REPOSITORY / "examples/android/app/src/main/kotlin"
# `make kotlin` installs it there.
COMPILER = REPOSITORY / "build/kotlin/node_modules/kotlin-compiler"
# The files that need nothing of Android.
PLAIN = ("RoutedFile", "Pixels", "ImageTensor", "Signatures", "RoutedModel", "StagedModel")
_TYPES = {"f": ">f4", "i": ">i4", "b": "u1"}


def missing():
    """Returns why no Kotlin can be compiled, or None."""
    if shutil.which("java") is None or shutil.which("bash") is None:
        return "needs java and bash"
    return None if COMPILER.is_dir() else "needs a Kotlin compiler: make kotlin"


def compile_kotlin(output, *sources):
    """Compiles sources and returns what the compiler prints."""
    command = ["bash", str(COMPILER / "bin/kotlinc"), "-d", str(output)]
    variables = {**os.environ, "JAVA_OPTS": "-Xmx1g -XX:TieredStopAtLevel=1"}
    done = subprocess.run(
        [*command, *map(str, sources)], capture_output=True, text=True, env=variables
    )
    return done.stdout + done.stderr


def write_java_stubs(folder):
    """Writes the declarations of java_stubs.txt as a tree of sources."""
    for part in (HERE / "java_stubs.txt").read_text(encoding="utf-8").split("\n//// ")[1:]:
        name, source = part.split("\n", 1)
        filename = folder / name
        filename.parent.mkdir(parents=True, exist_ok=True)
        filename.write_text(source, encoding="utf-8")


class App:
    """The app's routing on a file, with the signatures of an interpreter of this process.

    Args:
        jar: of `compile_kotlin`.
        filename: of the TFLite file.
        interpreter: of the file.

    Attributes:
        greeting: the first line, what the app has read in the file.
    """

    def __init__(self, jar, filename, interpreter):
        paths = os.pathsep.join((str(jar), str(COMPILER / "lib/kotlin-stdlib.jar")))
        self._process = subprocess.Popen(
            ["java", "-Xmx256m", "-cp", paths, "com.example.routing.MainKt", str(filename)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._interpreter = interpreter
        self._features = {}
        self.greeting = self._process.stdout.readline().strip()

    def classify(self, pixels, max_width, threshold):
        """Runs an image; returns the output, the path, and whether the threshold had a part."""
        red, green, blue = np.moveaxis(pixels.astype("uint32"), -1, 0)
        argb = (0xFF000000 | red << 16 | green << 8 | blue).astype(">u4")
        self._write(f"{_text('i', argb)} {max_width} {threshold}")
        while True:
            word, *rest = self._process.stdout.readline().split()
            if word == "result":
                output, path, used = rest
                return _array(output), tuple(_array(path).tolist()), used == "true"
            self._write(self._run(*rest))

    def _run(self, signature, *inputs):
        """Runs a signature and returns its outputs as the program reads them."""
        runner = self._interpreter.get_signature_runner(signature)
        arrays = {}
        for entry in inputs:
            name, text = entry.split("=", 1)
            details = runner.get_input_details()[name]
            array = self._features[text] if text.startswith("h") else _array(text)
            arrays[name] = array.reshape(details["shape"])
            assert arrays[name].dtype == details["dtype"]
        outputs = []
        for name, array in runner(**arrays).items():
            text = f"h:{signature}/{name}"
            if name.startswith("features"):
                self._features[text] = array.copy()
            else:
                kind = "f" if array.dtype == np.float32 else "i"
                text = _text(kind, array.astype(_TYPES[kind]))
            outputs.append(f"{name}={text}")
        return " ".join(outputs)

    def _write(self, line):
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def _text(kind, array):
    return f"{kind}:{base64.b64encode(array.tobytes()).decode()}"


def _array(text):
    kind, data = text.split(":", 1)
    array = np.frombuffer(base64.b64decode(data), _TYPES[kind])
    return array.astype(array.dtype.newbyteorder("="))
