import assert from "node:assert/strict";
import test from "node:test";

import { cropWindow, resize, toInput } from "../src/preprocess.js";

test("an image of the size of the file stays whole", () => {
  assert.deepEqual(cropWindow(32, 32, [32, 32]), { top: 0, left: 0, height: 32, width: 32 });
});

test("the centre of another image is kept", () => {
  assert.deepEqual(cropWindow(256, 300, [224, 224]), { top: 16, left: 38, height: 224, width: 224 });
  const tiny = cropWindow(1, 1, [224, 224]);
  assert.deepEqual(tiny, { top: 0, left: 0, height: 1, width: 1 });
});

test("a constant image stays constant", () => {
  const resized = resize(new Uint8Array(7 * 5 * 3).fill(200), 7, 5, [4, 9]);
  assert.equal(resized.length, 4 * 9 * 3);
  assert.ok(resized.every((value) => Math.abs(value - 200) < 1e-3));
});

test("no pixel leaves 0 to 255", () => {
  const edge = Uint8Array.from({ length: 4 * 4 * 3 }, (_, index) => (index < 24 ? 0 : 255));
  const resized = resize(edge, 4, 4, [16, 16]);
  assert.equal(Math.min(...resized), 0);
  assert.equal(Math.max(...resized), 255);
});

test("raw pixels are rounded half to even", () => {
  const input = toInput(Float32Array.of(0.5, 1.5, 254.6), { input_type: "uint8" });
  assert.deepEqual([...input], [0, 2, 255]);
  assert.ok(input instanceof Uint8Array);
});

test("floats are normalised for each channel", () => {
  const preprocessing = { scale: 1 / 255, mean: [0, 0.5, 1], std: [1, 0.5, 2] };
  const input = toInput(Uint8Array.of(255, 255, 255), { input_type: "float32", preprocessing });
  assert.deepEqual([...input], [1, 1, 0]);
});
