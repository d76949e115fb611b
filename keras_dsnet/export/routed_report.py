"""What a routed file holds."""

import collections

from keras_dsnet.export.flatbuffer import operators_of
from keras_dsnet.export.plan_sections import cuts_of


class RoutedReport:
    """Size, routes, operators of a routed file, and what its routes share.

    Args:
        network: the `DynamicSlimmableNetwork`.
        model: the file as a `schema.ModelT`.
        content: its bytes.
        plans: for each gate a `SectionPlan`.
        shape: `(height, width, 3)`.
        differences: dict from path to the difference from the network's outputs.
    """

    def __init__(self, network, model, content, plans, shape, differences):
        self._bytes = len(content)
        self._routes = [
            {
                "path": path[0] if len(path) == 1 else path,
                "madds": network.madds(path, shape),
                "cuts": cuts_of(plans, path),
                "difference": difference,
            }
            for path, difference in differences.items()
        ]
        counts = collections.Counter()
        for graph in model.subgraphs:
            counts.update(operators_of(graph, model))
        self._operators = dict(counts.most_common())
        self._constants = sum(
            len(buffer.data) for buffer in model.buffers if buffer.data is not None
        )
        self._apart = sum(_constants(graph, model) for graph in model.subgraphs)

    def as_dict(self):
        """Returns the report for JSON; sizes are in bytes."""
        return {
            "bytes": self._bytes,
            "routes": self._routes,
            "operators": self._operators,
            "shared": {"constants": self._constants, "parts_apart": self._apart},
        }

    def text(self, filename):
        """Returns the report in words."""
        width = max(4, *(len(str(row["path"])) for row in self._routes))
        lines = [
            f"{filename}: {self._bytes / 1e6:.2f} MB, of which {self._constants / 1e6:.2f} MB are "
            f"constants; its graphs apart have {self._apart / 1e6:.2f} MB",
            f"{'path':<{width}}     MAdds  difference  channel groups end at the channels of",
        ]
        for row in self._routes:
            cuts = ", ".join(map(str, row["cuts"]))
            madds, difference = row["madds"] / 1e6, row["difference"]
            lines.append(f"{row['path']!s:<{width}} {madds:8.2f}M  {difference:10.1e}  {cuts}")
        operators = ", ".join(f"{name} {count}" for name, count in self._operators.items())
        return "\n".join([*lines, f"operators: {operators}"])


def _constants(graph, model):
    """Returns the bytes of all constants of a graph."""
    buffers = (model.buffers[index].data for index in {tensor.buffer for tensor in graph.tensors})
    return sum(len(data) for data in buffers if data is not None)
