// The little picture of an answer's time: what it waited, what it read, and one bar for each token, taller for longer
// and coloured by what made it slow. Pointer, touch and arrow keys tell of each part in words.

import { h } from "./dom.js";
import { barWords, leadWords, pool, sumWords } from "./timing.js";

const SVG = "http://www.w3.org/2000/svg";
const BAR = 2;
const STEP = 3;
const LEAD = { least: 3, most: 30 }; // px of what came before the first token
const GAP = 2;
const KINDS = ["queue", "prefill", "steady", "turn", "again", "prompt", "eager", "way", "slow"];

/** Logarithmic from 1 ms to 3 s: an even stream is an even line at any speed, and a stall stands out. */
const height = (ms, full) => Math.max(2, Math.min(1, Math.log10(ms + 1) / 3.5) * full);
const lead = (ms) => Math.min(LEAD.most, LEAD.least + 5 * Math.log2(1 + ms / 20));

export class Timeline {
  constructor() {
    this.parts = []; // {x, words} from left to right
    this.at = null; // the part that is told of, null: none
    this.paths = Object.fromEntries(KINDS.map((kind) => [kind, shape("path", { class: kind })]));
    this.mark = shape("path", { class: "here" });
    this.svg = shape("svg", { "aria-hidden": "true" });
    this.svg.append(...Object.values(this.paths), this.mark);
    this.moment = h("span", { class: "moment", "aria-hidden": "true", hidden: true });
    // A slider: its value is the part that is told of, and every screen reader knows how to walk along it.
    this.element = h("div", { class: "timeline", role: "slider", tabindex: "0", hidden: true, "aria-valuemin": "1",
      pointermove: (event) => this.#point(event), pointerdown: (event) => this.#point(event),
      pointerleave: () => this.element.matches(":focus-visible") || this.#tell(null),
      focus: () => this.element.matches(":focus-visible") && this.#tell(this.at ?? this.parts.length - 1),
      blur: () => this.#tell(null), keydown: (event) => this.#key(event) }, this.svg, this.moment);
  }

  /** As many bars as there is room for; about, while it is hidden. */
  get room() {
    return Math.max(1, Math.floor(((this.element.clientWidth || 160) - 2 * LEAD.most) / STEP));
  }

  /** Draw {queue, prefill, tokens, cached, bars, ...}, or hide where there is nothing to draw yet. */
  show(drawn, live) {
    const { queue, prefill, bars } = drawn;
    this.element.hidden = bars.length < 2 && queue === null;
    if (this.element.hidden) return;
    const full = this.element.clientHeight;
    const room = this.room;
    const lines = Object.fromEntries(KINDS.map((kind) => [kind, ""]));
    const rect = (kind, x, wide, tall) => {
      lines[kind] += `M${x} ${full}h${wide}v-${tall.toFixed(1)}h-${wide}z`;
    };
    this.parts = [];
    let x = 0;
    for (const [part, ms] of queue === null ? [] : [["queue", queue], ["prefill", prefill]]) {
      const wide = Math.round(lead(ms));
      rect(part, x, wide, height(ms, full));
      this.parts.push({ x, wide, tall: full, words: leadWords(part, drawn) });
      x += wide + GAP;
    }
    for (const bar of live ? bars.slice(-room) : pool(bars, room)) {
      rect(bar.cause, x, BAR, height(bar.ms, full));
      this.parts.push({ x, wide: BAR, tall: full, bar });
      x += STEP;
    }
    for (const kind of KINDS) this.paths[kind].setAttribute("d", lines[kind]);
    const label = live ? "Timeline of this answer, while it comes in" : sumWords(drawn);
    if (label !== this.label) this.element.setAttribute("aria-label", label);
    this.label = label;
    this.#tell(this.at === null ? null : Math.min(this.at, this.parts.length - 1));
  }

  #point({ clientX }) {
    const x = clientX - this.element.getBoundingClientRect().left;
    const at = this.parts.findLastIndex((part) => part.x <= x);
    this.#tell(at < 0 ? 0 : at);
  }

  #key(event) {
    const last = this.parts.length - 1;
    const at = this.at ?? last;
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageUp: at + 10, PageDown: at - 10,
      Home: 0, End: last }[event.key];
    if (event.key === "Escape" && !this.moment.hidden) {
      event.stopPropagation();
      this.#tell(null);
    }
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.#tell(Math.max(0, Math.min(last, to)));
  }

  /** Say part `at` in words, beside it; null: none. */
  #tell(at) {
    const part = this.parts[at ?? -1];
    this.at = part ? at : null;
    this.moment.hidden = !part;
    this.mark.setAttribute("d", part ? `M${part.x - 0.5} 0h${part.wide + 1}v${part.tall}h-${part.wide + 1}z` : "");
    const value = String((this.at ?? this.parts.length - 1) + 1);
    this.element.setAttribute("aria-valuemax", String(Math.max(1, this.parts.length)));
    this.element.setAttribute("aria-valuenow", value);
    const words = part ? part.words ?? barWords(part.bar) : "";
    this.element.setAttribute("aria-valuetext", words || this.label || "");
    if (!part) return;
    if (this.moment.textContent !== words) this.moment.textContent = words;
    // Beside the pointer, and never beyond the message, however narrow that is.
    const box = this.element.parentElement.getBoundingClientRect();
    const left = this.element.getBoundingClientRect().left - box.left;
    const wide = this.moment.offsetWidth;
    this.moment.style.left = `${Math.max(-left, Math.min(part.x - wide / 2, box.width - left - wide))}px`;
  }
}

function shape(tag, props) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) element.setAttribute(name, value);
  return element;
}
