// The page's small replies: a notice at the bottom, a tick on a copy button, the choice of colours.

import { $, h, icon, keep } from "./dom.js";

const THEMES = ["auto", "light", "dark"];
const LABELS = { auto: "Colours: as the system", light: "Colours: light", dark: "Colours: dark" };
let timer = null;

/** A short notice, with at most one thing to do about it. */
export function toast(words, action = null, run = null) {
  const bar = $("#toast");
  bar.replaceChildren(h("span", {}, words));
  const done = () => {
    bar.hidden = true;
    run();
  };
  if (action) bar.append(h("button", { type: "button", class: "small", click: done }, action));
  bar.hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => {
    bar.hidden = true;
  }, action ? 12_000 : 6_000);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Plain http on another host has no clipboard API; the selection command still works there.
    const area = h("textarea", { class: "offscreen", readonly: true });
    area.value = text;
    const back = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    back?.focus();
    return done;
  }
}

/** Copy, and show on the button whether it worked. */
export async function copyText(text, button) {
  const done = await toClipboard(text);
  const mark = button.querySelector("use");
  mark.setAttribute("href", done ? "#i-check" : "#i-close");
  setTimeout(() => mark.setAttribute("href", "#i-copy"), 1_500);
  return done;
}

function showTheme() {
  const theme = keep.get("theme", "auto");
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = $("#theme");
  button.replaceChildren(icon(theme));
  button.setAttribute("aria-label", LABELS[theme]);
  button.title = LABELS[theme];
}

/** Let the button choose the colours. */
export function offerThemes() {
  showTheme();
  $("#theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(keep.get("theme", "auto")) + 1) % THEMES.length];
    keep.set("theme", next === "auto" ? null : next);
    showTheme();
  });
}
