// The list of conversations: newest first, by day, with search, rename, delete, export and import.

import { $, h, iconButton } from "./dom.js";

const DAY_MS = 86_400_000;

function ageOf(time, now = new Date()) {
  const today = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime();
  if (time >= today) return "Today";
  if (time >= today - DAY_MS) return "Yesterday";
  return time >= today - 7 * DAY_MS ? "Last seven days" : "Earlier";
}

export class Sidebar {
  /** `on` holds: open(id), create(), rename(id, title), remove(id), exportAll(), importFile(file). */
  constructor(store, on) {
    Object.assign(this, { store, on, current: null, busy: new Set() });
    this.list = $("#conversations");
    this.search = $("#search");
    this.narrow = matchMedia("(max-width: 820px)");
    $("#new").addEventListener("click", () => on.create());
    $("#drawer-open").addEventListener("click", () => this.drawer(true));
    $("#drawer-close").addEventListener("click", () => this.drawer(false));
    $("#scrim").addEventListener("click", () => this.drawer(false));
    $("#export").addEventListener("click", () => on.exportAll());
    $("#import").addEventListener("click", () => $("#import-file").click());
    $("#import-file").addEventListener("change", ({ target }) => {
      if (target.files[0]) on.importFile(target.files[0]);
      target.value = "";
    });
    this.search.addEventListener("input", () => this.show());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.list.querySelector("a")?.click();
      else if (event.key === "Escape" && this.search.value) {
        event.stopPropagation();
        this.search.value = "";
        this.show();
      }
    });
    this.narrow.addEventListener("change", () => this.drawer(false));
    this.drawer(false);
  }

  get open() {
    return document.body.classList.contains("drawer");
  }

  /** On a narrow screen the list is a drawer over the chat; while it is shut it cannot be reached by keyboard. */
  drawer(open) {
    const was = this.open;
    document.body.classList.toggle("drawer", open);
    $("#scrim").hidden = !open;
    $("#sidebar").inert = this.narrow.matches && !open;
    $("main").inert = this.narrow.matches && open;
    $("#drawer-open").setAttribute("aria-expanded", String(open));
    if (open) $("#new").focus();
    else if (was) $("#drawer-open").focus();
  }

  show() {
    const found = this.store.list(this.search.value);
    const groups = new Map();
    for (const conversation of found) {
      const age = ageOf(conversation.updated);
      groups.set(age, [...(groups.get(age) ?? []), conversation]);
    }
    this.list.replaceChildren(...[...groups].map(([age, conversations]) =>
      h("section", { "aria-label": age }, h("h2", {}, age), h("ul", {}, ...conversations.map((c) => this.#row(c))))));
    if (found.length) return;
    const why = this.search.value ? "Nothing found." : "Your chats stay in this browser.";
    this.list.append(h("p", { class: "quiet-text" }, why));
  }

  #row(conversation) {
    const { id, title } = conversation;
    const current = id === this.current;
    const link = h("a", { href: `#${id}`, "aria-current": current ? "page" : null, title }, title);
    const row = h("li", { class: `${current ? "current" : ""} ${this.busy.has(id) ? "busy" : ""}`, "data-id": id }, link,
      iconButton("pencil", `Rename ${title}`, () => this.#rename(row, conversation)),
      iconButton("trash", `Delete ${title}`, () => this.on.remove(id)));
    link.addEventListener("click", () => this.drawer(false));
    return row;
  }

  #rename(row, conversation) {
    const input = h("input", { "aria-label": "Name of this chat", maxlength: 120 });
    input.value = conversation.title;
    let open = true;
    const done = (keep) => {
      if (!open) return;
      open = false;
      if (keep && input.value.trim()) this.on.rename(conversation.id, input.value.trim());
      this.show();
      this.list.querySelector(`[data-id="${conversation.id}"] a`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") done(true);
      else if (event.key === "Escape") {
        event.stopPropagation();
        done(false);
      }
    });
    input.addEventListener("blur", () => done(true));
    row.replaceChildren(input);
    input.select();
  }
}
