import assert from "node:assert/strict";
import test from "node:test";

import { cropWindow, resize, toInput, withoutAlpha } from "../src/preprocess.js";

test("an image of the size of the file stays whole", () => {
  assert.deepEqual(cropWindow(32, 32, [32, 32], 0.875), { top: 0, left: 0, height: 32, width: 32 });
});

test("the centre of another image is kept", () => {
  const centre = { top: 16, left: 38, height: 224, width: 224 };
  assert.deepEqual(cropWindow(256, 300, [224, 224], 0.875), centre);
  const square = { top: 0, left: 22, height: 256, width: 256 };
  assert.deepEqual(cropWindow(256, 300, [224, 224], 1), square);
  const tiny = cropWindow(1, 1, [224, 224], 0.875);
  assert.deepEqual(tiny, { top: 0, left: 0, height: 1, width: 1 });
});

/** Returns RGBA pixels in strips of some numbers of rows. */
function stripsOf(pixels, width, counts) {
  let start = 0;
  return counts.map((rows) => pixels.subarray(start, (start += 4 * width * rows)));
}

test("a constant image stays constant", () => {
  const resized = resize([new Uint8Array(7 * 5 * 4).fill(200)], 7, 5, [4, 9]);
  assert.equal(resized.length, 4 * 9 * 3);
  assert.ok(resized.every((value) => Math.abs(value - 200) < 1e-3));
});

test("no pixel leaves 0 to 255", () => {
  const edge = Uint8Array.from({ length: 4 * 4 * 4 }, (_, index) => (index < 32 ? 0 : 255));
  const resized = resize([edge], 4, 4, [16, 16]);
  assert.equal(Math.min(...resized), 0);
  assert.equal(Math.max(...resized), 255);
});

test("strips of any heights give the same pixels", () => {
  const [height, width] = [29, 23];
  const pixels = Uint8Array.from({ length: height * width * 4 }, (_, index) => (index * 7919) % 251);
  for (const target of [[8, 8], [31, 40], [29, 5], [1, 1]]) {
    const whole = resize([pixels], height, width, target);
    const inParts = resize(stripsOf(pixels, width, [1, 13, 2, 12, 1]), height, width, target);
    assert.deepEqual(inParts, whole);
    const opaque = pixels.map((value, index) => (index % 4 === 3 ? 255 : value));
    assert.deepEqual(resize([opaque], height, width, target), whole);
  }
});

test("the rows of an image are read once, and few of them are kept", () => {
  let rows = 0;
  // 40 MB of pixels, from one row of memory.
  function* strips() {
    const row = new Uint8Array(4 * 500).fill(90);
    for (; rows < 20_000; rows++) {
      yield row;
    }
  }
  const before = process.memoryUsage().arrayBuffers;
  const resized = resize(strips(), 20_000, 500, [2, 2]);
  assert.equal(rows, 20_000);
  assert.ok(resized.every((value) => Math.abs(value - 90) < 0.1));
  assert.ok(process.memoryUsage().arrayBuffers - before < 2e6);
});

test("pixels keep their order without alpha", () => {
  const strips = stripsOf(Uint8Array.of(1, 2, 3, 0, 4, 5, 6, 255, 7, 8, 9, 9), 1, [1, 2]);
  assert.deepEqual([...withoutAlpha(strips, 3)], [1, 2, 3, 4, 5, 6, 7, 8, 9]);
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
