/**
 * Builds the page: `node build.mjs [--out=dist]`, after `npm ci`.
 *
 * The result is a folder of static files that needs no network. There is no bundler: the page's
 * modules are copied as they are, beside LiteRT.js and its WebAssembly files.
 */

import { cp, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));
const { values } = parseArgs({ options: { out: { type: "string", default: "dist" } } });
const out = path.resolve(here, values.out);
const packages = path.join(here, "node_modules", "@litertjs");
// With relaxed SIMD, and for browsers without it.
const WASM_FILES = ["litert_wasm_internal", "litert_wasm_compat_internal"];

const version = JSON.parse(await readPackage("core/package.json")).version;
const core = await readPackage("core/dist/index.js");
const bare = '"@litertjs/wasm-utils"';
if (!core.includes(bare)) {
  throw new Error(`@litertjs/core ${version} no longer imports ${bare}; adapt build.mjs`);
}

await rm(path.join(out, "src"), { recursive: true, force: true });
await rm(path.join(out, "litert"), { recursive: true, force: true });
await mkdir(path.join(out, "litert"), { recursive: true });
for (const name of ["index.html", "style.css", "src"]) {
  await cp(path.join(here, name), path.join(out, name), { recursive: true });
}
// A browser resolves no package names, and an import map would need an inline script.
await writeOut("litert/core.js", withoutMap(core.replace(bare, '"./wasm-utils.js"')));
await writeOut("litert/wasm-utils.js", withoutMap(await readPackage("wasm-utils/dist/index.js")));
await writeOut("litert/version.js", `export const LITERT_VERSION = ${JSON.stringify(version)};\n`);
for (const name of WASM_FILES.flatMap((file) => [`${file}.js`, `${file}.wasm`])) {
  await cp(path.join(packages, "core", "wasm", name), path.join(out, "litert", name));
}
console.log(`built ${path.relative(process.cwd(), out) || "."} with LiteRT.js ${version}`);

async function readPackage(file) {
  try {
    return await readFile(path.join(packages, file), "utf8");
  } catch {
    console.error("error: LiteRT.js is not installed: run `npm ci` in web/");
    process.exit(1);
  }
}

function withoutMap(source) {
  return source.replace(/^\/\/# sourceMappingURL=.*$/m, "");
}

async function writeOut(name, text) {
  await writeFile(path.join(out, name), text);
}
