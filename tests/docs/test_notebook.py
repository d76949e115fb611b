"""Runs the notebook in a kernel, as a reader would, and checks how it is stored."""

import pathlib

import nbclient
import nbformat
import pytest

(NOTEBOOK,) = (pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb")


def _stored():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.mark.long
def test_the_notebook_runs(tmp_path):
    notebook = _stored()
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert (tmp_path / "digits.tflite").is_file()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_is_stored_without_what_depends_on_the_machine():
    notebook = _stored()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert not cell.metadata
    assert notebook.metadata.language_info == {"name": "python"}
