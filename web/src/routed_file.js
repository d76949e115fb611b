/** A routed TFLite file: one interface for all layouts, as `DynamicInterpreter` of Python has. */

import { CompiledFile } from "./litert_signatures.js";
import { PageError } from "./page_error.js";
import { probabilities } from "./probabilities.js";
import { StagedRuntime } from "./staged_runtime.js";
import { mainOf, numGatesOf, routesOf } from "./tflite_metadata.js";

export class RoutedFile {
  #compiled = [];
  #runners = new Map();
  #runnerOf;

  /**
   * Opens a file, or the files of a split export together.
   *
   * @param {object} liteRt What `loadRuntime` returns.
   * @param {{name: string, bytes: Uint8Array}[]} contents The file and, if it is split, its parts.
   * @throws {PageError} If there is no file with routes, or a part is missing or of another export.
   */
  static async open(liteRt, contents) {
    const { main, metadata } = mainOf(contents);
    const file = new RoutedFile();
    Object.assign(file, { name: main.name, bytes: main.bytes.length, metadata });
    file.routes = routesOf(metadata);
    file.numGates = numGatesOf(metadata);
    file.steps = metadata.steps ?? [];
    try {
      const trunk = await file.#open(liteRt, main);
      file.#runnerOf = (signature) => trunk.runner(signature);
      if (metadata.layout === "staged") {
        const parts = await file.#openParts(liteRt, contents);
        const runnerOf = (signature) => (parts.get(signature) ?? trunk).runner(signature);
        const runtime = new StagedRuntime(metadata, runnerOf);
        file.#runnerOf = (signature) => runtime.runner(signature);
      }
    } catch (error) {
      file.close();
      throw error;
    }
    return file;
  }

  /** Frees the memory of the file. */
  close() {
    this.#compiled.forEach((compiled) => compiled.close());
    this.#compiled = [];
  }

  /**
   * Runs one image along the path that the file chooses within the bounds.
   *
   * @param {Float32Array|Uint8Array} image The input, as `toInput` returns it.
   * @param {{minWidth?: number, maxWidth?: number, thresholds?: number[]}} options As the
   *     arguments of `DynamicInterpreter.run`.
   * @returns {{output: Float32Array, path: number[], confidence: number}}
   * @throws {PageError} If the file cannot combine bounds with thresholds other than its own.
   */
  run(image, { minWidth, maxWidth, thresholds } = {}) {
    const low = minWidth ?? 0;
    const high = maxWidth ?? this.routes.at(-1);
    const isBounded = minWidth !== undefined || maxWidth !== undefined;
    let limits = thresholds ?? this.metadata.thresholds;
    let signature = isBounded ? "bounded" : "serving_default";
    if (this.steps.length && isBounded) {
      const isStored = limits.every(
        (limit, index) => Math.fround(limit) === Math.fround(this.metadata.thresholds[index]),
      );
      limits = isStored ? null : this.#boundedThresholds(limits, low, high);
      signature = limits ? "tuned" : "bounded";
    } else if (this.steps.length) {
      // The same as "serving_default" with the thresholds of the file, and gives the confidence.
      signature = "tuned";
    }
    const results = this.#run(signature, inputsOf(signature, image, low, high, limits, this));
    const confidence = results.confidence?.[0] ?? results.confidence;
    return {
      output: results.output,
      path: Array.from(results.path),
      confidence: confidence ?? Math.max(...probabilities(results.output)),
    };
  }

  /** Returns thresholds with which "tuned" keeps to bounds, or null if no image can go on. */
  #boundedThresholds(thresholds, low, high) {
    const within = this.steps.filter((step) => low <= step && step <= high);
    const byConfidence = this.metadata.routing === "confidence";
    const afterStart = byConfidence ? within.slice(1) : within.filter((step) => step > low);
    if (!afterStart.length) {
      return null;
    }
    if (!byConfidence || within[0] !== this.steps[0]) {
      throw new PageError(
        `A largest width needs the thresholds of the file, ${this.metadata.thresholds.join(", ")}, ` +
          "since its gates choose where an image starts",
      );
    }
    return thresholds.map((limit, index) => (index < within.length - 1 ? limit : 0));
  }

  #run(signature, inputs) {
    if (!this.#runners.has(signature)) {
      this.#runners.set(signature, this.#runnerOf(signature));
    }
    try {
      return this.#runners.get(signature)(inputs);
    } catch (error) {
      throw new PageError(`${this.name} cannot run; the browser may lack memory: ${error.message ?? error}`);
    }
  }

  async #open(liteRt, { bytes, name }) {
    const compiled = await CompiledFile.open(liteRt, bytes, name);
    this.#compiled.push(compiled);
    return compiled;
  }

  async #openParts(liteRt, contents) {
    const parts = new Map();
    const opened = new Map();
    for (const [signature, { name, sha256 }] of Object.entries(this.metadata.staged.files)) {
      if (!opened.has(name)) {
        const content = contents.find((each) => each.name === name);
        if (!content) {
          throw new PageError(`${this.name} is split; open it together with ${name}`);
        }
        await checkDigest(content, sha256, this.name);
        opened.set(name, await this.#open(liteRt, content));
        this.bytes += content.bytes.length;
      }
      parts.set(signature, opened.get(name));
    }
    return parts;
  }
}

async function checkDigest({ name, bytes }, sha256, mainName) {
  // Browsers offer digests only to pages from this device or over HTTPS.
  if (!globalThis.crypto?.subtle) {
    return;
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const digits = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (digits !== sha256) {
    throw new PageError(`${name} was not written by the export that wrote ${mainName}`);
  }
}

function inputsOf(signature, image, low, high, thresholds, { numGates }) {
  if (signature === "tuned") {
    return { image, thresholds: Float32Array.from(thresholds) };
  }
  if (signature === "serving_default") {
    return { image };
  }
  const bound = (width) => new Int32Array(numGates).fill(width);
  return { image, min_width: bound(low), max_width: bound(high) };
}
