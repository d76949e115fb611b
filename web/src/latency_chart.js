/** A chart of latency against multiply-adds, as SVG. */

const WIDTH = 640;
const HEIGHT = 320;
const EDGE = { left: 64, right: 20, top: 34, bottom: 62 };
const NAMESPACE = "http://www.w3.org/2000/svg";

/**
 * Returns the round numbers that divide an axis from 0 to a largest value.
 *
 * @param {number} largest
 * @param {number} count About how many parts the axis has.
 */
export function ticksTo(largest, count = 5) {
  const rough = largest / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const parts = Math.ceil(largest / step - 1e-9);
  return Array.from({ length: parts + 1 }, (_, index) => Number((index * step).toPrecision(6)));
}

/**
 * Draws the median latency of each route, with a line down to the fastest batch.
 *
 * @param {object[]} rows What `measureRoutes` returns.
 * @returns {SVGElement}
 */
export function latencyChart(rows) {
  const millions = (row) => row.madds / 1e6;
  const xTicks = ticksTo(Math.max(...rows.map(millions)));
  const yTicks = ticksTo(Math.max(...rows.map((row) => row.median_ms)));
  const x = scale(xTicks.at(-1), EDGE.left, WIDTH - EDGE.right);
  const y = scale(yTicks.at(-1), HEIGHT - EDGE.bottom, EDGE.top);
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  svg.append(element("title", {}, "Median latency of each route against its multiply-adds"));
  for (const tick of xTicks) {
    const place = x(tick);
    svg.append(line(place, EDGE.top, place, HEIGHT - EDGE.bottom, "grid"));
    svg.append(text(place, HEIGHT - EDGE.bottom + 22, tick, "middle"));
  }
  for (const tick of yTicks) {
    svg.append(line(EDGE.left, y(tick), WIDTH - EDGE.right, y(tick), "grid"));
    svg.append(text(EDGE.left - 8, y(tick) + 4, tick, "end"));
  }
  svg.append(text((WIDTH + EDGE.left) / 2, HEIGHT - 8, "MAdds of one image (million)", "middle"));
  svg.append(text(0, EDGE.top - 16, "ms", "start"));
  const sorted = rows.toSorted((a, b) => a.madds - b.madds);
  const points = sorted.map((row) => `${x(millions(row))},${y(row.median_ms)}`);
  svg.append(element("polyline", { points: points.join(" "), class: "curve" }));
  for (const row of sorted) {
    const place = x(millions(row));
    svg.append(line(place, y(row.min_ms), place, y(row.median_ms), "spread"));
    const dot = element("circle", { cx: place, cy: y(row.median_ms), r: 4, class: "dot" });
    dot.append(element("title", {}, `width ${row.path[0]}: ${row.median_ms.toFixed(3)} ms`));
    svg.append(dot);
  }
  return svg;
}

function scale(largest, start, end) {
  return (value) => start + ((end - start) * value) / largest;
}

function line(x1, y1, x2, y2, name) {
  return element("line", { x1, y1, x2, y2, class: name });
}

function text(x, y, content, anchor) {
  return element("text", { x, y, "text-anchor": anchor }, content);
}

function element(name, attributes, content = "") {
  const made = document.createElementNS(NAMESPACE, name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.textContent = content;
  return made;
}
