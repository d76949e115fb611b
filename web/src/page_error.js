/** An error whose message is one clear line for the reader of the page. */
export class PageError extends Error {}

/** Returns the line of an error, and logs one that the page does not expect. */
export function loggedLineOf(error) {
  if (!(error instanceof PageError)) {
    console.error(error);
  }
  return lineOf(error);
}

/** Returns the first line of any error's message. */
export function lineOf(error) {
  const text = error instanceof Error ? error.message : String(error);
  return text.split("\n").find((line) => line.trim())?.trim() || "unknown error";
}
