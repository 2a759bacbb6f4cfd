// The conversation on screen: its messages in order, following the newest text unless the reader scrolled away.

import { $, h } from "./dom.js";
import { MessageView } from "./message.js";
import { path, siblings } from "./store.js";

const NEAR = 60; // px from the end that still count as "reading along"
const SPEAK_MS = 2_500;

export class Thread {
  /** `runsOf(conversation)`: all its answers that are coming in. */
  constructor({ act, runOfNode, runsOf }) {
    this.scroller = $("#scroller");
    this.log = $("#log");
    this.jump = $("#jump");
    this.act = act;
    this.runOfNode = runOfNode;
    this.runsOf = runsOf;
    this.views = new Map();
    this.following = true;
    this.lastTop = 0;
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.jump.addEventListener("click", () => this.follow());
    new ResizeObserver(() => this.following && this.#toEnd()).observe(this.scroller);
  }

  show(conversation) {
    if (this.conversation !== conversation) {
      this.conversation = conversation;
      this.views.clear();
      this.log.replaceChildren();
      this.following = true;
    }
    const nodes = path(conversation);
    const wanted = new Set(nodes.map((node) => node.id));
    for (const [id, view] of this.views) {
      if (wanted.has(id)) continue;
      view.element.remove();
      this.views.delete(id);
    }
    nodes.forEach((node, i) => {
      let view = this.views.get(node.id);
      if (!view) {
        view = new MessageView(node, this.act);
        view.ondraw = () => this.following && this.#toEnd();
        this.views.set(node.id, view);
      }
      if (this.log.children[i] !== view.element) this.log.insertBefore(view.element, this.log.children[i] ?? null);
      view.update(this.runOfNode(node), this.#place(conversation, node));
    });
    if (this.following) this.#toEnd();
    this.#mark();
  }

  /** The answer of `run` has news. */
  update(run) {
    const view = this.views.get(run.node.id);
    if (!view) return;
    view.update(this.runOfNode(run.node), this.#place(run.conversation, run.node));
  }

  /** Where a message stands among its versions, and which of the others are being written now. */
  #place(conversation, node) {
    const among = siblings(conversation, node);
    const runs = this.runsOf(conversation).map((run) => path(conversation, run.node.id).map((on) => on.id));
    const busy = among.map((other) => other !== node && runs.some((ids) => ids.includes(other.id)));
    return { index: among.indexOf(node), count: among.length, busy };
  }

  /** The focus goes to the versions of this message: where it was on another one of them. */
  focusVersions(node, by) {
    this.views.get(node.id)?.focusVersions(by);
  }

  follow() {
    this.following = true;
    this.#toEnd();
    this.#mark();
  }

  #toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.lastTop = this.scroller.scrollTop;
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const below = scrollHeight - scrollTop - clientHeight;
    // Growing text also fires scroll events; only a movement upwards is the reader's wish to stay.
    if (scrollTop < this.lastTop - 1 && below > 4) this.following = false;
    else if (below < NEAR) this.following = true;
    this.lastTop = scrollTop;
    this.#mark();
  }

  #mark() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.jump.hidden = this.following || scrollHeight - scrollTop - clientHeight < NEAR;
  }
}

/** Tells screen readers about an answer in whole sentences, a few at a time, instead of token by token. */
export class Announcer {
  constructor(region) {
    this.region = region;
    this.said = 0;
    this.timer = null;
  }

  start() {
    this.said = 0;
    this.say("Answering.");
  }

  /** `text` is the answer so far. */
  hear(text) {
    this.text = text;
    this.timer ??= setTimeout(() => this.#flush(false), SPEAK_MS);
  }

  end(text, closing) {
    this.text = text;
    this.#flush(true);
    this.say(closing);
  }

  say(words) {
    this.region.append(h("p", {}, words));
    while (this.region.children.length > 4) this.region.firstChild.remove();
  }

  #flush(all) {
    clearTimeout(this.timer);
    this.timer = null;
    const rest = this.text.slice(this.said);
    const end = all ? rest.length : Math.max(...[". ", "! ", "? ", "\n"].map((mark) => rest.lastIndexOf(mark))) + 1;
    if (end <= 0) return;
    this.said += end;
    const words = rest.slice(0, end).replace(/[*_`#>|]+/g, " ").trim();
    if (words) this.say(words);
  }
}
