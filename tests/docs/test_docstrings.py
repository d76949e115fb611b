"""Runs the examples in the docstrings of the package, each by itself."""

import ast
import doctest
import importlib
import pathlib
import re
import textwrap

import keras
import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# They train or export.
LONG = tuple(f"keras_dsnet.{name}" for name in ("applications", "export", "runs", "training"))
ROOTS = {"keras_dsnet": "keras_dsnet", "applications": "keras_dsnet.applications"}


def _modules():
    for root, package in ROOTS.items():
        for path in sorted((REPOSITORY / root).rglob("*.py")):
            parts = path.relative_to(REPOSITORY / root).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def _docstrings(path):
    """Yields `(name, docstring)` of a file's module, classes and functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [("", tree)]
    while nodes:
        owner, node = nodes.pop()
        if docstring := ast.get_docstring(node):
            yield owner, docstring
        kinds = (ast.ClassDef, ast.FunctionDef)
        nodes += [
            (f"{owner}.{child.name}".strip("."), child)
            for child in ast.iter_child_nodes(node)
            if isinstance(child, kinds)
        ]


def _examples():
    for module, path in _modules():
        for name, docstring in _docstrings(path):
            blocks = re.findall(r"^( *)```python\n(.*?)^ *```", docstring, re.DOTALL | re.MULTILINE)
            code = "\n".join(textwrap.dedent(block) for _, block in blocks)
            session = re.sub(r"^ *```\w*\n", "", docstring, flags=re.MULTILINE)
            if code or ">>> " in session:
                marks = pytest.mark.long if module.startswith(LONG) else pytest.mark.slow
                yield pytest.param(module, name, code, session, id=f"{module}.{name}", marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name", "code", "session"), list(_examples()))
def test_the_example_runs(module, name, code, session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if code and ">>> " not in code:
        exec(compile(code, f"{module}.{name}", "exec"), {"__name__": "example"})
    if ">>> " in session:
        names = {**vars(importlib.import_module(module)), "keras": keras, "np": np}
        example = doctest.DocTestParser().get_doctest(session, names, name, module, 0)
        lines = []
        doctest.DocTestRunner(verbose=False).run(example, out=lines.append)
        assert not lines, "".join(lines)


def test_there_are_examples():
    assert len(list(_examples())) >= 10
