import assert from "node:assert/strict";
import test from "node:test";

import { deviceName } from "../src/device_name.js";

const WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64)";
const CHROME = `${WINDOWS} AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36`;
const APPLE = "AppleWebKit/605.1.15 (KHTML, like Gecko)";
const IPHONE = `Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) ${APPLE}`;

test("a browser is not taken for one that it names as compatible", () => {
  const agents = {
    [CHROME]: "Chrome 131",
    [`${CHROME} Edg/130.0.0.0`]: "Edge 130",
    [`${CHROME} OPR/116.0.0.0`]: "Opera 116",
    [`${WINDOWS.replace(")", "; rv:133.0)")} Gecko/20100101 Firefox/133.0`]: "Firefox 133",
    [`Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) ${APPLE} Version/17.4 Safari/605.1.15`]: "Safari 17",
    [`${IPHONE} CriOS/131.0.1 Mobile/15E148 Safari/604.1`]: "Chrome 131",
    [`${IPHONE} FxiOS/132.0 Mobile/15E148 Safari/605.1.15`]: "Firefox 132",
  };
  for (const [userAgent, browser] of Object.entries(agents)) {
    assert.equal(deviceName({ userAgent, platform: "P" }), `P, ${browser}`);
  }
});

test("an unknown browser is left out", () => {
  assert.equal(deviceName({ userAgent: "curl/8", platform: "P" }), "P");
  assert.equal(deviceName({ userAgent: "" }), "unknown device");
  const userAgentData = { platform: "Linux" };
  assert.equal(deviceName({ userAgent: CHROME, userAgentData, platform: "P" }), "Linux, Chrome 131");
});
