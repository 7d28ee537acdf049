/** What of the page is open: the view, the panels, the theme; and what screen readers are told. */
import { effect, signal } from "@preact/signals";
import { currentId } from "./chats";

export const view = signal<"chat" | "server">("chat");
export const sidebarOpen = signal(false); // matters where the screen is narrow
export const drawerOpen = signal(false);
export const dialogOpen = signal<"" | "rename" | "delete" | "delete-all">("");
/** Read out by screen readers when it changes. */
export const announcement = signal("");

/** Follows the address: #/server, #/c/ID, or a new conversation. */
export function readAddress(): void {
  const [, page, id] = location.hash.split("/");
  view.value = page === "server" ? "server" : "chat";
  if (page !== "server") currentId.value = page === "c" ? (id ?? "") : "";
  sidebarOpen.value = false;
}

export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];
const THEME = "consort.theme";

function keptTheme(): Theme {
  try {
    return THEMES.find((name) => name === localStorage.getItem(THEME)) ?? "system";
  } catch {
    return "system";
  }
}

export const theme = signal<Theme>(keptTheme());

effect(() => {
  document.documentElement.dataset["theme"] = theme.value;
  try {
    localStorage.setItem(THEME, theme.value);
  } catch {
    // Without storage the theme lives as long as the page.
  }
});

export function focusComposer(): void {
  document.getElementById("composer")?.focus();
}
