// One message of the conversation, as the reader sees it.

import { h, icon, iconButton } from "./dom.js";
import { Markdown } from "./markdown.js";
import { thumbnails } from "./pictures.js";
import { measures, splitThinking } from "./protocol.js";
import { rewriteForm } from "./rewrite.js";
import { Timeline } from "./timeline.js";
import { ofGaps, unpacked } from "./timing.js";

const NOTES = {
  stopped: "Stopped.",
  length: "Cut at the token limit.",
  interrupted: "The page was closed while this answer was coming in.",
};
const NUMBERS_MS = 250; // numbers that change with every frame cannot be read
const number = (value) => value.toLocaleString("en");
const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);

/** The parts of the measured line, ready to show. */
export function measuredLine(measured, windowSize) {
  const { ttft, rate, tokens, context, exact, ahead } = measured;
  const about = exact ? "" : "≈ ";
  const parts = [];
  if (ttft !== null) parts.push(["First token", duration(ttft)]);
  if (ahead) parts.push(["Read ahead", `${number(ahead)} tokens`]);
  if (rate !== null) parts.push(["Speed", `${about}${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tok/s`]);
  parts.push(["Tokens", `${about}${number(tokens)}`]);
  const size = windowSize ? ` / ${number(windowSize)}` : "";
  if (context !== null) parts.push(["Context", about + number(context) + size]);
  return parts;
}

export class MessageView {
  /** `act(name, node, value)` is called for copy, edit, again and branch. */
  constructor(node, act) {
    this.node = node;
    this.act = act;
    this.frame = null;
    this.nextAt = 0;
    this.body = h("div", { class: "body" });
    this.tools = h("div", { class: "tools" });
    const speaker = node.role === "user" ? "You" : "Answer";
    this.element = h("article", { class: `message ${node.role}`, "data-node": node.id, "aria-label": speaker });
    if (node.role === "assistant") {
      this.thought = h("div", { class: "thought" });
      this.thinking = h("details", { class: "thinking", hidden: true }, h("summary", {}, "Thinking"), this.thought);
      this.note = h("div", { class: "note", hidden: true });
      this.numbers = h("dl", { class: "numbers" });
      this.stage = h("span", { class: "stage", hidden: true });
      this.timeline = new Timeline();
      this.line = h("div", { class: "measured" }, this.stage, this.numbers, this.timeline.element);
      this.markdown = new Markdown(this.body);
      this.element.append(this.thinking, this.body, this.note, h("footer", {}, this.line, this.tools));
    } else {
      this.body.classList.add("plain");
      const shown = node.pictures?.length ? h("div", { class: "pictures" }, ...thumbnails(node.pictures)) : null;
      if (shown) this.element.append(shown);
      this.element.append(this.body, h("footer", {}, this.tools));
    }
  }

  /** Show the node as it is now; `run` while its answer comes in, `place` = {index, count, busy} among its versions:
   *  busy[i] says that something of version i is being written while another one is shown. */
  update(run, place) {
    this.run = run;
    const { node, element } = this;
    if (node.role === "user") {
      if (!this.editing && this.body.textContent !== node.text) this.body.textContent = node.text;
      this.body.hidden = !node.text && !this.editing;
    } else {
      const streaming = Boolean(run);
      element.classList.toggle("streaming", streaming);
      element.classList.toggle("waiting", streaming && run.answer.firstAt === null);
      if (streaming) {
        this.#soon();
        if (!this.wasStreaming) this.#note(null);
      } else this.#draw(true);
      const said = Boolean(node.text);
      if (this.wasStreaming !== streaming || this.hadText !== said) this.#tools(place);
      this.hadText = said;
      this.wasStreaming = streaming;
    }
    const key = `${place.index}/${place.count}/${place.busy.map(Number).join("")}`;
    if (key !== this.place) this.#tools(place);
    this.place = key;
  }

