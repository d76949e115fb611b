/** The page: opens a file, runs photographs and measures the device. */

import { LITERT_VERSION } from "../litert/version.js";
import { Gallery } from "./gallery.js";
import { engineName, loadRuntime } from "./litert_signatures.js";
import { Measurement } from "./measurement_panel.js";
import { PageError, loggedLineOf } from "./page_error.js";
import { RoutedFile } from "./routed_file.js";
import { RoutingControls } from "./routing_controls.js";
import { cropFractionOf } from "./tflite_metadata.js";

const find = (id) => document.getElementById(id);
const gallery = new Gallery(find("gallery"), find("summary"), find("clear"), showError);
const controls = new RoutingControls(find("controls"), () => rerun());
const measurement = new Measurement(find("measure"), engineName(LITERT_VERSION), attempt);
let file = null;
// Opening and running take turns, so that no file is closed while it runs.
let turn = Promise.resolve();
let isQueued = false;
// The page as tests see it.
globalThis.page = {
  get file() {
    return file;
  },
  settled: () => turn,
};

function inTurn(action) {
  turn = turn.then(() => attempt(action));
  return turn;
}

/** Awaits an action and shows its error as one line. */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    showError(loggedLineOf(error));
  }
}

function showError(line) {
  find("error").textContent = line;
  find("error").hidden = !line;
}

async function open(contents) {
  showError("");
  find("status").textContent = "Opening the file ...";
  try {
    const liteRt = await loadRuntime(new URL("../litert/", import.meta.url).href);
    const opened = await RoutedFile.open(liteRt, contents);
    file?.close();
    file = opened;
    find("status").textContent = `${file.name} is open.`;
    showFacts();
    controls.show(file);
    measurement.show(file);
  } catch (error) {
    find("status").textContent = file ? `${file.name} is open.` : "No file is open.";
    throw error;
  }
  await gallery.run(file, controls.options);
}

/** Runs all photographs anew. A slider that moves ends the pass before and queues one only. */
function rerun() {
  gallery.interrupt();
  if (isQueued) {
    return;
  }
  isQueued = true;
  inTurn(async () => {
    isQueued = false;
    if (file) {
      showError("");
      await gallery.run(file, controls.options);
    }
  });
}

function showFacts() {
  const { metadata } = file;
  const [height, width] = metadata.input_shape;
  const routing = metadata.routing ?? (metadata.gates_trained ? "gate" : "gate (not trained)");
  const facts = {
    Network: metadata.network,
    Layout: metadata.layout,
    Weights: metadata.quantize ?? "float32",
    Size: `${(file.bytes / 1e6).toFixed(2)} MB`,
    "Input size": `${height} x ${width}`,
    Crop: `central ${+(100 * cropFractionOf(metadata)).toFixed(2)} % of the shorter side`,
    Routing: routing,
    Gates: file.numGates,
    Routes: file.routes.join(", "),
  };
  const entries = Object.entries(facts).map(([term, value]) => {
    const entry = document.createElement("div");
    entry.append(Object.assign(document.createElement("dt"), { textContent: term }));
    entry.append(Object.assign(document.createElement("dd"), { textContent: value }));
    return entry;
  });
  find("facts").replaceChildren(...entries);
  find("facts").hidden = false;
}

async function contentsOf(files) {
  const contents = [];
  for (const each of files) {
    contents.push({ name: each.name, bytes: new Uint8Array(await each.arrayBuffer()) });
  }
  return contents;
}

/** Takes files that were chosen, dropped or pasted: a .tflite file, photographs, or both. */
function take(files) {
  const models = files.filter((each) => /\.tflite$/i.test(each.name));
  const images = files.filter((each) => !models.includes(each));
  if (models.length) {
    inTurn(async () => open(await contentsOf(models)));
  }
  if (images.length) {
    inTurn(async () => {
      showError("");
      await gallery.add(images, file, controls.options);
    });
  }
}

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) {
    throw new PageError(`${name} is not beside the page (HTTP ${response.status})`);
  }
  return { name: name.split("/").at(-1), bytes: new Uint8Array(await response.arrayBuffer()) };
}

/** Opens the file that `keras_dsnet.export.preview` serves, if this page comes from it. */
async function openServed() {
  if (!document.querySelector('meta[name="preview"]')) {
    return;
  }
  const names = await (await fetch("preview.json")).json();
  const contents = [];
  for (const name of names) {
    contents.push(await fetched(`preview/${encodeURIComponent(name)}`));
    contents.at(-1).name = name;
  }
  await open(contents);
}

for (const id of ["file-input", "image-input"]) {
  find(id).addEventListener("change", (event) => {
    take([...event.target.files]);
    // The same file can be chosen again.
    event.target.value = "";
  });
}
find("example").addEventListener("click", () => {
  inTurn(async () => open([await fetched("example.tflite")]));
});
find("clear").addEventListener("click", () => gallery.clear());
document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragged");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dragged"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragged");
  take([...event.dataTransfer.files]);
});
inTurn(openServed);
