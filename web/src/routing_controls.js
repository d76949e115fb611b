/** The sliders for the largest width and the thresholds. */

export class RoutingControls {
  #section;
  #onChange;
  #file = null;
  #maxWidth = undefined;
  #thresholds = undefined;

  /**
   * @param {HTMLElement} section The section of the page with `#sliders`, `#routing-note` and
   *     `#reset`.
   * @param {function()} onChange Is called when a value changed.
   */
  constructor(section, onChange) {
    this.#section = section;
    this.#onChange = onChange;
    section.querySelector("#reset").addEventListener("click", () => {
      this.show(this.#file);
      onChange();
    });
  }

  /** The options of `RoutedFile.run`. */
  get options() {
    return { maxWidth: this.#maxWidth, thresholds: this.#thresholds };
  }

  /** Shows the sliders of a file, at the values of the file. */
  show(file) {
    this.#file = file;
    this.#maxWidth = undefined;
    this.#thresholds = file.metadata.thresholds && [...file.metadata.thresholds];
    const { routes, steps } = file;
    const last = routes.length - 1;
    const sliders = [];
    if (last > 0) {
      sliders.push(
        slider("Largest width", { max: last, step: 1, value: last }, (position) => {
          // Without a bound the file routes as it was exported.
          this.#maxWidth = position === last ? undefined : routes[position];
          this.#onChange();
          return widthText(file, routes[position]);
        }),
      );
      sliders[0].querySelector("output").textContent = widthText(file, routes[last]);
    }
    this.#thresholds?.forEach((threshold, index) => {
      const name = `Threshold from width ${steps[index]} on`;
      const range = { max: 1, step: "any", value: threshold };
      const made = slider(name, range, (value) => {
        this.#thresholds[index] = value;
        this.#onChange();
        return value.toFixed(3);
      });
      made.querySelector("output").textContent = threshold.toFixed(3);
      sliders.push(made);
    });
    this.#section.querySelector("#sliders").replaceChildren(...sliders);
    this.#section.querySelector("#routing-note").textContent = noteOn(file);
    this.#section.querySelector("#reset").hidden = sliders.length === 0;
    this.#section.hidden = false;
  }
}

/** Returns why a slider is missing or two cannot be combined, in one line. */
function noteOn({ metadata, routes, steps }) {
  if (metadata.routing === "gate+confidence") {
    return "A largest width needs the thresholds of the file, since its gates choose where an image starts.";
  }
  if (steps.length) {
    return "";
  }
  const thresholds = "This file routes only by its gates, so it has no thresholds.";
  return routes.length > 1 ? thresholds : "This file has one route, so there is nothing to choose.";
}

function widthText(file, width) {
  const row = file.metadata.routes.find(({ path }) => path[0] === width);
  return `${width} (${(row.madds / 1e6).toFixed(1)}M MAdds)`;
}

function slider(name, range, textOf) {
  const row = Object.assign(document.createElement("label"), { className: "slider" });
  const input = Object.assign(document.createElement("input"), { type: "range", min: 0, ...range });
  const output = document.createElement("output");
  const title = Object.assign(document.createElement("span"), { textContent: name });
  input.addEventListener("input", () => {
    output.textContent = textOf(input.valueAsNumber);
  });
  row.append(title, input, output);
  return row;
}
