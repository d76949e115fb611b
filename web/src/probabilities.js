/** Probabilities of classes. */

const LABELS = 5;

/** Returns the largest softmax probability of logits, or 0 where it is not a number. */
export function largestProbability(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const sum = logits.reduce((total, value) => total + Math.exp(value - largest), 0);
  const confidence = Math.fround(1 / sum);
  return confidence >= 0 ? confidence : 0;
}

/**
 * Returns outputs that are probabilities as they are, and the softmax of others.
 *
 * Probabilities need not add up to 1: those of int8 files are rounded, and those of a sigmoid are
 * independent.
 */
export function probabilities(output) {
  if (output.every((value) => value >= 0 && value <= 1)) {
    return output;
  }
  const largest = output.reduce((a, b) => Math.max(a, b));
  const exponents = output.map((value) => Math.exp(value - largest));
  const total = exponents.reduce((a, b) => a + b, 0);
  return exponents.map((value) => value / total);
}

/** Returns the likeliest classes with their probabilities. */
export function topLabels(output, classNames, count = LABELS) {
  const each = Array.from(probabilities(output), (probability, index) => ({
    name: classNames?.[index] ?? `class ${index}`,
    probability,
  }));
  return each.sort((a, b) => b.probability - a.probability).slice(0, count);
}
