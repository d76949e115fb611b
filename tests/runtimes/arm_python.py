"""A Python for 64-bit ARM, of the packages of Debian, which runs under QEMU."""

import pathlib
import shutil

EMULATOR = "qemu-aarch64-static"
# The newest processors that QEMU imitates have instructions that some of its versions lack.
PROCESSOR = "cortex-a76"
TOOLS = (EMULATOR, "apt-get", "dpkg")
PACKAGES = ("python3", "libstdc++6", "zlib1g")


def missing_tool():
    """Returns the name of a program that is needed and not installed, or None."""
    return next((tool for tool in TOOLS if shutil.which(tool) is None), None)


def arm_python(folder, run):
    """Returns the command of the Python, whose packages are unpacked if they are not there.

    Nothing is installed on this machine: apt gets a state of its own.

    Args:
        folder: `pathlib.Path` for the packages.
        run: function that runs a command.
    """
    root = folder / "root"
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("lists/partial", "archives/partial", "root"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        options = [f"--option={key}={value}" for key, value in _settings(folder).items()]
        run(["apt-get", *options, "--quiet", "update"])
        wanted = ["--yes", "--quiet", "--no-install-recommends", "--download-only", "install"]
        run(["apt-get", *options, *wanted, *PACKAGES])
        for package in sorted((folder / "archives").glob("*.deb")):
            run(["dpkg", "--extract", str(package), str(root)])
        shutil.rmtree(folder / "archives")
        shutil.rmtree(folder / "lists")
        (folder / "installed").touch()
    python = str(pathlib.Path(root, "usr/bin/python3"))
    return [EMULATOR, "-cpu", PROCESSOR, "-L", str(root), python]


def _settings(folder):
    return {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
    }
