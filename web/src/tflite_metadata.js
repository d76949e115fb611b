/** Metadata of a routed TFLite file, read from its flatbuffer. */

import { PageError } from "./page_error.js";

const METADATA_NAME = "keras_dsnet";
const FORMAT = 1;
const FIELDS = ["input_shape", "input_type", "preprocessing", "num_widths", "routes"];
// What `evaluation_pipeline` keeps by default, for files of versions that wrote no `crop_fraction`.
const OLD_CROP_FRACTION = 0.875;
// Positions of fields in their tables of TFLite's schema.
const MODEL_BUFFERS = 4;
const MODEL_METADATA = 6;
const METADATA_ENTRY_NAME = 0;
const METADATA_ENTRY_BUFFER = 1;
const BUFFER_DATA = 0;
const BUFFER_OFFSET = 1;
const BUFFER_SIZE = 2;

/**
 * Returns the metadata that an export wrote, as `read_metadata` of Python does.
 *
 * @param {Uint8Array} bytes Content of the file.
 * @param {string} name Name of the file, for messages.
 * @returns {object}
 * @throws {PageError} If the file is not a TFLite file with routes.
 */
export function readMetadata(bytes, name) {
  const identifier = String.fromCharCode(...bytes.subarray(4, 8));
  if (identifier !== "TFL3") {
    throw new PageError(`${name} is not a TFLite file`);
  }
  let metadata;
  try {
    const text = entryText(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength));
    metadata = text === null ? null : JSON.parse(text);
  } catch (error) {
    throw new PageError(`${name} is damaged: ${error.message}`);
  }
  if (metadata === null) {
    const error = new PageError(
      `${name} is a TFLite file without routes; make one by ` +
        'model.export(..., format="litert")',
    );
    throw Object.assign(error, { mayBePart: true });
  }
  const isComplete = FIELDS.every((field) => Object.hasOwn(metadata, field));
  if (!isComplete || metadata.format !== FORMAT) {
    throw new PageError(`${name} is of another version of keras_dsnet; export it again`);
  }
  if (metadata.outputs?.includes("boxes")) {
    throw new PageError(`${name} is the file of a detector; this page runs classifiers`);
  }
  if (metadata.include_top === false) {
    throw new PageError(`${name} is the file of a network without a classifier; this page shows classes`);
  }
  const fraction = cropFractionOf(metadata);
  if (!(typeof fraction === "number" && fraction > 0 && fraction <= 1)) {
    throw new PageError(
      `${name} has the crop_fraction ${JSON.stringify(fraction)}; it must be above 0 and at most 1`,
    );
  }
  return metadata;
}

/**
 * Returns the file that has the metadata, and these. The parts of a split export have none.
 *
 * @param {{name: string, bytes: Uint8Array}[]} contents Files, in any order.
 * @throws {PageError} If none has them.
 */
export function mainOf(contents) {
  let shown = null;
  for (const main of contents) {
    try {
      return { main, metadata: readMetadata(main.bytes, main.name) };
    } catch (error) {
      // What is wrong with the main file tells more than that another file is none.
      if (shown === null || (shown.mayBePart && !error.mayBePart)) {
        shown = error;
      }
    }
  }
  throw shown ?? new PageError("No file was opened");
}

/** Returns the fraction of the shorter side of a photograph that the network was evaluated on. */
export function cropFractionOf({ preprocessing }) {
  const isGiven = Object.hasOwn(preprocessing, "crop_fraction");
  return isGiven ? preprocessing.crop_fraction : OLD_CROP_FRACTION;
}

/** Returns the candidate widths of a file's gates, ascending. */
export function routesOf(metadata) {
  const widths = new Set(metadata.routes.flatMap((row) => row.path));
  return [...widths].sort((a, b) => a - b);
}

/** Returns the number of gates, and so of widths in a path. */
export function numGatesOf(metadata) {
  return metadata.routes[0].path.length;
}

function entryText(view) {
  const model = view.getUint32(0, true);
  const entries = tables(view, field(view, model, MODEL_METADATA));
  for (const entry of entries) {
    const name = bytesAt(view, field(view, entry, METADATA_ENTRY_NAME));
    if (decode(name) !== METADATA_NAME) {
      continue;
    }
    const place = field(view, entry, METADATA_ENTRY_BUFFER);
    const index = place ? view.getUint32(place, true) : 0;
    const buffer = tables(view, field(view, model, MODEL_BUFFERS))[index];
    return decode(content(view, buffer));
  }
  return null;
}

function content(view, buffer) {
  const data = field(view, buffer, BUFFER_DATA);
  if (data) {
    return bytesAt(view, data);
  }
  // The data of files above 2 GB lie outside the flatbuffer.
  const offset = Number(view.getBigUint64(field(view, buffer, BUFFER_OFFSET), true));
  const size = Number(view.getBigUint64(field(view, buffer, BUFFER_SIZE), true));
  return new Uint8Array(view.buffer, view.byteOffset + offset, size);
}

/** Returns the place of a table's field, or 0 if the table does not have it. */
function field(view, table, position) {
  const slots = table - view.getInt32(table, true);
  const slot = 4 + 2 * position;
  const offset = slot < view.getUint16(slots, true) ? view.getUint16(slots + slot, true) : 0;
  return offset && table + offset;
}

/** Returns the places of the tables in a vector. */
function tables(view, place) {
  if (!place) {
    return [];
  }
  const vector = place + view.getUint32(place, true);
  const count = view.getUint32(vector, true);
  if (count > view.byteLength) {
    throw new RangeError("a list is longer than the file");
  }
  return Array.from({ length: count }, (_, index) => {
    const entry = vector + 4 + 4 * index;
    return entry + view.getUint32(entry, true);
  });
}

function bytesAt(view, place) {
  const vector = place + view.getUint32(place, true);
  const length = view.getUint32(vector, true);
  return new Uint8Array(view.buffer, view.byteOffset + vector + 4, length);
}

function decode(bytes) {
  return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
}
