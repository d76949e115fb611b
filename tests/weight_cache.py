"""Runs a file under XNNPACK's weight cache, an option of LiteRT's compiled models."""

import numpy as np
import pytest


def run_compiled(filename, images, cache="", signature="serving_default", **bounds):
    """Runs images with a signature and returns outputs and paths.

    Args:
        filename: of the TFLite file.
        images: `[count, height, width, 3]`, as the file takes them.
        cache: path of the cache's file; empty: none.
        signature: key.
        **bounds: further inputs, int32.
    """
    options = pytest.importorskip("ai_edge_litert.options")
    from ai_edge_litert.compiled_model import CompiledModel

    own = options.Options(
        cpu_options=options.CpuOptions(num_threads=1, xnnpack_weight_cache_path=str(cache))
    )
    model = CompiledModel.from_file(str(filename), options=own)
    names = model.get_signature_list()[signature]
    inputs = {n: model.create_input_buffer_by_name(signature, n) for n in names["inputs"]}
    outputs = {n: model.create_output_buffer_by_name(signature, n) for n in names["outputs"]}
    details = model.get_output_tensor_details(signature)
    for name, bound in bounds.items():
        inputs[name].write(np.array(bound, "int32"))
    results = {name: [] for name in outputs}
    for image in images:
        inputs["image"].write(np.ascontiguousarray(image[None]))
        model.run_by_name(signature, inputs, outputs)
        for name, buffer in outputs.items():
            kind = np.int32 if name == "path" else np.float32
            results[name].append(buffer.read(int(np.prod(details[name]["shape"])), kind))
    return tuple(np.stack(results[name]) for name in ("output", "path") if name in results)


def assert_same_with_cache(filename, images, folder, paths, atol=0.0):
    """Asserts that the cache changes no outputs or paths, with the gates free and forced."""
    runs = [("serving_default", {})]
    runs += [("bounded", {"min_width": path, "max_width": path}) for path in paths]
    for number, (signature, bounds) in enumerate(runs):
        expected = run_compiled(filename, images, "", signature, **bounds)
        # The first run writes the cache, the second reads it.
        for _ in range(2):
            cache = folder / f"{number}.cache"
            found = run_compiled(filename, images, cache, signature, **bounds)
            np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=atol)
            np.testing.assert_array_equal(found[1], expected[1])
