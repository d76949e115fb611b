import assert from "node:assert/strict";
import test from "node:test";

import { PageError, lineOf } from "../src/page_error.js";
import { largestProbability, probabilities, topLabels } from "../src/probabilities.js";
import { readMetadata } from "../src/tflite_metadata.js";

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

test("an error becomes its first line", () => {
  assert.equal(lineOf(new Error("\n  first \nsecond")), "first");
  assert.equal(lineOf(7), "7");
});

test("probabilities stay as they are and logits become some", () => {
  assert.deepEqual([...probabilities(Float32Array.of(0.25, 0.75))], [0.25, 0.75]);
  const made = probabilities(Float32Array.of(1000, 1000));
  assert.deepEqual([...made], [0.5, 0.5]);
  assert.equal(largestProbability([NaN, 1]), 0);
});

test("the likeliest classes come first", () => {
  const labels = topLabels(Float32Array.of(0.2, 0.7, 0.1), ["cat", "dog", "bird"], 2);
  assert.deepEqual(labels.map(({ name }) => name), ["dog", "cat"]);
  assert.equal(topLabels(Float32Array.of(1), null)[0].name, "class 0");
});
