/** The photographs of the page, each with its result. */

import { lineOf } from "./page_error.js";
import { decodePhotograph, inputOf } from "./photographs.js";
import { topLabels } from "./probabilities.js";

const THUMBNAIL = 480;

export class Gallery {
  #list;
  #summary;
  #clear;
  #showError;
  #entries = [];
  // Numbers the passes, so that a newer one ends an older one.
  #pass = 0;

  /**
   * @param {HTMLElement} list The list of the photographs.
   * @param {HTMLElement} summary The line below the heading.
   * @param {HTMLElement} clear The button that removes all photographs.
   * @param {function(string)} showError Shows a line.
   */
  constructor(list, summary, clear, showError) {
    this.#list = list;
    this.#summary = summary;
    this.#clear = clear;
    this.#showError = showError;
  }

  /** Adds photographs, and runs them if a file is open. */
  async add(blobs, file, options) {
    for (const blob of blobs) {
      const name = blob.name || "pasted image";
      try {
        const bitmap = await decodePhotograph(blob, name);
        const entry = { name, blob, item: document.createElement("li"), file, input: null };
        entry.item.className = "photograph";
        entry.item.append(thumbnail(bitmap, name), line("name", name));
        entry.input = file && inputOf(bitmap, file.metadata);
        bitmap.close();
        entry.result = document.createElement("div");
        entry.item.append(entry.result);
        this.#list.append(entry.item);
        this.#entries.push(entry);
        this.#clear.hidden = false;
        if (file) {
          await this.#runEntry(entry, file, options);
        }
      } catch (error) {
        this.#showError(lineOf(error));
      }
      await nextFrame();
    }
    this.#summarise(file);
  }

  /** Runs all photographs, unless `interrupt` ends it early. */
  async run(file, options) {
    const pass = ++this.#pass;
    for (const entry of this.#entries) {
      if (pass !== this.#pass) {
        return;
      }
      await this.#runEntry(entry, file, options);
      await nextFrame();
    }
    this.#summarise(file);
  }

  /** Ends a pass over the photographs early. */
  interrupt() {
    this.#pass++;
  }

  /** Removes all photographs. */
  clear() {
    this.#pass++;
    this.#entries = [];
    this.#list.replaceChildren();
    this.#clear.hidden = true;
    this.#summarise(null);
  }

  async #runEntry(entry, file, options) {
    if (entry.file !== file) {
      // Decoded anew for another file: the pixels of many photographs would fill the memory.
      const bitmap = await decodePhotograph(entry.blob, entry.name);
      entry.input = inputOf(bitmap, file.metadata);
      entry.file = file;
      bitmap.close();
    }
    const result = file.run(entry.input, options);
    // The first run of a route allocates memory, so the second one is timed.
    const start = performance.now();
    file.run(entry.input, options);
    result.milliseconds = performance.now() - start;
    entry.path = result.path;
    entry.item.dataset.result = JSON.stringify({ ...result, output: [...result.output] });
    entry.result.replaceChildren(...resultElements(result, file.metadata));
  }

  #summarise(file) {
    const count = this.#entries.length;
    if (!count || !file) {
      this.#summary.textContent = count ? "Open a file to run them." : "";
      return;
    }
    const madds = new Map(file.metadata.routes.map((row) => [String(row.path), row.madds]));
    const known = this.#entries.map(({ path }) => madds.get(String(path)));
    const isComplete = file.metadata.routing === undefined && !known.includes(undefined);
    const mean = known.reduce((a, b) => a + b, 0) / count / 1e6;
    const images = count === 1 ? "1 photograph" : `${count} photographs`;
    this.#summary.textContent = isComplete ? `${images}, ${mean.toFixed(2)} million MAdds on average.` : `${images}.`;
  }
}

function resultElements(result, metadata) {
  const path = line("path", "");
  path.append(metadata.routes[0].path.length === 1 ? "width" : "widths");
  for (const width of result.path) {
    path.append(Object.assign(document.createElement("span"), { className: "width", textContent: width }));
  }
  const labels = line("labels", "");
  for (const { name, probability } of topLabels(result.output, metadata.class_names)) {
    const meter = Object.assign(document.createElement("meter"), { max: 1, value: probability });
    meter.setAttribute("aria-label", name);
    const label = Object.assign(document.createElement("span"), { textContent: name, title: name });
    const percent = document.createElement("span");
    percent.textContent = `${(100 * probability).toFixed(1)} %`;
    labels.append(label, meter, percent);
  }
  const confidence = `confidence ${(100 * result.confidence).toFixed(1)} %`;
  return [path, labels, line("figures", `${confidence}, ${result.milliseconds.toFixed(1)} ms`)];
}

function thumbnail(bitmap, name) {
  const canvas = document.createElement("canvas");
  const ratio = Math.min(1, THUMBNAIL / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * ratio));
  canvas.height = Math.max(1, Math.round(bitmap.height * ratio));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  canvas.classList.toggle("small", Math.max(bitmap.width, bitmap.height) < 128);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  return canvas;
}

function line(className, textContent) {
  return Object.assign(document.createElement("div"), { className, textContent, title: textContent });
}

function nextFrame() {
  return new Promise((resolve) => setTimeout(resolve));
}
