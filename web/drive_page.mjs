/**
 * Drives the page in a real browser, for tests/web.
 *
 * Reads one JSON request a line from stdin and answers each with one line on stdout:
 * {"result": ...} or {"error": ...}. A request is a list of a command and its arguments.
 */

import readline from "node:readline";
import { chromium } from "playwright-core";

const [executablePath, ...options] = process.argv.slice(2);
// Chromium's own sandbox does not work for root in a container. The page is our own.
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", ...options] });
const context = await browser.newContext({ acceptDownloads: true });
// Tests may share their cores with other work.
context.setDefaultTimeout(120_000);
let page = null;
let requests = [];
let messages = [];

const commands = {
  async open(url) {
    await page?.close();
    page = await context.newPage();
    requests = [];
    messages = [];
    page.on("request", (request) => requests.push(request.url()));
    page.on("console", (message) => messages.push(`${message.type()}: ${message.text()}`));
    page.on("pageerror", (error) => messages.push(`pageerror: ${error.message}`));
    await page.goto(url);
    await commands.settle();
  },
  settle: () => page.evaluate(() => globalThis.page.settled()),
  async files(selector, paths) {
    await page.setInputFiles(selector, paths);
    await commands.settle();
  },
  async click(selector) {
    await page.click(selector);
    await commands.settle();
  },
  async slide(index, value) {
    const change = (input, to) => {
      input.value = to;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    };
    await page.locator("#sliders input").nth(index).evaluate(change, value);
    await commands.settle();
  },
  async drop(files) {
    await page.dispatchEvent("#drop", "drop", { dataTransfer: await transferOf(files) });
    await commands.settle();
  },
  async paste(files) {
    const send = (data) =>
      document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
    await (await transferOf(files)).evaluate(send);
    await commands.settle();
  },
  evaluate: (expression) => page.evaluate(expression),
  // A photograph without a result has null.
  results: () =>
    page.$$eval(".photograph", (items) =>
      items.map((item) => JSON.parse(item.dataset.result ?? "null")),
    ),
  async measure(path) {
    await page.click("#start");
    await page.waitForSelector("#save:not([hidden])", { timeout: 300_000 });
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
    await download.saveAs(path);
  },
  async screenshot(path, width, height, colorScheme) {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme });
    await page.screenshot({ path, fullPage: true });
  },
  press: (key) => page.keyboard.press(key),
  requests: () => requests,
  messages: () => messages,
};

/** Returns the data of a drop or a paste; files are {name, type, bytes}. */
function transferOf(files) {
  return page.evaluateHandle((given) => {
    const data = new DataTransfer();
    for (const { name, type, bytes } of given) {
      data.items.add(new File([new Uint8Array(bytes)], name, { type }));
    }
    return data;
  }, files);
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [command, ...rest] = JSON.parse(line);
  let answer;
  try {
    answer = { result: (await commands[command](...rest)) ?? null };
  } catch (error) {
    answer = { error: error.message };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
