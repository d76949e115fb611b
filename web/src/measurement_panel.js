/** The section of the page that measures the device and saves the table. */

import { deviceName } from "./device_name.js";
import { latencyChart } from "./latency_chart.js";
import { latencyTable, measureRoutes } from "./measure.js";

export class Measurement {
  #section;
  #engine;
  #file = null;
  #table = null;

  /**
   * @param {HTMLElement} section The section of the page.
   * @param {string} engine Name and version of the runtime.
   * @param {function(function): Promise} attempt Awaits an action and shows its error.
   */
  constructor(section, engine, attempt) {
    this.#section = section;
    this.#engine = engine;
    this.#find("#device").value = deviceName(navigator);
    this.#find("#start").addEventListener("click", () => attempt(() => this.#measure()));
    this.#find("#save").addEventListener("click", () => this.#save());
  }

  /** Shows the section for a file, without results. */
  show(file) {
    this.#file = file;
    this.#table = null;
    this.#section.hidden = false;
    this.#find("#save").hidden = true;
    this.#find("#chart").replaceChildren();
    this.#find("#table").replaceChildren();
  }

  async #measure() {
    const file = this.#file;
    const progress = this.#find("#progress");
    const start = this.#find("#start");
    start.disabled = true;
    progress.hidden = false;
    try {
      const rows = await measureRoutes(file, {
        onProgress: (part) => {
          progress.value = part;
        },
      });
      // Another file was opened meanwhile.
      if (file !== this.#file) {
        return;
      }
      const device = this.#find("#device").value.trim() || deviceName(navigator);
      this.#table = latencyTable(file.metadata, rows, device, this.#engine);
      this.#find("#chart").replaceChildren(latencyChart(rows));
      this.#find("#table").replaceChildren(tableOf(rows));
      this.#find("#save").hidden = false;
    } catch (error) {
      // The runs of a closed file fail, and nobody waits for their times.
      if (file === this.#file) {
        throw error;
      }
    } finally {
      start.disabled = false;
      progress.hidden = true;
      progress.value = 0;
    }
  }

  #save() {
    const text = `${JSON.stringify(this.#table, null, 2)}\n`;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `latency_${this.#table.network}_browser.json`;
    link.click();
    // The browser reads the address after this task.
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  #find(selector) {
    return this.#section.querySelector(selector);
  }
}

function tableOf(rows) {
  const table = document.createElement("table");
  const head = ["path", "MAdds", "median, ms", "fastest, ms"];
  table.createTHead().append(rowOf(head, "th"));
  const body = table.createTBody();
  for (const { path, madds, median_ms: median, min_ms: least } of rows) {
    const million = `${(madds / 1e6).toFixed(2)}M`;
    body.append(rowOf([path.join(", "), million, median.toFixed(3), least.toFixed(3)], "td"));
  }
  return table;
}

function rowOf(cells, tag) {
  const row = document.createElement("tr");
  row.append(...cells.map((cell) => Object.assign(document.createElement(tag), { textContent: cell })));
  return row;
}
