"""What all tests share: quiet logs, fixed seeds, and the reference data beside the checkout."""

import gc
import os
import pathlib

import pytest

# Read by TensorFlow when it is first imported. One thread per test process where several share
# the cores.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

pytest_plugins = ["torch_writer"]

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
REQUIRE_SHARED = os.environ.get("KERAS_DSNET_REQUIRE_SHARED") == "1"


@pytest.fixture(scope="session")
def repository():
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir():
    """The folder of reference numbers and data beside the checkout."""
    return SHARED


@pytest.fixture(autouse=True)
def _fixed_seeds():
    import keras

    keras.utils.set_random_seed(0)


def pytest_collection_modifyitems(items):
    for item in items:
        if any(name.startswith("shared_") for name in getattr(item, "fixturenames", ())):
            item.add_marker("needs_shared")
        if item.get_closest_marker("needs_shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs the folder ../shared"))


def pytest_collection_finish():
    # What TensorFlow's import left stays to the end: no collection need look at it again.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Turns a skip for want of ../shared into a failure where the folder is required."""
    report = yield
    if REQUIRE_SHARED and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(call.excinfo.value)
        if item.get_closest_marker("needs_shared") or "shared" in reason:
            report.outcome = "failed"
            report.longrepr = f"KERAS_DSNET_REQUIRE_SHARED=1 forbids this skip: {reason}"
    return report
