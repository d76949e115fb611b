"""Runs the notebooks in a kernel, as a reader would, and checks how they are stored."""

import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
# The file that each notebook writes, in the folder in which it runs.
WRITTEN = {"first_steps": "digits.tflite", "figure_2": "figure_2.png"}
# The first steps train.
CASES = [
    pytest.param(path, marks=pytest.mark.long if path.stem == "first_steps" else (), id=path.stem)
    for path in NOTEBOOKS
]


def _stored(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", CASES)
def test_the_notebook_runs(path, tmp_path):
    notebook = _stored(path)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert (tmp_path / WRITTEN[path.stem]).is_file()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_stored_without_what_depends_on_the_machine(path):
    notebook = _stored(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert not cell.metadata
    assert notebook.metadata.language_info == {"name": "python"}
