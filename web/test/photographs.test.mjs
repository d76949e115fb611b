import assert from "node:assert/strict";
import test from "node:test";

import { decodePhotograph, pixelsOf } from "../src/photographs.js";

/** A canvas without a browser. A bitmap is a function from row and column to RGBA. */
class Canvas {
  static sizes = [];
  #pixels;

  constructor(width, height) {
    Canvas.sizes.push(width * height);
    Object.assign(this, { width, height });
    this.#pixels = Array(width * height * 4).fill(0);
  }

  getContext() {
    const canvas = this;
    return {
      drawImage(bitmap, left, top, width, height, toLeft, toTop, toWidth, toHeight) {
        assert.deepEqual([toLeft, toTop, toWidth, toHeight], [0, 0, width, height]);
        for (let place = 0; place < width * height; place++) {
          const [y, x] = [Math.floor(place / width), place % width];
          const pixel = bitmap.at(top + y, left + x);
          const isOpaque = pixel[3] > 0 || this.globalCompositeOperation === "copy";
          const start = 4 * (y * canvas.width + x);
          canvas.#pixels.splice(start, isOpaque ? 4 : 0, ...(isOpaque ? pixel : []));
        }
      },
      getImageData: (left, top, width, height) => {
        assert.deepEqual([left, top, width], [0, 0, canvas.width]);
        return { data: canvas.#pixels.slice(0, 4 * width * height) };
      },
    };
  }
}

globalThis.OffscreenCanvas = Canvas;

// A file without a crop_fraction: of 800 x 2800 pixels, it sees 700 x 2450.
const METADATA = { input_shape: [14, 4, 3], preprocessing: {} };
const FIRST_ROW = 175;

test("a large photograph is read by a small canvas, each row once", () => {
  const read = [];
  const at = (y, x) => {
    if (x === 50) {
      read.push(y);
    }
    return [y % 256, x % 256, 0, 255];
  };
  Canvas.sizes = [];
  const pixels = pixelsOf({ width: 800, height: 2800, at }, METADATA);
  assert.equal(pixels.length, 14 * 4 * 3);
  assert.deepEqual(read, Array.from({ length: 2450 }, (_, row) => FIRST_ROW + row));
  assert.equal(Canvas.sizes.length, 1);
  assert.ok(Canvas.sizes[0] <= 1 << 20);
});

test("a file decides how much of a photograph it sees", () => {
  const at = (y) => [y, y, y, 255];
  const topOf = (preprocessing) => {
    const seen = [];
    const bitmap = { width: 64, height: 64, at: (y, x) => (x === 32 && seen.push(y), at(y)) };
    pixelsOf(bitmap, { input_shape: [8, 8, 3], preprocessing });
    return [seen[0], seen.length];
  };
  assert.deepEqual(topOf({ crop_fraction: 1 }), [0, 64]);
  assert.deepEqual(topOf({ crop_fraction: 0.875 }), [4, 56]);
  assert.deepEqual(topOf({}), [4, 56]);
});

test("transparent pixels of a strip are not those of the strip before", () => {
  const secondStrip = FIRST_ROW + Math.floor((1 << 20) / 700);
  const at = (y) => (y < secondStrip ? [200, 200, 200, 255] : [0, 0, 0, 0]);
  const pixels = pixelsOf({ width: 800, height: 2800, at }, METADATA);
  assert.equal(Math.round(pixels[0]), 200);
  assert.deepEqual([...pixels.slice(-12)], Array(12).fill(0));
});

test("a photograph of the size of the file is read as it is", () => {
  const at = (y, x) => [y, x, 7, 255];
  const pixels = pixelsOf({ width: 3, height: 2, at }, { ...METADATA, input_shape: [2, 3, 3] });
  assert.ok(pixels instanceof Uint8Array);
  assert.deepEqual([...pixels], [0, 0, 7, 0, 1, 7, 0, 2, 7, 1, 0, 7, 1, 1, 7, 1, 2, 7]);
});

test("a file that is gone and a file that is no image have lines of their own", async () => {
  globalThis.createImageBitmap = () => Promise.reject(new Error("InvalidStateError"));
  await assert.rejects(decodePhotograph(new Blob(["text"]), "a.png"), {
    message: "a.png is not an image that this browser can decode, or it is too large",
  });
  const gone = { stream: () => new ReadableStream({ start: (stream) => stream.error("gone") }) };
  await assert.rejects(decodePhotograph(gone, "b.png"), {
    message: "b.png can no longer be read, since it was moved or changed; choose it again",
  });
});

test("a photograph of more pixels than the limit is freed and refused in a line", async () => {
  let isClosed = false;
  const close = () => {
    isClosed = true;
  };
  globalThis.createImageBitmap = async () => ({ width: 8200, height: 8200, close });
  await assert.rejects(decodePhotograph(new Blob(), "huge.png"), {
    message: "huge.png has 8200 x 8200 pixels, 67.2 million; the page takes up to 67 million",
  });
  assert.ok(isClosed);
});
