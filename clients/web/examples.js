// What an empty chat offers to ask: for any model, or what the model inside the package is good at.

import { h } from "./dom.js";
import { pictureUrl } from "./pictures.js";

// [the verb, the rest, what is asked]
const USUAL = [
  ["Explain", "how a watermill turns a river into flour"],
  ["Write", "a haiku about the sound of running water"],
  ["Code", "binary search in Python, with a short test", "Write binary search in Python, with a short test"],
  ["Compare", "TCP and UDP in a small table"],
];
const EMBEDDED = [
  ["Calculate", "345 + 278", "What is 345 + 278?"],
  ["Sort", "42, 7, 88, 19, 3"],
  ["Tell", "a story about a fox", "Tell me a story about a fox"],
  ["JSON", "with name Ada, age 36 and city London", "Give me JSON with name Ada, age 36 and city London"],
];
// [the file, what it shows, what is asked]; seen by models inside the package alone: others look at anything
const SEEN = [
  ["example-shapes.png", "Coloured shapes", "What is in this picture?"],
  ["example-chart.png", "A bar chart", "Which bar is the highest?"],
  ["example-line.png", "A line chart", "How does the line run?"],
];

/** Buttons for the empty page. `ask(text, pictures)` is called by a click; `fault(words)` where a picture is not there. */
export function examples(model, ask, fault) {
  const embedded = model.x_embedded === true;
  const chips = (embedded ? EMBEDDED : USUAL).map(([verb, rest, asked = `${verb} ${rest}`]) =>
    h("button", { type: "button", click: () => ask(asked, []) }, h("strong", {}, verb), ` ${rest}`));
  if (!embedded || !model.x_pictures) return chips;
  return [...chips, h("div", { class: "seen" }, ...SEEN.map(([file, shows, asked]) =>
    h("button", { type: "button", title: asked, click: async () => {
      const url = await loaded(file);
      if (url) ask(asked, [url]);
      else fault("The example picture cannot be read.");
    } }, h("img", { src: file, alt: shows, decoding: "async" }), h("span", {}, asked))))];
}

async function loaded(file) {
  try {
    const reply = await fetch(file);
    return reply.ok ? await pictureUrl(await reply.blob()) : null;
  } catch {
    return null;
  }
}
