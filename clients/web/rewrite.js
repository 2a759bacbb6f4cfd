// An answer written anew from some place on: the form for it, and what the server is asked.

import { h } from "./dom.js";
import { cleanSettings } from "./protocol.js";

/** What two texts begin with, both: never half a character. */
export function commonStart(one, other) {
  const mine = [...one];
  const yours = [...other];
  let count = 0;
  while (count < mine.length && mine[count] === yours[count]) count += 1;
  return mine.slice(0, count).join("");
}

/** One `x.fork`: an answer that keeps `kept` of that response, says `text` next, and goes on by itself. */
export function forkEvent({ responseId, kept, text }, { lane, settings }) {
  const event = { type: "x.fork", response_id: responseId, stream_id: lane, at_char: [...kept].length, ...cleanSettings(settings) };
  if (text) event.force_text = text;
  return event;
}

/** A form with the text of an answer. `done(text)`: the answer shall begin like this and go on; null: leave it. */
export function rewriteForm(text, done) {
  const area = h("textarea", { "aria-label": "Edit the answer", rows: Math.min(16, text.split("\n").length + 3) });
  area.value = text;
  const button = (words, run, props = {}) => h("button", { type: "button", click: run, ...props }, words);
  const form = h("div", { class: "rewrite" }, area, h("div", { class: "row" },
    button("Cancel", () => done(null)),
    button("Try again from the cursor", () => done(area.value.slice(0, area.selectionStart)), { "data-tool": "cursor" }),
    button("Go on from the end", () => done(area.value), { class: "primary", title: "Ctrl+Enter" })));
  area.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      done(null);
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      done(area.value);
    }
  });
  return { form, focus: () => area.focus() };
}
