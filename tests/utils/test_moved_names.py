"""Names that moved between packages: each old name works and warns exactly once."""

import subprocess
import sys
import warnings

import keras_dsnet.models
import keras_dsnet.training

MOVED = [
    (package, name)
    for package in (keras_dsnet.models, keras_dsnet.training)
    for name in package._MOVED
]

CASES = [
    "import keras_dsnet.checkpoints",
    "from keras_dsnet import checkpoints",
    "import keras_dsnet; keras_dsnet.checkpoints; keras_dsnet.checkpoints",
    "from keras_dsnet.checkpoints import WeightsFile",
]

COUNTS = """
import sys, warnings
import keras_dsnet
for code in sys.argv[1:]:
    sys.modules.pop("keras_dsnet.checkpoints", None)
    vars(keras_dsnet).pop("checkpoints", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(code, "user.py", "exec"), {})
    print([(item.filename, item.category.__name__) for item in caught])
"""


def test_an_import_of_each_moved_name_warns_once_and_names_the_line():
    for package, name in MOVED:
        vars(package).pop(name, None)
        code = compile(f"from {package.__name__} import {name}", "user.py", "exec")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            names = {}
            exec(code, names)
        (warning,) = caught
        assert issubclass(warning.category, DeprecationWarning)
        home = package._MOVED[name]
        expected = f"{package.__name__}.{name} is deprecated: import it from {home}"
        assert str(warning.message) == expected
        assert warning.filename == "user.py"
        assert names[name] is getattr(sys.modules[home], name)


def test_every_way_to_the_old_package_of_weights_warns_once():
    command = [sys.executable, "-c", COUNTS, *CASES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[('user.py', 'DeprecationWarning')]"] * len(CASES)
