import assert from "node:assert/strict";
import test from "node:test";

import { PageError, lineOf } from "../src/page_error.js";
import { largestProbability, probabilities, topLabels } from "../src/probabilities.js";
import { cropFractionOf, mainOf, readMetadata } from "../src/tflite_metadata.js";

test("what is not a TFLite file is refused in one line", () => {
  const content = new TextEncoder().encode("this is a photograph");
  assert.throws(() => readMetadata(content, "x.tflite"), {
    message: "x.tflite is not a TFLite file",
  });
  assert.throws(() => readMetadata(new Uint8Array(3), "x.tflite"), PageError);
});

test("a damaged file is refused in one line", () => {
  const text = [..."TFL3"].map((letter) => letter.charCodeAt(0));
  for (const bytes of [[255, 255, 0, 0, ...text], [8, 0, 0, 0, ...text, 1, 2, 3]]) {
    assert.throws(() => readMetadata(Uint8Array.from(bytes), "x.tflite"), {
      name: "Error",
      message: /^x\.tflite is damaged: /,
    });
  }
});

/** Returns a flatbuffer with nothing but the metadata of a routed file. */
function fileWith(metadata) {
  const text = new TextEncoder().encode(JSON.stringify(metadata));
  const name = new TextEncoder().encode("keras_dsnet");
  const bytes = new Uint8Array(144 + text.length);
  const view = new DataView(bytes.buffer);
  const put = (place, value) => view.setUint32(place, value, true);
  bytes.set([..."TFL3"].map((letter) => letter.charCodeAt(0)), 4);
  put(0, 32); // The model at 32 has its slots at 8: buffers in 4, metadata in 6.
  view.setUint16(8, 18, true);
  view.setUint16(8 + 4 + 8, 4, true);
  view.setUint16(8 + 4 + 12, 8, true);
  view.setInt32(32, 24, true);
  put(36, 48 - 36); // Buffers: one table, at 68.
  put(48, 1);
  put(52, 68 - 52);
  put(40, 56 - 40); // Metadata: one entry, at 92.
  put(56, 1);
  put(60, 92 - 60);
  view.setUint16(64, 6, true); // Slots of the buffer: data in 0.
  view.setUint16(64 + 4, 4, true);
  bytes.copyWithin(76, 64, 70);
  view.setInt32(68, 68 - 76, true);
  put(72, 140 - 72);
  view.setUint16(84, 8, true); // Slots of the entry: name in 0, buffer in 1.
  view.setUint16(84 + 4, 4, true);
  view.setUint16(84 + 6, 8, true);
  view.setInt32(92, 92 - 84, true);
  put(96, 108 - 96);
  put(100, 0);
  put(108, name.length);
  bytes.set(name, 112);
  put(140, text.length);
  bytes.set(text, 144);
  return bytes;
}

test("the file of a detector, of features or of another version is refused in one line", () => {
  const fields = { input_shape: [8, 8, 3], input_type: "float32", preprocessing: {}, num_widths: 2 };
  const metadata = { ...fields, format: 1, routes: [{ path: [0] }] };
  assert.deepEqual(readMetadata(fileWith(metadata), "x.tflite"), metadata);
  const outputs = ["boxes", "scores"];
  assert.throws(() => readMetadata(fileWith({ ...metadata, outputs }), "x.tflite"), {
    message: "x.tflite is the file of a detector; this page runs classifiers",
  });
  assert.throws(() => readMetadata(fileWith({ ...metadata, include_top: false }), "x.tflite"), {
    message: "x.tflite is the file of a network without a classifier; this page shows classes",
  });
  assert.throws(() => readMetadata(fileWith({ ...metadata, format: 2 }), "x.tflite"), {
    message: "x.tflite is of another version of keras_dsnet; export it again",
  });
});

test("what is wrong with the main file of several is told, not that a part is none", () => {
  const part = { name: "m.route_0.tflite", bytes: fileWith(null) };
  const main = { name: "m.tflite", bytes: fileWith({ format: 2 }) };
  for (const contents of [[part, main], [main, part], [part, main, part]]) {
    assert.throws(() => mainOf(contents), {
      message: "m.tflite is of another version of keras_dsnet; export it again",
    });
  }
  assert.throws(() => mainOf([part]), { message: /^m\.route_0\.tflite is .* without routes/ });
  assert.throws(() => mainOf([]), { message: "No file was opened" });
});

test("the crop of a file is read, and a wrong one is refused in one line", () => {
  const fields = { format: 1, input_shape: [8, 8, 3], input_type: "float32", num_widths: 2 };
  const read = (preprocessing) =>
    readMetadata(fileWith({ ...fields, routes: [{ path: [0] }], preprocessing }), "x.tflite");
  assert.equal(cropFractionOf(read({ crop_fraction: 1 })), 1);
  assert.equal(cropFractionOf(read({ crop_fraction: 0.75 })), 0.75);
  // Files of older versions do not have it.
  assert.equal(cropFractionOf(read({})), 0.875);
  for (const fraction of [0, -0.5, 1.01, "0.5", null, true]) {
    const value = JSON.stringify(fraction);
    assert.throws(() => read({ crop_fraction: fraction }), {
      message: `x.tflite has the crop_fraction ${value}; it must be above 0 and at most 1`,
    });
  }
});

test("an error becomes its first line", () => {
  assert.equal(lineOf(new Error("\n  first \nsecond")), "first");
  assert.equal(lineOf(7), "7");
});

test("probabilities stay as they are and logits become some", () => {
  assert.deepEqual([...probabilities(Float32Array.of(0.25, 0.75))], [0.25, 0.75]);
  // Those of int8 files are rounded, and those of a sigmoid are independent.
  const rounded = new Float32Array(1000);
  rounded[3] = 0.5;
  assert.equal(probabilities(rounded)[3], 0.5);
  assert.equal(probabilities(Float32Array.of(0.3))[0], Math.fround(0.3));
  const made = probabilities(Float32Array.of(1000, 1000));
  assert.deepEqual([...made], [0.5, 0.5]);
  assert.equal(largestProbability([NaN, 1]), 0);
});

test("the likeliest classes come first", () => {
  const labels = topLabels(Float32Array.of(0.2, 0.7, 0.1), ["cat", "dog", "bird"], 2);
  assert.deepEqual(labels.map(({ name }) => name), ["dog", "cat"]);
  assert.equal(topLabels(Float32Array.of(1), null)[0].name, "class 0");
});
