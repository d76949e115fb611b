import assert from "node:assert/strict";
import test from "node:test";

import { ticksTo } from "../src/latency_chart.js";
import { latencyTable, measureRoutes } from "../src/measure.js";

/** A file whose width k takes k + 1 ms, by a clock that shows whole steps only. */
function slowFile(step) {
  let time = 0;
  const metadata = {
    input_shape: [2, 2, 3],
    input_type: "float32",
    network: "tiny",
    num_widths: 3,
    quantize: null,
    layout: "shared",
    routes: [{ path: [0, 0], madds: 10 }, { path: [2, 2], madds: 30 }],
  };
  const run = (image, { minWidth, maxWidth }) => {
    assert.equal(image.length, 12);
    assert.equal(minWidth, maxWidth);
    time += minWidth + 1;
  };
  return { file: { metadata, routes: [0, 2], run }, now: () => Math.floor(time / step) * step };
}

test("a coarse clock changes no latency by more than a step in a batch", async () => {
  const { file, now } = slowFile(5);
  const progress = [];
  const onProgress = (part) => progress.push(part);
  const rows = await measureRoutes(file, { now, rest: async () => {}, onProgress });
  assert.deepEqual(rows.map(({ path }) => path), [[0, 0], [2, 2]]);
  assert.ok(Math.abs(rows[0].median_ms - 1) <= 0.1);
  assert.ok(Math.abs(rows[1].median_ms - 3) <= 0.3);
  assert.ok(rows.every((row) => row.min_ms <= row.median_ms));
  assert.equal(progress.at(-1), 1);
});

test("the table has the fields that Python reads", () => {
  const { file } = slowFile(1);
  const table = latencyTable(file.metadata, [], "a phone", "LiteRT.js 2.5.3");
  assert.deepEqual(Object.keys(table), [
    "format",
    "device",
    "engine",
    "threads",
    "network",
    "input_shape",
    "num_widths",
    "quantize",
    "layout",
    "rows",
  ]);
});

test("axes end at a round number that holds every value", () => {
  assert.deepEqual(ticksTo(3.4), [0, 1, 2, 3, 4]);
  assert.deepEqual(ticksTo(0.013), [0, 0.005, 0.01, 0.015]);
  assert.equal(ticksTo(600).at(-1), 600);
});
