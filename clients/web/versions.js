// The list of all versions of one message, to go to any of them. A dialog, so that keyboards and readers find the way.

import { $, h } from "./dom.js";
import { splitThinking } from "./protocol.js";

const SHOWN = 240; // characters of each version: enough to know it again

const STATES = { stopped: "stopped", length: "cut at the token limit", failed: "failed", interrupted: "interrupted" };

/** What tells this version from the others in a few words. */
function about(node, writing) {
  const count = node.measured?.tokens;
  const tokens = count ? `${count.toLocaleString("en")} ${count === 1 ? "token" : "tokens"}` : "";
  const at = new Date(node.at).toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit" });
  return [writing ? "being written" : STATES[node.status], tokens, node.model, at].filter(Boolean).join(" · ");
}

export class Versions {
  constructor() {
    this.dialog = $("#versions");
    this.list = $("#versions ol");
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  /** Show the versions `among`, `node` marked as the one on screen, those whose id is in `written` as being written;
   *  `choose(version)` when one is picked. */
  ask(among, node, written, choose) {
    $("#versions-title").textContent = node.role === "user" ? "Versions of this message" : "Answers to this message";
    this.list.replaceChildren(...among.map((version, i) => {
      const writing = written.has(version.id);
      const text = splitThinking(version.text).text.trim() || (writing ? "…" : "No text.");
      const letters = [...text];
      const short = letters.length > SHOWN ? `${letters.slice(0, SHOWN).join("")}…` : text;
      const pick = () => {
        this.dialog.close();
        choose(version);
      };
      return h("li", {}, h("button", { type: "button", class: writing ? "version busy" : "version", click: pick,
        "aria-current": version === node ? "true" : null },
      h("span", { class: "which" }, `${i + 1}`), h("span", { class: "words" }, short),
      h("small", {}, about(version, writing))));
    }));
    this.dialog.showModal();
    this.list.querySelector("[aria-current]")?.focus();
  }
}
