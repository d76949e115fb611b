/** The photographs of the page, each with its result. */

import { loggedLineOf } from "./page_error.js";
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
  // Counts how often the list was cleared, which ends what is being added.
  #clears = 0;

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
    const clears = this.#clears;
    for (const blob of blobs) {
      const name = blob.name || "pasted image";
      try {
        const entry = await entryOf(blob, name, file);
        if (clears !== this.#clears) {
          return;
        }
        this.#list.append(entry.item);
        this.#entries.push(entry);
        this.#clear.hidden = false;
        if (file) {
          await this.#runEntry(entry, file, options);
        }
      } catch (error) {
        this.#showError(loggedLineOf(error));
      }
      await nextFrame();
      if (clears !== this.#clears) {
        return;
      }
    }
    this.#summarise(file);
  }

  /**
   * Runs all photographs, unless `interrupt` ends it early.
   *
   * One that fails shows its error, and the others run.
   */
  async run(file, options) {
    const pass = ++this.#pass;
    // No photograph keeps the result of another file while it waits, nor where it fails.
    const stale = this.#entries.filter((entry) => entry.file !== file);
    stale.forEach(forget);
    if (stale.length) {
      this.#summary.textContent = "";
    }
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
    this.#clears++;
    this.#entries = [];
    this.#list.replaceChildren();
    this.#clear.hidden = true;
    this.#summarise(null);
  }

  /** Runs a photograph, and shows its result or its error. */
  async #runEntry(entry, file, options) {
    try {
      if (entry.file !== file) {
        // Decoded anew for another file: the pixels of many photographs would fill the memory.
        const bitmap = await decodePhotograph(entry.blob, entry.name);
        entry.input = freed(bitmap, () => inputOf(bitmap, file.metadata));
        entry.file = file;
      }
      this.#show(entry, file, options);
    } catch (error) {
      const text = loggedLineOf(error);
      forgetResult(entry);
      entry.result.replaceChildren(line("failure", text));
      this.#showError(text);
    }
  }

  #show(entry, file, options) {
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

/** Returns the entry of a photograph, with its input if a file is open. */
async function entryOf(blob, name, file) {
  const bitmap = await decodePhotograph(blob, name);
  return freed(bitmap, () => {
    const item = Object.assign(document.createElement("li"), { className: "photograph" });
    const result = document.createElement("div");
    item.append(thumbnail(bitmap, name), line("name", name), result);
    return { name, blob, item, result, file, input: file && inputOf(bitmap, file.metadata) };
  });
}

/** Returns what an action makes of a photograph, whose memory is freed even if it fails. */
function freed(bitmap, action) {
  try {
    return action();
  } finally {
    bitmap.close();
  }
}

/** Removes the input and the result of a photograph, which are those of another file. */
function forget(entry) {
  entry.file = null;
  entry.input = null;
  forgetResult(entry);
}

function forgetResult(entry) {
  entry.path = undefined;
  entry.result.replaceChildren();
  delete entry.item.dataset.result;
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
