/** Photographs: decoding, and the pixels that a file takes. */

import { PageError } from "./page_error.js";
import { cropWindow, resize, toInput } from "./preprocess.js";

// The limit of the pipelines in Python. Decoded, this many pixels take 270 MB in a browser.
const MOST_PIXELS = 67e6;

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
    throw new PageError(`${name} is not an image that this browser can decode, or it is too large`);
  }
  if (bitmap.width * bitmap.height > MOST_PIXELS) {
    const { width, height } = bitmap;
    bitmap.close();
    throw new PageError(`${name} has ${width} x ${height} pixels; the page takes up to 67 million`);
  }
  return bitmap;
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
  const { top, left, height, width } = cropWindow(bitmap.height, bitmap.width, target);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, left, top, width, height, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Uint8Array(width * height * 3);
  for (let index = 0; index < width * height; index++) {
    pixels.set(data.subarray(4 * index, 4 * index + 3), 3 * index);
  }
  const isOfSize = height === target[0] && width === target[1];
  return isOfSize ? pixels : resize(pixels, height, width, target);
}

/** Returns the input of a file for a photograph. */
export function inputOf(bitmap, metadata) {
  return toInput(pixelsOf(bitmap, metadata), metadata);
}
