/** The name of the device and the browser that latencies were measured in. */

// A browser's user agent also names those that it is compatible with, so the order counts.
const BROWSERS = [
  ["Edge", /Edg(?:A|iOS)?\/(\d+)/],
  ["Opera", /OPR\/(\d+)/],
  ["Firefox", /(?:Firefox|FxiOS)\/(\d+)/],
  ["Chrome", /(?:Chrome|CriOS)\/(\d+)/],
  ["Safari", /Version\/(\d+).*Safari/],
];

/** Returns the platform and the browser, such as "Linux x86_64, Firefox 133". */
export function deviceName({ userAgent, userAgentData, platform }) {
  const system = userAgentData?.platform || platform || "unknown device";
  for (const [name, pattern] of BROWSERS) {
    const version = pattern.exec(userAgent)?.[1];
    if (version) {
      return `${system}, ${name} ${version}`;
    }
  }
  return system;
}
