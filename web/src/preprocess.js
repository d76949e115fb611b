/**
 * Preparation of photographs as the evaluation in Python prepares them.
 *
 * The arithmetic is that of float32, step by step, so that the pixels equal those of TensorFlow's
 * bicubic filter with antialiasing to rounding. A canvas would resize by another filter.
 */

const f32 = Math.fround;
const CUBIC_RADIUS = 2;

/**
 * Returns the centre that is cut out of an image before it is resized.
 *
 * @param {number} height
 * @param {number} width
 * @param {[number, number]} target Height and width of the result.
 * @param {number} fraction The fraction of each side that is kept, as `cropFractionOf` returns it.
 * @returns {{top: number, left: number, height: number, width: number}} The whole image if it
 *     has the target's size.
 */
export function cropWindow(height, width, target, fraction) {
  if (height === target[0] && width === target[1]) {
    return { top: 0, left: 0, height, width };
  }
  const shape = [height, width];
  const scale = Math.max(
    ...target.map((size, axis) => f32(f32(size / f32(fraction)) / shape[axis])),
  );
  const [cropHeight, cropWidth] = target.map((size, axis) =>
    Math.min(Math.max(roundHalfToEven(f32(size / scale)), 1), shape[axis]),
  );
  return {
    top: Math.floor((height - cropHeight) / 2),
    left: Math.floor((width - cropWidth) / 2),
    height: cropHeight,
    width: cropWidth,
  };
}

/**
 * Resizes an image by a bicubic filter with antialiasing, and clips it to 0..255.
 *
 * Only the sums of the rows that are under way are kept, so that the image need not be in memory.
 *
 * @param {Iterable<ArrayLike<number>>} strips The rows from top to bottom, in strips of one or
 *     more whole rows of RGBA pixels, from 0 to 255. Alpha is ignored.
 * @param {number} height
 * @param {number} width
 * @param {[number, number]} target Height and width of the result.
 * @returns {Float32Array} `[...target, 3]`, from 0 to 255.
 */
export function resize(strips, height, width, target) {
  const [newHeight, newWidth] = target;
  const rows = spans(height, newHeight);
  const columns = spans(width, newWidth);
  const result = new Float32Array(newHeight * newWidth * 3);
  const sums = new Map();
  const unused = [];
  let y = 0;
  let first = 0;
  for (const strip of strips) {
    for (let place = 0; place < strip.length; place += 4 * width) {
      for (let row = first; row < newHeight && rows[row].start <= y; row++) {
        const { start, weights } = rows[row];
        if (start === y) {
          sums.set(row, unused.pop()?.fill(0) ?? new Float64Array(width * 3));
        }
        addRow(sums.get(row), weights[y - start], strip, place);
      }
      y++;
      for (; first < newHeight && rows[first].start + rows[first].weights.length === y; first++) {
        const line = sums.get(first);
        sums.delete(first);
        // TensorFlow, too, keeps floats between the two axes.
        resizeLine(Float32Array.from(line), columns, result, first * newWidth * 3);
        unused.push(line);
      }
    }
  }
  return result;
}

/** Adds a weighted row of RGBA pixels to the sums of a row of RGB pixels. */
function addRow(sums, weight, pixels, start) {
  for (let from = start, to = 0; to < sums.length; from += 4, to += 3) {
    sums[to] += weight * pixels[from];
    sums[to + 1] += weight * pixels[from + 1];
    sums[to + 2] += weight * pixels[from + 2];
  }
}

/** Writes a row of RGB pixels, resized to other columns, into a result. */
function resizeLine(line, columns, result, place) {
  for (const { start, weights } of columns) {
    for (let channel = 0; channel < 3; channel++) {
      let sum = 0;
      for (let index = 0; index < weights.length; index++) {
        sum += weights[index] * line[(start + index) * 3 + channel];
      }
      // A bicubic filter overshoots at edges.
      result[place++] = Math.min(Math.max(sum, 0), 255);
    }
  }
}

/** Returns the RGB pixels of strips of RGBA pixels, of an image with this many pixels. */
export function withoutAlpha(strips, count) {
  const pixels = new Uint8Array(3 * count);
  let place = 0;
  for (const strip of strips) {
    for (let index = 0; index < strip.length; index += 4) {
      pixels[place++] = strip[index];
      pixels[place++] = strip[index + 1];
      pixels[place++] = strip[index + 2];
    }
  }
  return pixels;
}

/**
 * Returns the input of a file for the pixels of an image of its size.
 *
 * @param {Uint8Array|Float32Array} pixels `[height, width, 3]`, from 0 to 255.
 * @param {object} metadata Metadata of the file.
 * @returns {Uint8Array|Float32Array} Raw pixels if the file takes them, else normalised ones.
 */
export function toInput(pixels, metadata) {
  if (metadata.input_type === "uint8") {
    return Uint8Array.from(pixels, roundHalfToEven);
  }
  const { scale, mean, std } = metadata.preprocessing;
  const input = new Float32Array(pixels.length);
  for (let index = 0; index < pixels.length; index++) {
    const channel = index % 3;
    const value = f32(f32(pixels[index] * f32(scale)) - f32(mean[channel]));
    input[index] = value / f32(std[channel]);
  }
  return input;
}

function roundHalfToEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  const isUp = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0);
  return isUp ? floor + 1 : floor;
}

/** Returns for each pixel of a resized axis the first source pixel and the weights. */
function spans(size, newSize) {
  const inverse = f32(1 / f32(newSize / size));
  const kernelScale = Math.max(inverse, 1);
  const reach = f32(CUBIC_RADIUS * kernelScale);
  return Array.from({ length: newSize }, (_, position) => {
    const centre = f32(f32(position + 0.5) * inverse);
    const clip = (value) => Math.min(Math.max(value, 0), size - 1);
    const start = clip(Math.ceil(f32(f32(centre - reach) - 0.5)));
    const end = clip(Math.floor(f32(f32(centre + reach) - 0.5))) + 1;
    const weights = new Float32Array(end - start);
    let total = 0;
    for (let index = 0; index < weights.length; index++) {
      const distance = f32(f32(start + index + 0.5) - centre);
      weights[index] = cubic(Math.abs(f32(distance * f32(1 / kernelScale))));
      total = f32(total + weights[index]);
    }
    return { start, weights: weights.map((weight) => weight * f32(1 / total)) };
  });
}

/** Keys's cubic kernel with a = -0.5. */
function cubic(x) {
  if (x >= 2) {
    return 0;
  }
  return x >= 1 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : (1.5 * x - 2.5) * x * x + 1;
}
