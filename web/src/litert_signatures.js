/**
 * Signatures of a TFLite file on LiteRT.js.
 *
 * LiteRT.js's own `CompiledModel` knows float32, int32 and uint8 tensors only, while the features
 * of a staged int8 file are int8. The functions below it know every type, and pass features from
 * one signature to the next without a copy. package-lock.json pins the version that has them.
 */

import { loadLiteRt } from "../litert/core.js";
import { PageError, lineOf } from "./page_error.js";

/** The name of the runtime in tables of latencies, with the version that `build.mjs` reads. */
export function engineName(version) {
  return `LiteRT.js ${version}, XNNPACK, WebAssembly`;
}

const ARRAYS = { 1: Float32Array, 2: Int32Array, 3: Uint8Array, 9: Int8Array };
let loading = null;

/**
 * Loads LiteRT.js once, with one thread.
 *
 * @param {string} folder Address of the folder with the WebAssembly files.
 * @throws {PageError} If the browser cannot run it.
 */
export function loadRuntime(folder) {
  if (typeof WebAssembly === "undefined") {
    throw new PageError("This browser has no WebAssembly; take one of the last years");
  }
  loading ??= loadLiteRt(folder).catch((error) => {
    loading = null;
    throw new PageError(
      `LiteRT.js cannot start in this browser, which needs WebAssembly with SIMD: ${lineOf(error)}`,
    );
  });
  return loading;
}

export class CompiledFile {
  #wasm;
  #environment;
  #pointer;
  #model;
  #compiled;
  #signatures = new Map();
  #buffers = [];

  /**
   * Opens a TFLite file.
   *
   * @param {object} liteRt What `loadRuntime` returns.
   * @param {Uint8Array} bytes Content of the file.
   * @param {string} name Name of the file, for messages.
   * @throws {PageError} If the runtime cannot read it.
   */
  static async open(liteRt, bytes, name) {
    const file = new CompiledFile();
    file.#wasm = liteRt.liteRtWasm;
    const environment = liteRt.getDefaultEnvironment();
    file.#environment = environment.liteRtEnvironment;
    try {
      file.#pointer = file.#wasm._malloc(bytes.byteLength);
      if (!file.#pointer) {
        throw new Error("out of memory");
      }
      file.#wasm.HEAPU8.set(bytes, file.#pointer);
      const size = bytes.byteLength;
      file.#model = file.#wasm.loadModel(file.#environment, file.#pointer, size);
      const options = { environment, accelerator: "wasm", cpuOptions: { numThreads: 1 } };
      const filled = { ...options, gpuOptions: {}, webNNOptions: {} };
      file.#compiled = await file.#wasm.compileModel(file.#environment, file.#model, filled);
    } catch (error) {
      file.close();
      throw new PageError(
        `${name} cannot be opened; it is damaged, or the browser lacks memory: ${lineOf(error)}`,
      );
    }
    for (let index = 0; index < file.#model.getNumSignatures(); index++) {
      const signature = file.#model.getSignature(index);
      file.#signatures.set(signature.key(), { index, ...namesOf(signature) });
      signature.delete();
    }
    return file;
  }

  /**
   * Returns the runner of a signature: a function from an object of inputs to one of outputs.
   *
   * Inputs are typed arrays, or the features that another runner returned. The outputs have
   * `release()`, which frees the features.
   */
  runner(signature) {
    const { index, inputs, outputs } = this.#signatures.get(signature);
    const own = inputs.map((_, position) => this.#inputBuffer(index, position));
    return (given) => {
      const buffers = inputs.map((name, position) => {
        if (!ArrayBuffer.isView(given[name])) {
          return given[name];
        }
        this.#write(own[position], given[name]);
        return own[position];
      });
      return this.#outputs(outputs, this.#compiled.run(index, buffers));
    };
  }

  /** Frees the memory of the file. Its runners no longer work. */
  close() {
    this.#buffers.forEach((buffer) => buffer.delete());
    this.#buffers = [];
    this.#compiled?.delete();
    this.#model?.delete();
    if (this.#pointer) {
      this.#wasm._free(this.#pointer);
    }
    this.#compiled = this.#model = this.#pointer = null;
  }

  #outputs(names, buffers) {
    const features = [];
    const results = {};
    for (const [position, name] of names.entries()) {
      const buffer = buffers[position];
      if (name.startsWith("features")) {
        features.push(buffer);
        results[name] = buffer;
      } else {
        results[name] = this.#read(buffer);
        buffer.delete();
      }
    }
    const release = () => features.forEach((buffer) => buffer.delete());
    // Not enumerable, so that only outputs are passed on.
    return Object.defineProperty(results, "release", { value: release });
  }

  #inputBuffer(signature, position) {
    const type = this.#model.getInputTensorType(signature, position);
    const memory = this.#wasm.LiteRtTensorBufferType.HOST_MEMORY;
    const create = this.#wasm.LiteRtTensorBuffer.createManaged;
    const buffer = create(this.#environment, memory, type, type.bytes());
    type.delete();
    this.#buffers.push(buffer);
    return buffer;
  }

  #write(buffer, array) {
    const place = buffer.lock(this.#wasm.LiteRtTensorBufferLockMode.WRITE);
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    this.#wasm.HEAPU8.set(bytes, place);
    buffer.unlock();
  }

  #read(buffer) {
    const type = buffer.tensorType();
    const Values = ARRAYS[type.elementType().value];
    const size = type.bytes();
    type.delete();
    const place = buffer.lock(this.#wasm.LiteRtTensorBufferLockMode.READ);
    const copy = this.#wasm.HEAPU8.slice(place, place + size);
    buffer.unlock();
    return new Values(copy.buffer);
  }
}

function namesOf(signature) {
  return { inputs: strings(signature.inputNames()), outputs: strings(signature.outputNames()) };
}

function strings(vector) {
  const names = Array.from({ length: vector.size() }, (_, index) => vector.get(index));
  vector.delete();
  return names;
}
