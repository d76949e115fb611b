"""Stage II refuses a data set whose classes are not those of its supernet."""

import subprocess
import sys

PROGRAM = """
import sys, types
from keras_dsnet_recipes import imagenet_stage2 as stage

stage.FLAGS(["stage2", "--supernet=runs/x", "--workdir=runs/y"])
names = lambda text: text and tuple(text.split())

def check(network, count, data, classes=3):
    model = types.SimpleNamespace(class_names=names(network), classes=classes)
    source = types.SimpleNamespace(name="pets", class_names=names(data), num_classes=count)
    try:
        stage.check_classes(model, source)
        print("ok")
    except ValueError as error:
        print(error)

check("ant bee cat", 3, "ant bee cat")
check(None, 3, "ant bee cat")
check("ant bee cat", 3, None)
check(None, 2, "ant bee")
check(None, 4, "ant bee cat dog")
check("ant bee cat", 3, "ant bee dog")
check("ant bee cat", 3, "bee ant cat")
check("ant bee cat", 2, "ant bee")
"""


def test_classes_are_compared_by_number_name_and_order():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[:4] == ["ok"] * 4
    assert lines[4].startswith("pets has 4 classes, but --supernet=runs/x has 3: ")
    assert lines[5].startswith("pets has class 2 'dog', not 'cat' as --supernet=runs/x: ")
    assert lines[6].startswith("pets has class 0 'bee', not 'ant' as --supernet=runs/x: ")
    assert lines[7].startswith("pets has 2 classes, not the 3 of --supernet=runs/x: ")
    assert len(lines) == 8
