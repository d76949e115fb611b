/**
 * Measurement of every route on this device.
 *
 * Browsers round their clocks, some to a millisecond, so a time is that of a batch of runs that
 * takes 50 ms or more. The routes alternate, so that a device that slows down slows all of them.
 */

const BATCH_MS = 50;
const MOST_RUNS = 1 << 16;

/**
 * Measures the latency of every route.
 *
 * With several gates a route is measured on the path that takes its width at every gate.
 *
 * @param {object} file `RoutedFile`.
 * @param {{rounds?: number, batchMs?: number, now?: function, rest?: function,
 *     onProgress?: function}} options `rounds` are the batches of each route, `now` is the clock
 *     in milliseconds, and `rest` is awaited between batches.
 * @returns {Promise<{path: number[], madds: number, min_ms: number, median_ms: number}[]>}
 */
export async function measureRoutes(file, options = {}) {
  const { rounds = 7, batchMs = BATCH_MS, now = () => performance.now() } = options;
  const { rest = nextTask, onProgress = () => {} } = options;
  const size = file.metadata.input_shape.reduce((a, b) => a * b);
  const Values = file.metadata.input_type === "uint8" ? Uint8Array : Float32Array;
  const image = new Values(size);
  const counts = new Map();
  const times = new Map(file.routes.map((route) => [route, []]));
  for (let round = 0; round <= rounds; round++) {
    for (const [position, route] of file.routes.entries()) {
      await rest();
      const run = () => file.run(image, { minWidth: route, maxWidth: route });
      if (round === 0) {
        // The first run allocates memory.
        run();
        counts.set(route, runsPerBatch(run, batchMs, now));
      } else {
        times.get(route).push(timeOf(run, counts.get(route), batchMs, now));
      }
      onProgress((round * file.routes.length + position + 1) / ((rounds + 1) * file.routes.length));
    }
  }
  return file.metadata.routes.map(({ path, madds }) => {
    const measured = times.get(path[0]).sort((a, b) => a - b);
    return { path, madds, min_ms: measured[0], median_ms: median(measured) };
  });
}

/**
 * Returns a table of latencies as `LatencyTable.load` of Python reads it.
 *
 * @param {object} metadata Metadata of the file.
 * @param {object[]} rows What `measureRoutes` returns.
 * @param {string} device Name of the device.
 * @param {string} engine Name and version of the runtime.
 */
export function latencyTable(metadata, rows, device, engine) {
  return {
    format: 1,
    device,
    engine,
    threads: 1,
    network: metadata.network,
    input_shape: metadata.input_shape,
    num_widths: metadata.num_widths,
    quantize: metadata.quantize,
    layout: metadata.layout,
    rows,
  };
}

/** Returns how many runs take at least the time of a batch. */
function runsPerBatch(run, batchMs, now) {
  for (let count = 1; ; count *= 2) {
    const milliseconds = elapsed(run, count, now);
    if (milliseconds >= batchMs || count >= MOST_RUNS) {
      return count;
    }
  }
}

/** Returns the milliseconds of one run, measured over a batch that is long enough. */
function timeOf(run, count, batchMs, now) {
  let milliseconds = elapsed(run, count, now);
  let runs = count;
  // A device that became faster needs more runs.
  while (milliseconds < batchMs && runs < MOST_RUNS) {
    milliseconds += elapsed(run, count, now);
    runs += count;
  }
  return milliseconds / runs;
}

function elapsed(run, count, now) {
  const start = now();
  for (let index = 0; index < count; index++) {
    run();
  }
  return now() - start;
}

function median(sorted) {
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function nextTask() {
  return new Promise((resolve) => setTimeout(resolve));
}
