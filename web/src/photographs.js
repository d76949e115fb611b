/** Photographs: decoding, and the pixels that a file takes. */

import { PageError } from "./page_error.js";
import { cropWindow, resize, toInput, withoutAlpha } from "./preprocess.js";
import { cropFractionOf } from "./tflite_metadata.js";

// The limit of the pipelines in Python. The browser decodes this many pixels into 270 MB; the page
// adds a strip of rows, and no more.
const MOST_PIXELS = 67e6;
// The pixels of a strip, 4 MB. Safari on iOS refuses canvases of more than 16.7 million.
const STRIP_PIXELS = 1 << 20;

/**
 * Decodes an image file, upright.
 *
 * @param {Blob} blob
 * @param {string} name Name of the file, for messages.
 * @returns {Promise<ImageBitmap>}
 * @throws {PageError} If the browser cannot decode it.
 */
export async function decodePhotograph(blob, name) {
  let bitmap;
  try {
    // The pixels as they are stored, without a colour profile, as the pipelines in Python decode,
    // but for transparent ones, which a canvas keeps as black.
    const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    bitmap = await createImageBitmap(blob, { ...options, imageOrientation: "from-image" });
  } catch {
    throw new PageError(`${name} ${await complaintOf(blob)}`);
  }
  if (bitmap.width * bitmap.height > MOST_PIXELS) {
    const { width, height } = bitmap;
    bitmap.close();
    const million = ((width * height) / 1e6).toFixed(1);
    throw new PageError(
      `${name} has ${width} x ${height} pixels, ${million} million; the page takes up to 67 million`,
    );
  }
  return bitmap;
}

/** Returns why a browser has not decoded a file. */
async function complaintOf(blob) {
  try {
    // A slice of a file that is gone is empty, and can be read.
    const reader = blob.stream().getReader();
    await reader.read();
    await reader.cancel();
  } catch {
    return "can no longer be read, since it was moved or changed; choose it again";
  }
  return "is not an image that this browser can decode, or it is too large";
}

/**
 * Returns the pixels of a photograph at the size of a file: its centre, resized.
 *
 * @param {ImageBitmap} bitmap
 * @param {object} metadata Metadata of the file.
 * @returns {Uint8Array|Float32Array} `[height, width, 3]`, from 0 to 255.
 */
export function pixelsOf(bitmap, metadata) {
  const target = metadata.input_shape.slice(0, 2);
  const window = cropWindow(bitmap.height, bitmap.width, target, cropFractionOf(metadata));
  const { height, width } = window;
  const strips = stripsOf(bitmap, window);
  const isOfSize = height === target[0] && width === target[1];
  return isOfSize ? withoutAlpha(strips, height * width) : resize(strips, height, width, target);
}

/** Yields the RGBA pixels of a window of a photograph, in strips of rows from top to bottom. */
function* stripsOf(bitmap, { top, left, height, width }) {
  const most = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const canvas = new OffscreenCanvas(width, most);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  // Transparent pixels replace those of the strip before.
  context.globalCompositeOperation = "copy";
  for (let row = 0; row < height; row += most) {
    const rows = Math.min(most, height - row);
    context.drawImage(bitmap, left, top + row, width, rows, 0, 0, width, rows);
    yield context.getImageData(0, 0, width, rows).data;
  }
}

/** Returns the input of a file for a photograph. */
export function inputOf(bitmap, metadata) {
  return toInput(pixelsOf(bitmap, metadata), metadata);
}
