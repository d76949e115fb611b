"""The runtimes that files are run on, each in an environment of its own."""

import dataclasses
import importlib.metadata
import json
import pathlib
import shutil
import subprocess
import sys

from runtimes.arm_python import arm_python, missing_tool


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A runtime, and how a program on it is started.

    Attributes:
        name: of its row.
        package: of the registry.
        version: of the package.
        api: of `run_files.py`.
        emulated: whether it runs on 64-bit ARM under QEMU.
    """

    name: str
    package: str
    version: str
    api: str = "interpreter"
    emulated: bool = False


# The newest releases of which the table was written.
NEWEST, NEWEST_TENSORFLOW = "2.3.0", "2.21.0"
RUNTIMES = (
    Runtime("LiteRT 1.1.2", "ai-edge-litert", "1.1.2"),
    Runtime("LiteRT 1.4.0", "ai-edge-litert", "1.4.0"),
    Runtime("LiteRT 2.1.6", "ai-edge-litert", "2.1.6"),
    Runtime(f"LiteRT {NEWEST}", "ai-edge-litert", NEWEST),
    Runtime(
        f"TensorFlow {NEWEST_TENSORFLOW}, `tf.lite`", "tensorflow", NEWEST_TENSORFLOW, "tensorflow"
    ),
    Runtime(f"LiteRT {NEWEST}, `CompiledModel`", "ai-edge-litert", NEWEST, "compiled"),
    Runtime(
        f"LiteRT {NEWEST}, `CompiledModel` with XNNPACK's weight cache",
        "ai-edge-litert",
        NEWEST,
        "cached",
    ),
    # From 2.2 on it ends under QEMU 7.2 before it opens any file, also one of a single operator.
    Runtime("LiteRT 2.1.6, aarch64 under QEMU", "ai-edge-litert", "2.1.6", emulated=True),
)


class NotAvailableError(Exception):
    """A runtime that cannot be had here; the message is the reason."""


def newest_runtimes():
    """Returns the newest runtimes of the table, at the newest releases that pip finds.

    Raises:
        NotAvailableError: If pip finds no release of a package.
    """
    pinned = {"ai-edge-litert": NEWEST, "tensorflow": NEWEST_TENSORFLOW}
    found = {package: _newest_release(package) for package in pinned}
    return tuple(
        dataclasses.replace(
            each,
            name=each.name.replace(each.version, found[each.package]),
            version=found[each.package],
        )
        for each in RUNTIMES
        if each.version == pinned[each.package]
    )


def _newest_release(package):
    """Returns the newest release of a package for this Python, which is not installed."""
    options = ["--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report=-"]
    report = _run([sys.executable, "-m", "pip", "install", *options, package])
    (chosen,) = json.loads(report)["install"]
    return chosen["metadata"]["version"]


def command_of(runtime, folder):
    """Returns the command that starts Python on a runtime, and the environment variables.

    Args:
        runtime: `Runtime`.
        folder: for the environments that are made.

    Raises:
        NotAvailableError: If the runtime cannot be installed or started.
    """
    if runtime.emulated:
        return _emulated(runtime, pathlib.Path(folder))
    if _is_installed(runtime):
        return [sys.executable], {}
    return [str(_environment(runtime, pathlib.Path(folder)))], {}


def _is_installed(runtime):
    """Returns whether the environment of this program has the runtime."""
    try:
        return importlib.metadata.version(runtime.package) == runtime.version
    except importlib.metadata.PackageNotFoundError:
        return False


def _environment(runtime, folder):
    """Returns the interpreter of a virtual environment, which is made if there is none."""
    place = folder / f"{runtime.package}-{runtime.version}"
    python = place / "bin" / "python"
    if (place / "installed").exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(place)])
    _run([str(python), "-m", "pip", "install", "--quiet", _requirement(runtime)])
    (place / "installed").touch()
    return python


def _emulated(runtime, folder):
    """Returns the command of a Python for 64-bit ARM, and the variables with its packages."""
    tool = missing_tool()
    if tool is not None:
        raise NotAvailableError(f"not run: {tool} is not installed")
    command = arm_python(folder / "aarch64-python", _run)
    version = _run([*command, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    place = folder / f"aarch64-{runtime.package}-{runtime.version}-{version}"
    if not (place / "installed").exists():
        shutil.rmtree(place, ignore_errors=True)
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                *_for_arm(version, place),
                _requirement(runtime),
            ]
        )
        (place / "installed").touch()
    return command, {"PYTHONPATH": str(place)}


def _for_arm(version, place):
    """Returns the options of pip that install packages for another processor into a folder."""
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{n}_aarch64" for n in (17, 27, 28, 34))]
    return [
        "--only-binary=:all:",
        f"--python-version={version}",
        f"--target={place}",
        *(f"--platform={platform}" for platform in platforms),
    ]


def _requirement(runtime):
    return f"{runtime.package}=={runtime.version}"


def _run(command):
    """Runs a command and returns what it prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise NotAvailableError(f"not run: {error}") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise NotAvailableError(f"not run: {last}") from error
    return done.stdout
