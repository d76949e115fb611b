import assert from "node:assert/strict";
import test from "node:test";

import { StagedRuntime, segmentNames } from "../src/staged_runtime.js";

// Two gates of the widths 0 and 2. The scores of each signature are its argument.
const METADATA = {
  routes: [{ path: [0, 0] }, { path: [2, 2] }],
  staged: { gate_routes: [0, 2], choice_ratios: [null, null], files: {} },
};

function recorded(results) {
  const calls = [];
  let released = 0;
  const runnerOf = (signature) => (inputs) => {
    calls.push([signature, Object.keys(inputs)]);
    const release = { value: () => released++ };
    return Object.defineProperty({ ...results[signature] }, "release", release);
  };
  return { calls, runnerOf, released: () => released };
}

test("signatures have the names that the export gives them", () => {
  assert.deepEqual(segmentNames(1, 1, undefined, 3, 0), ["route_3"]);
  assert.deepEqual(segmentNames(2, 1, undefined, 3, 0), ["segment_1_to_3"]);
  assert.deepEqual(segmentNames(2, 2, 0, 0, 0), ["segment_2_0_to_0"]);
  assert.deepEqual(segmentNames(2, 2, 1, 1, 0), ["segment_2_1_to_1", "segment_2_to_1"]);
});

test("each gate chooses its best-scored width and features are passed on", () => {
  const { calls, runnerOf, released } = recorded({
    trunk: { features_0: "a", scores: [0, 9, 1] },
    segment_1_to_2: { features_0: "b", scores: [5, 9, 1] },
    segment_2_2_to_0: { features_0: "c" },
    segment_2_to_0: { output: [1, 0] },
  });
  const runtime = new StagedRuntime(METADATA, runnerOf);
  const { output, path } = runtime.runner("serving_default")({ image: [0] });
  assert.deepEqual(path, [2, 0]);
  assert.deepEqual(output, [1, 0]);
  assert.deepEqual(calls.map(([name]) => name), [
    "trunk",
    "segment_1_to_2",
    "segment_2_2_to_0",
    "segment_2_to_0",
  ]);
  assert.deepEqual(calls[1][1], ["features_0"]);
  assert.equal(released(), 4);
});

test("bounds decide for the gates, and empty ones take the nearest width above", () => {
  const { runnerOf } = recorded({
    trunk: { scores: [9, 0, 0] },
    segment_1_to_2: { scores: [9, 0, 0] },
    segment_2_2_to_2: {},
    segment_2_to_2: { output: [1] },
  });
  const bounded = new StagedRuntime(METADATA, runnerOf).runner("bounded");
  assert.deepEqual(bounded({ image: [0], min_width: [1, 1], max_width: [1, 1] }).path, [2, 2]);
  assert.deepEqual(bounded({ image: [0], min_width: [7, 7], max_width: [7, 7] }).path, [2, 2]);
});

test("an unsure image goes on to the next step", () => {
  const metadata = {
    routes: [{ path: [0] }, { path: [1] }, { path: [2] }],
    steps: [0, 1, 2],
    thresholds: [0.7, 0.7],
    staged: { gate_routes: [], choice_ratios: [null], files: {} },
  };
  const unsure = [0, 0];
  const { runnerOf } = recorded({
    trunk: {},
    route_0: { output: unsure },
    route_1: { output: [4, 0] },
    route_2: { output: [8, 0] },
  });
  const runtime = new StagedRuntime(metadata, runnerOf);
  const pathOf = (signature, inputs) => runtime.runner(signature)({ image: [0], ...inputs }).path;
  assert.deepEqual(pathOf("serving_default", {}), [1]);
  assert.deepEqual(pathOf("tuned", { thresholds: [0, 1] }), [0]);
  assert.deepEqual(pathOf("tuned", { thresholds: [1, 1] }), [2]);
  assert.deepEqual(pathOf("bounded", { min_width: [0], max_width: [0] }), [0]);
});
