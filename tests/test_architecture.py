import ast
import configparser
import importlib
import pathlib
import re
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# A folder imports from itself and from folders on lower floors. `utils` needs nobody.
FLOORS = {
    "utils": 0,
    "layers": 1,
    "models": 2,
    "data": 2,
    "export": 3,
    "training": 3,
    "weights": 3,
    "runs": 3,
    "applications": 4,
    "detection": 4,
    "checkpoints": 4,
    "recipes": 5,
}
# Neighbours on one floor do not import one another, but for this arrow.
NEIGHBOURS = {("runs", "training")}
# The one import that runs upwards, and the method that it stays inside.
UPWARD = ("keras_dsnet.models.dynamic_slimmable_network", "export", "export")

DISTRIBUTIONS = {
    "absl": "absl-py",
    "ai_edge_litert": "ai-edge-litert",
    "flatbuffers": "flatbuffers",
    "h5py": "h5py",
    "jax": "jax",
    "keras": "keras",
    "keras_cv": "keras-cv",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "pycocotools": "pycocotools",
    "sklearn": "scikit-learn",
    "tensorflow": "tensorflow",
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow_model_optimization": "tensorflow-model-optimization",
    "tf_keras": "tf_keras",
    "tqdm": "tqdm",
}


def _module_name(path):
    parts = list(path.relative_to(REPOSITORY).with_suffix("").parts)
    if parts[0] == "applications":
        parts = ["keras_dsnet", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _sources():
    folders = ("keras_dsnet", "applications", "recipes")
    return {
        _module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for folder in folders
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
    }


SOURCES = _sources()


def _imports(tree, function=None):
    """Yields the names that a module imports, each with the innermost function around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports by a relative name"
            # The folder's name once it is installed.
            module = re.sub(r"^keras_dsnet_recipes\b", "recipes", node.module)
            yield from ((f"{module}.{alias.name}", function) for alias in node.names)
        inside = node.name if isinstance(node, ast.FunctionDef) else function
        yield from _imports(node, inside)


def _folder(name):
    parts = name.split(".")
    if parts[0] == "keras_dsnet":
        parts = parts[1:]
    return parts[0] if parts and parts[0] in FLOORS else None


def _own_imports(module):
    for name, function in _imports(SOURCES[module]):
        if name.split(".")[0] in ("keras_dsnet", "applications", "recipes"):
            yield name, function


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"keras_dsnet"}))
def test_every_module_lies_on_a_floor(module):
    assert _folder(module)


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"keras_dsnet"}))
def test_imports_run_downwards(module):
    folder = _folder(module)
    for name, function in _own_imports(module):
        imported = _folder(name)
        if folder == "recipes" or imported == folder or (module, imported, function) == UPWARD:
            continue
        assert imported, f"{module} imports {name}, which has no floor"
        if (folder, imported) in NEIGHBOURS:
            continue
        assert FLOORS[imported] < FLOORS[folder], f"{module} imports {name}"


def test_the_package_hands_on_the_lower_floors_eagerly():
    assert {_folder(name) for name, _ in _own_imports("keras_dsnet")} == {"layers", "models"}


def test_nobody_imports_plain_applications():
    for module in SOURCES:
        for name, _ in _imports(SOURCES[module]):
            assert name.split(".")[0] != "applications", f"{module} imports {name}"


def test_nobody_imports_recipes():
    for module in SOURCES:
        if _folder(module) != "recipes":
            for name, _ in _imports(SOURCES[module]):
                assert name.split(".")[0] != "recipes", f"{module} imports {name}"


def _modules_behind(name):
    """Returns the module that an imported name is, or lies in."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name


def test_imports_form_no_circle():
    graph = {
        module: {
            _modules_behind(name)
            for name, function in _own_imports(module)
            if (module, _folder(name), function) != UPWARD
        }
        - {""}
        for module in SOURCES
    }
    finished = set()

    def visit(module, way):
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in finished:
            for imported in sorted(graph[module]):
                visit(imported, [*way, module])
            finished.add(module)

    for module in graph:
        visit(module, [])


def test_other_packages_are_declared():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    extras = config["options.extras_require"]
    declared = config["options"]["install_requires"]
    declared += "".join(extras[name] for name in ("digits", "detection", "jax"))
    declared = {line.split(">=")[0] for line in declared.split()}
    for module in SOURCES:
        for name, _ in _imports(SOURCES[module]):
            root = name.split(".")[0]
            if root == "keras_dsnet" or root in sys.stdlib_module_names:
                continue
            if _folder(module) == "recipes" and root == "recipes":
                continue
            assert DISTRIBUTIONS.get(root) in declared, f"{module} imports {name}"


def _files():
    folders = ("keras_dsnet", "applications", "recipes")
    return [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def test_no_file_is_too_long():
    """A file is a subject that is read in one sitting."""
    lengths = {
        str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines())
        for path in _files()
    }
    assert {name: length for name, length in lengths.items() if length > 520} == {}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_the_first_line_of_a_file_names_one_subject(module):
    docstring = ast.get_docstring(SOURCES[module])
    assert docstring
    assert " and " not in docstring.splitlines()[0]


@pytest.mark.parametrize(
    "package", ["detection", "layers", "models", "runs", "training", "weights"]
)
def test_public_classes_of_one_file_use_each_other(package):
    exported = importlib.import_module(f"keras_dsnet.{package}").__all__
    for module, tree in SOURCES.items():
        if not module.startswith(f"keras_dsnet.{package}."):
            continue
        names = {
            node.name: {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name in exported
        }
        for name, used in names.items():
            others = set(names) - {name}
            users = {other for other in others if name in names[other]}
            assert not others or used & others or users, f"{module} holds {sorted(names)}"
