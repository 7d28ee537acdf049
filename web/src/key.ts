import { signal } from "@preact/signals";

const NAME = "consort.key";

function kept(): string {
  try {
    return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";
  } catch {
    return ""; // storage is switched off
  }
}

/** The API key, or "". */
export const key = signal(kept());
/** Why the key is asked for: none was sent, or one that is wrong. */
export const keyAsked = signal<"" | "missing" | "wrong">("");

/** Keeps the key until the window is closed, or in the browser. */
export function setKey(text: string, remember: boolean): void {
  key.value = text;
  try {
    sessionStorage.removeItem(NAME);
    localStorage.removeItem(NAME);
    if (text !== "") (remember ? localStorage : sessionStorage).setItem(NAME, text);
  } catch {
    // Without storage the key lives as long as the page.
  }
}
