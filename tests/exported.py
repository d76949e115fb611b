"""Exports a network and gives tests access to the routed file."""

import contextlib
import io
import logging

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from keras_dsnet.export.packing import pack
from keras_dsnet.export.tflite_model import operators_of, parse
from keras_dsnet.models.executors import SlicedExecutor

KERNEL_OPERATORS = ("CONV_2D", "FULLY_CONNECTED")
# Of the usual difference between scores: rounding to int8 may turn a smaller one around.
UNDECIDED = 0.1


class Exported:
    """A network, its routed file, the report, and the output that the export printed and logged.

    Args:
        network: of `routed_networks`.
        folder: where the file goes.
        **options: of the export.
    """

    def __init__(self, network, folder, **options):
        self.network = network
        self.routes = options.get("routes") or network.routes
        self.filename = folder / "m.tflite"
        with contextlib.redirect_stdout(io.StringIO()) as printed, logged_messages() as logged:
            self.report = network.export(self.filename, format="litert", **options)
        self.printed, self.logged = printed.getvalue(), logged
        self.content = self.filename.read_bytes()
        self.model = parse(self.content)
        self.interpreter = Interpreter(model_path=str(self.filename))
        # Those of the first span. Most networks of the tests have only one.
        self.cuts = {row["path"]: tuple(row["cuts"][0]) for row in self.report["routes"]}

    def choose(self, images):
        """Runs "serving_default" and returns `(outputs, widths)`."""
        return _run(self.interpreter.get_signature_runner("serving_default"), images)

    def choose_paths(self, images):
        """Runs "serving_default" and returns `(outputs, paths)`, a row for each image."""
        runner = self.interpreter.get_signature_runner("serving_default")
        results = [runner(image=image[None]) for image in images]
        outputs = np.concatenate([result["output"] for result in results])
        return outputs, np.stack([result["path"] for result in results])

    def bounded(self, images, low, high):
        """Runs "bounded" and returns `(outputs, widths)`."""
        bounds = {"min_width": np.array([low], "int32"), "max_width": np.array([high], "int32")}
        return _run(self.interpreter.get_signature_runner("bounded"), images, **bounds)

    def main(self, signature):
        """Returns the graph that a signature runs."""
        key = signature.encode()
        (entry,) = [s for s in self.model.signatureDefs if s.signatureKey == key]
        return self.model.subgraphs[entry.subgraphIndex]

    def branch(self, route):
        """Returns the graph of a route."""
        return self.graph(f"route_{self.routes.index(route)}")

    def graph(self, name):
        """Returns the graph with a name."""
        (graph,) = [graph for graph in self.model.subgraphs if graph.name == name.encode()]
        return graph

    def operators(self, graph):
        """Returns pairs of a graph's operators and their names."""
        return list(zip(graph.operators, operators_of(graph, self.model)))

    def kernels(self, graph, pooled=True):
        """Returns a dict from buffer to the bytes of a branch's kernels, except depthwise ones.

        Without `pooled` also not those of layers on pooled features, which are cut otherwise.
        """
        buffers = [
            graph.tensors[operator.inputs[1]].buffer
            for operator, name in self.operators(graph)
            if name in KERNEL_OPERATORS
            and (pooled or list(graph.tensors[operator.inputs[0]].shape[1:3]) > [1, 1])
            and (pooled or name == "CONV_2D")
        ]
        return {buffer: len(self.model.buffers[buffer].data) for buffer in buffers}

    def partitions(self, graph):
        """Returns the outputs of each part that XNNPACK runs when only this graph is run."""
        alone = parse(self.content)
        alone.subgraphs = [own for own in alone.subgraphs if own.name == graph.name]
        alone.signatureDefs = []
        interpreter = Interpreter(model_content=pack(alone))
        interpreter.allocate_tensors()
        details = interpreter._get_ops_details()
        return [set(op["outputs"]) for op in details if op["op_name"] == "DELEGATE"]

    def multiplications_by_constants(self, graph):
        """Returns the number of MUL operators with a constant factor."""
        return sum(
            any(
                self.model.buffers[graph.tensors[index].buffer].data is not None
                for index in o.inputs
            )
            for o, name in self.operators(graph)
            if name == "MUL"
        )


@contextlib.contextmanager
def logged_messages():
    """Collects the messages of the package's logger from the level INFO on in a list."""
    logger, messages = logging.getLogger("keras_dsnet"), []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def kind_of(tensor):
    """Returns the name of a tensor's type."""
    kinds = vars(schema.TensorType).items()
    return next(name for name, value in kinds if name.isupper() and value == tensor.type)


def largest_difference(outputs, expected):
    """Returns the largest difference, where 1 is the largest expected value."""
    expected = np.asarray(expected)
    assert outputs.shape == expected.shape
    return np.abs(outputs - expected).max() / np.abs(expected).max()


def assert_nearly_the_same_choices(network, images, paths, share=0.8):
    """Asserts that a file chooses as its network, but for a few images that are undecided.

    Args:
        network: `DynamicSlimmableNetwork`.
        images: `[images, height, width, 3]`.
        paths: int `[images, num_gates]`, which the file took.
        share: of the choices that must agree.
    """
    expected = network.route(images).numpy()
    assert np.shape(paths) == expected.shape
    assert np.mean(paths == expected) >= share
    for gate, margins in enumerate(_margins(network, images, expected, paths)):
        undecided = paths[:, gate] != expected[:, gate]
        # A gate after another choice sees other features.
        undecided &= (paths[:, :gate] == expected[:, :gate]).all(axis=1)
        assert (margins[undecided] < UNDECIDED).all(), (gate, margins[undecided])


def _margins(network, images, expected, paths):
    """Yields by how much each image prefers the network's choice to the file's, gate by gate.

    1 is the mean difference between the best and the worst score of an image.
    """
    scores = [np.zeros((len(images), len(network.routes))) for _ in range(network.num_gates)]
    for path in np.unique(expected, axis=0):
        rows = np.flatnonzero((expected == path).all(axis=1))
        resolved = network.resolve_path(tuple(map(int, path)))
        executor = SlicedExecutor(resolved)
        network.run_sections(images[rows], resolved, executor=executor)
        for own, gate, found in zip(scores, network.slimming_gates, executor.scores, strict=True):
            own[rows] = gate.route_scores(found, network.routes)
    for gate, own in enumerate(scores):
        best, other = (
            own[np.arange(len(images)), np.searchsorted(network.routes, choices[:, gate])]
            for choices in (expected, paths)
        )
        yield (best - other) / np.mean(own.max(axis=1) - own.min(axis=1))


def _run(runner, images, **bounds):
    results = [runner(image=image[None], **bounds) for image in images]
    outputs = np.concatenate([result["output"] for result in results])
    return outputs, np.concatenate([result["path"] for result in results])
