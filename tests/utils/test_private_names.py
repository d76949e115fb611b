import ast
import functools
import importlib
import inspect
import pathlib

import keras
import pytest
import tensorflow as tf

from keras_dsnet.utils import private_names

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PLACE = REPOSITORY / "keras_dsnet/utils/private_names.py"
SOURCES = sorted(
    path.relative_to(REPOSITORY)
    for folder in ("keras_dsnet", "applications")
    for path in (REPOSITORY / folder).rglob("*.py")
    if path != PLACE
)
PRIVATE_MODULES = ("keras.src", "keras_cv.src", "tensorflow.python", "tensorflow.lite.python")
# Functions that take the name of an attribute or an argument.
TAKE_NAMES = ("getattr", "setattr", "hasattr", "delattr", "get", "pop", "setdefault")


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def _own_names(tree):
    """Returns the names that a file defines itself: functions, classes, variables, `self._x`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
    return names


@functools.cache
def _names_of_the_package():
    texts = ((REPOSITORY / source).read_text(encoding="utf-8") for source in SOURCES)
    return frozenset().union(*(_own_names(ast.parse(text)) for text in texts))


def _foreign_names(tree):
    """Yields the private names of other packages that a file uses."""
    own = _own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", "")
            modules = [f"{module}.{alias.name}".strip(".") for alias in node.names]
            yield from (name for name in modules if name.startswith(PRIVATE_MODULES))
            if module.split(".")[0] != "keras_dsnet":
                yield from (alias.name for alias in node.names if _is_private(alias.name))
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own:
            # A base class in another file may define it.
            inherited = ast.unparse(node.value) in ("self", "cls", "super()")
            inherited = inherited and node.attr in _names_of_the_package()
            # Python documents sys._getframe.
            if not inherited and ast.unparse(node) != "sys._getframe":
                yield node.attr
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = getattr(called, "id", called)
            for argument in node.args:
                value = getattr(argument, "value", None)
                if called in TAKE_NAMES and isinstance(value, str) and _is_private(value):
                    yield value


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_no_other_file_uses_private_names(source):
    tree = ast.parse((REPOSITORY / source).read_text(encoding="utf-8"))
    assert sorted(_foreign_names(tree)) == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from keras.src.backend import config", "keras.src.backend.config"),
        ("import tensorflow.python.framework", "tensorflow.python.framework"),
        ("from keras import _private", "_private"),
        ("layer._flatten_layers()", "_flatten_layers"),
        ("layer._random_generator = None", "_random_generator"),
        ("getattr(optimizer, '_distribution_strategy', None)", "_distribution_strategy"),
        ("kwargs.get('_use_cached_eval_dataset')", "_use_cached_eval_dataset"),
    ],
)
def test_the_search_finds(line, name):
    assert list(_foreign_names(ast.parse(line))) == [name]


def test_the_search_leaves_own_names():
    assert not list(_foreign_names(ast.parse("class A:\n  def _f(self): self._x = self._f()")))


def _overrides(cls):
    """Yields the private names of other packages that a class of the package redefines."""
    foreign = [base for base in cls.__mro__[1:] if not base.__module__.startswith("keras_dsnet")]
    for name in vars(cls):
        if _is_private(name) and any(name in vars(base) for base in foreign):
            yield name


def test_no_other_class_overrides_private_names():
    seen = 0
    for source in SOURCES:
        if "class " not in (REPOSITORY / source).read_text(encoding="utf-8"):
            continue
        name = ".".join(source.with_suffix("").parts).removesuffix(".__init__")
        name = f"keras_dsnet.{name}" if name.startswith("applications") else name
        if name == "keras_dsnet.export.qat_model":
            # Its import loads tf_keras, which takes seconds.
            continue
        for cls in vars(importlib.import_module(name)).values():
            if inspect.isclass(cls) and cls.__module__ == name:
                seen += 1
                assert list(_overrides(cls)) == [], cls
    assert seen > 30


def test_the_names_of_keras_exist():
    assert not private_names.in_stateless_scope()
    assert not private_names.in_symbolic_scope()
    source = inspect.getsource(keras.Model.fit)
    assert "_use_cached_eval_dataset=True" in source
    assert "self._maybe_symbolic_build(" in source
    assert keras.Model._maybe_symbolic_build is not None
    assert keras.Model()._distribute_strategy is None


def test_in_layer_call_is_true_inside_a_call_only():
    class Asks(keras.Layer):
        def call(self, inputs):
            self.answer = private_names.in_layer_call()
            return inputs

    layer = Asks()
    layer(keras.ops.ones((1,)))
    assert layer.answer
    assert not private_names.in_layer_call()


def test_flatten_layers_finds_layers_of_layers():
    inner = keras.layers.Dense(1)
    outer = keras.layers.TimeDistributed(inner)
    assert private_names.flatten_layers(outer) == [outer, inner]


def test_set_random_generator_replaces_that_of_keras_cv():
    import keras_cv

    layer = keras_cv.layers.RandomHue(factor=0.5, value_range=(0, 255), seed=0)
    before = vars(layer).get("_random_generator", getattr(layer, "_random_generator", None))
    assert before is not None
    generator = object()
    private_names.set_random_generator(layer, generator)
    assert layer._random_generator is generator


def test_optimizers_tell_of_their_variables():
    optimizer = keras.optimizers.SGD(weight_decay=0.1)
    variables = [keras.Variable(0.0, name="first"), keras.Variable(0.0, name="second")]
    optimizer.exclude_from_weight_decay(var_list=variables[1:])
    optimizer.build(variables)
    decayed = [private_names.has_weight_decay(optimizer, variable) for variable in variables]
    assert decayed == [True, False]
    assert private_names.variable_index(optimizer, variables[1]) == 1
    strategy = tf.distribute.get_strategy()
    assert private_names.strategy_of_optimizer(optimizer, None) is strategy


def test_coupled_weight_decay_leaves_the_decay_to_the_optimizer():
    class Coupled(private_names.CoupledWeightDecay, keras.optimizers.SGD):
        pass

    def trained(optimizer):
        variable = keras.Variable(1.0)
        optimizer.apply([keras.ops.zeros(())], [variable])
        return float(variable)

    assert trained(keras.optimizers.SGD(0.1, weight_decay=0.5)) == pytest.approx(0.95)
    assert trained(Coupled(0.1, weight_decay=0.5)) == 1.0


def test_the_names_of_the_converter_exist():
    from tensorflow.lite.python.convert import mlir_quantize

    assert "denylisted_nodes" in inspect.signature(mlir_quantize).parameters
    function = tf.function(lambda x: x, input_signature=[tf.TensorSpec((1,))])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    assert converter._experimental_calibrate_only is False
    private_names.calibrate_only(converter)
    assert converter._experimental_calibrate_only is True
