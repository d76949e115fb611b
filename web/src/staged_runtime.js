/**
 * Routing of staged TFLite files, outside the file.
 *
 * It does what keras_dsnet/export/staged_runtime.py does: the runners have the names, the inputs
 * and the results of a routed file's signatures.
 */

import { largestProbability } from "./probabilities.js";

const TRUNK = "trunk";
// No confidence is at most the first limit, and every confidence is below the second one.
const NEVER = -1;
const ALWAYS = 2;

/** Returns the names of the signatures that run a segment, one after the other. */
export function segmentNames(segments, segment, before, width, narrowest) {
  if (segments === 1) {
    return [`route_${width}`];
  }
  if (segment === 1) {
    return [`segment_1_to_${width}`];
  }
  const entry = `segment_${segment}_${before}_to_${width}`;
  const isWhole = before === width && width === narrowest;
  return isWhole ? [entry] : [entry, `segment_${segment}_to_${width}`];
}

export class StagedRuntime {
  #runnerOf;
  #runners = new Map();
  #numGates;
  #widths;
  #gateRoutes;
  #ratios;
  #segments;
  #steps;
  #thresholds;

  /**
   * @param {object} metadata Metadata of the file.
   * @param {function(string): function} runnerOf Returns the runner of a signature: a function
   *     from an object of inputs to an object of outputs, which has `release()`.
   */
  constructor(metadata, runnerOf) {
    const { gate_routes: gateRoutes, choice_ratios: ratios } = metadata.staged;
    this.#runnerOf = runnerOf;
    this.#numGates = metadata.routes[0].path.length;
    const widths = new Set(metadata.routes.flatMap((row) => row.path));
    this.#widths = [...widths].sort((a, b) => a - b);
    this.#gateRoutes = gateRoutes;
    this.#ratios = ratios;
    this.#segments = gateRoutes.length ? this.#numGates : 1;
    this.#steps = metadata.steps ?? [];
    this.#thresholds = metadata.thresholds ?? [];
  }

  /** Returns the function that does what a signature of a routed file does. */
  runner(signature) {
    const runners = {
      serving_default: ({ image }) => this.#run(image, this.#storedStarts(), this.#thresholds),
      tuned: ({ image, thresholds }) => this.#run(image, this.#storedStarts(), thresholds),
      bounded: (inputs) => this.#runBounded(inputs),
    };
    return runners[signature];
  }

  #runBounded({ image, min_width: low, max_width: high }) {
    const last = Math.min(...high);
    const bounds = this.#gateRoutes.length
      ? Array.from(low, (width, gate) => [width, high[gate]])
      : [[Math.max(...low), last]];
    const starts = bounds.map(([from, to]) => this.#startsWithin(from, to));
    return this.#run(image, starts, this.#thresholds, last);
  }

  /** Returns the widths at which an image may start: a list for each gate of the file. */
  #storedStarts() {
    if (this.#gateRoutes.length) {
      return Array(this.#segments).fill(this.#gateRoutes);
    }
    return [this.#steps.slice(0, 1)];
  }

  /** Returns the widths within bounds at which an image may start. */
  #startsWithin(low, high) {
    const isGated = this.#gateRoutes.length > 0;
    const preferred = isGated ? this.#gateRoutes : this.#steps;
    const inside = this.#widths.filter((width) => low <= width && width <= high);
    const right = inside.filter((width) => preferred.includes(width));
    if (right.length) {
      return isGated ? right : right.slice(0, 1);
    }
    const above = this.#widths.filter((width) => width >= low);
    return [inside[0] ?? above[0] ?? this.#widths.at(-1)];
  }

  /** Runs an image from its start on through the steps that its confidences demand. */
  #run(image, starts, thresholds, last = Infinity) {
    const held = [];
    const call = (signature, inputs) => {
      const results = this.#runner(signature)(inputs);
      held.push(results);
      return results;
    };
    try {
      const trunk = call(TRUNK, { image });
      let [path, results] = this.#runPath(call, trunk, starts);
      if (!this.#steps.length) {
        return { output: results.output, path };
      }
      let confidence = largestProbability(results.logits ?? results.output);
      for (const [position, step] of this.#steps.entries()) {
        if (step <= Math.max(...path)) {
          continue;
        }
        const limit = limitOf(thresholds[Math.max(0, position - 1)]);
        if (step > last || confidence > limit) {
          break;
        }
        [path, results] = this.#runPath(call, trunk, Array(this.#segments).fill([step]));
        confidence = largestProbability(results.logits ?? results.output);
      }
      return { output: results.output, path, confidence };
    } finally {
      held.forEach((results) => results.release());
    }
  }

  /** Runs all segments; returns the path, and the results of the last segment. */
  #runPath(call, trunk, allowed) {
    const path = [];
    let results = trunk;
    for (const [index, widths] of allowed.entries()) {
      const width = widths.length === 1 ? widths[0] : this.#choose(index, results, widths);
      const names = segmentNames(this.#segments, index + 1, path.at(-1), width, this.#widths[0]);
      for (const signature of names) {
        const features = Object.entries(results).filter(([name]) => name.startsWith("features"));
        results = call(signature, Object.fromEntries(features));
      }
      path.push(width);
    }
    const repeats = this.#numGates / path.length;
    return [Array(repeats).fill(path).flat(), results];
  }

  /** Returns the best-scored one of some widths, the narrowest of equal ones. */
  #choose(gate, { scores }, widths) {
    const ratios = this.#ratios[gate];
    if (ratios === null) {
      return widths.reduce((best, width) => (scores[width] > scores[best] ? width : best));
    }
    const ratio = Math.fround(1 / (1 + Math.exp(-scores[0])));
    const distance = (width) => Math.fround(Math.abs(ratio - Math.fround(ratios[width])));
    return widths.reduce((best, width) => (distance(width) < distance(best) ? width : best));
  }

  #runner(signature) {
    if (!this.#runners.has(signature)) {
      this.#runners.set(signature, this.#runnerOf(signature));
    }
    return this.#runners.get(signature);
  }
}

function limitOf(threshold) {
  if (threshold <= 0) {
    return NEVER;
  }
  return threshold >= 1 ? ALWAYS : Math.fround(threshold);
}