  /** Draw in the next frame, or later when the last drawing took long: a frame budget, whatever the text. */
  #soon() {
    this.frame ??= requestAnimationFrame((at) => {
      this.frame = null;
      if (!this.run) return;
      if (at < this.nextAt) this.#soon();
      else this.#draw(false);
    });
  }

  #draw(final) {
    const { node, run } = this;
    const began = performance.now();
    const own = splitThinking(node.text);
    const thinking = [node.thinking, own.thinking].filter(Boolean).join("\n\n");
    this.thinking.hidden = !thinking;
    if (thinking && this.thought.textContent !== thinking) this.thought.textContent = thinking;
    this.thinking.classList.toggle("busy", !final && !own.text);
    this.markdown.show(own.text, !final);
    if (final) this.#note(node.status);
    if (final) this.#numbers();
    else this.numbersTimer ??= setTimeout(() => this.#numbers(), this.numbersTimer === undefined ? 0 : NUMBERS_MS);
    this.#time(run?.answer.timing);
    const cost = performance.now() - began;
    this.nextAt = began + (cost > 4 ? cost * 5 : 0);
    this.ondraw?.();
  }

  /** What the answer waits for, and where its time went so far. */
  #time(timing) {
    const { node, timeline } = this;
    const stage = timing?.stage() ?? "";
    this.stage.hidden = !stage;
    if (this.stage.textContent !== stage) this.stage.textContent = stage;
    if (timing) {
      const { queue, prefill, read } = timing;
      const lead = { queue: timing.first ? queue : null, prefill, tokens: read?.total ?? 0, cached: read?.cached ?? 0 };
      timeline.show({ ...lead, bars: timing.shown(timeline.room, true) }, true);
      return;
    }
    timeline.show(unpacked(node.timing) ?? unpacked(ofGaps(node.gaps ?? [])), false);
  }

  #numbers() {
    clearTimeout(this.numbersTimer);
    this.numbersTimer = null;
    const { node, run } = this;
    const measured = run ? { ...measures(run.answer, run.before), window: run.window, ahead: run.ahead } : node.measured;
    const parts = measured && measured.tokens ? measuredLine(measured, measured.window) : [];
    this.numbers.replaceChildren(...parts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    this.line.classList.toggle("empty", !parts.length);
  }

  #note(status) {
    const said = status === "failed" ? this.node.error ?? "This answer failed." : NOTES[status];
    this.note.hidden = !said;
    this.note.classList.toggle("error", status === "failed" || status === "interrupted");
    if (!said) return;
    const again = h("button", { type: "button", class: "small", click: () => this.act("again", this.node) },
      icon("refresh"), "Try again");
    this.note.replaceChildren(h("p", {}, said), status === "stopped" ? "" : again);
  }

  #tool(name) {
    return this.tools.querySelector(`[data-tool="${name}"]`);
  }

  /** Put the focus on the step in direction `by`, or on what is left of the three when that one leads nowhere. */
  focusVersions(by) {
    const wanted = by < 0 ? "previous" : by > 0 ? "next" : "versions";
    const button = this.#tool(wanted);
    (button && !button.disabled ? button : this.#tool("versions"))?.focus();
  }

  #versions({ index, count, busy }) {
    const { node } = this;
    const go = (by) => index + by in busy && this.act("branch", node, { index: index + by, by });
    const writing = busy.some(Boolean);
    const label = `Version ${index + 1} of ${count}${writing ? ", another one is being written" : ""}`;
    const step = (by, name, tool, words) => iconButton(name, words, () => go(by), { "data-tool": tool,
      class: `quiet step${busy.some((on, i) => on && (i - index) * by > 0) ? " busy" : ""}`, disabled: !(index + by in busy) });
    const group = h("span", { class: "branches", role: "group", "aria-label": "Versions of this message" },
      step(-1, "left", "previous", "Previous version"),
      h("button", { type: "button", class: "pick", "data-tool": "versions", "aria-label": `${label}. Show all`, title: "All versions",
        "aria-haspopup": "dialog", click: () => this.act("versions", node) }, h("span", {}, `${index + 1}/${count}`)),
      step(1, "right", "next", "Next version"));
    group.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      go(by);
    });
    return group;
  }

  #tools(place) {
    const { node } = this;
    const tools = [];
    if (place.count > 1) tools.push(this.#versions(place));
    const add = (tool, name, words, run) => tools.push(iconButton(name, words, run, { "data-tool": tool }));
    if (!this.run) add("copy", "copy", "Copy message", (event) => this.act("copy", node, event.currentTarget));
    if (node.role === "user") add("edit", "pencil", "Edit and resend", () => this.edit());
    else {
      if (node.text) add("rewrite", "pencil", "Edit and go on", () => this.rewrite());
      add("again", "refresh", "Another answer", () => this.act("again", node));
    }
    const held = this.tools.contains(document.activeElement) ? document.activeElement.dataset.tool : null;
    this.tools.replaceChildren(...tools);
    // Buttons are made anew when another version begins or ends: the focus stays where it was.
    if (held) this.#tool(held)?.focus();
  }

  /** Turn an answer into a form; what comes of it is another version. */
  rewrite() {
    if (this.form) return;
    const { form, focus } = rewriteForm(this.node.text, (text) => {
      form.remove();
      this.form = null;
      this.element.classList.remove("rewriting");
      if (text === null) this.act("focus", this.node);
      else this.act("rewrite", this.node, text);
    });
    this.form = form;
    this.element.classList.add("rewriting");
    this.element.insertBefore(form, this.body);
    focus();
  }

  /** Turn a user message into a small form; sending it starts a new branch. */
  edit() {
    if (this.editing) return;
    const area = h("textarea", { "aria-label": "Edit message", rows: 1 });
    area.value = this.node.text;
    const fit = () => {
      area.rows = Math.min(12, area.value.split("\n").length + 1);
    };
    const done = (send) => {
      this.editing = null;
      const text = area.value.trim();
      this.body.textContent = this.node.text;
      this.body.hidden = !this.node.text;
      this.element.classList.remove("editing");
      if (send && (text || this.node.pictures)) this.act("resend", this.node, text);
      else this.act("focus", this.node);
    };
    area.addEventListener("input", fit);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        done(false);
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        done(true);
      }
    });
    this.editing = area;
    this.body.hidden = false;
    this.element.classList.add("editing");
    this.body.replaceChildren(area, h("div", { class: "row" },
      h("button", { type: "button", click: () => done(false) }, "Cancel"),
      h("button", { type: "button", class: "primary", click: () => done(true) }, "Send")));
    fit();
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}
