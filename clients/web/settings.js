// The dialogs: settings of one conversation, and the API key.

import { $, h, keep } from "./dom.js";
import { FIELDS, cleanSettings } from "./protocol.js";

export const defaults = () => {
  try {
    return JSON.parse(keep.get("defaults", "{}")) ?? {};
  } catch {
    return {};
  }
};

export class Settings {
  /** `onchange()` after every accepted change of the conversation that `edit` was called with. */
  constructor(onchange, onnotice) {
    this.dialog = $("#settings");
    this.system = $("#system");
    this.inputs = new Map();
    for (const { name, label, min, max, step, help } of FIELDS) {
      const input = h("input", { type: "number", name, min, max, step: step === 1 ? 1 : "any", inputmode: "decimal",
        placeholder: name === "seed" ? "random" : "model's own", "aria-describedby": `help-${name}`, autocomplete: "off" });
      this.inputs.set(name, input);
      $("#fields").append(h("label", {}, h("span", {}, label), input, h("small", { id: `help-${name}` }, help)));
      input.addEventListener("change", () => this.#read(onchange));
    }
    this.system.addEventListener("input", () => this.#read(onchange));
    $("#settings-reset").addEventListener("click", () => {
      this.system.value = "";
      for (const input of this.inputs.values()) input.value = "";
      this.#read(onchange);
    });
    $("#settings-default").addEventListener("click", () => {
      this.#read(onchange);
      const { system, settings } = this.conversation;
      const kept = keep.set("defaults", JSON.stringify({ system, settings }));
      onnotice(kept ? "New chats start with these settings." : "This browser did not keep the settings.");
    });
    // A click beside the dialog closes it.
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  edit(conversation) {
    this.conversation = conversation;
    this.system.value = conversation.system;
    for (const [name, input] of this.inputs) input.value = conversation.settings[name] ?? "";
    this.dialog.showModal();
  }

  #read(onchange) {
    const raw = {};
    for (const [name, input] of this.inputs) {
      input.setAttribute("aria-invalid", String(!input.checkValidity()));
      if (input.value !== "" && input.checkValidity()) raw[name] = input.valueAsNumber;
    }
    this.conversation.system = this.system.value;
    this.conversation.settings = cleanSettings(raw);
    onchange(this.conversation);
  }
}

/** Ask for the key once; resolves when the person has given one. */
export function askKey(why) {
  const dialog = $("#key");
  $("#key-why").textContent = why;
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const key = $("#key-input").value.trim();
      if (!key) return;
      keep.set("key", key);
      $("#key-input").value = "";
      resolve(key);
    };
  });
}
