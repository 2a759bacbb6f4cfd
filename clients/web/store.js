// Conversations: a tree of messages each, kept in the browser's IndexedDB. Edits and second tries are branches.

import { keep } from "./dom.js";
import { checkedPictures } from "./pictures.js";
import { cleanSettings } from "./protocol.js";
import { cleaned } from "./timing.js";

const ROLES = new Set(["user", "assistant"]);
const STATUSES = new Set(["done", "stopped", "length", "failed", "interrupted"]);
const SAVE_MS = 800;

export const newId = () =>
  crypto.getRandomValues(new Uint8Array(12)).reduce((id, byte) => id + byte.toString(16).padStart(2, "0"), "");

export function newConversation(defaults = {}) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system: defaults.system ?? "",
    settings: cleanSettings(defaults.settings), nodes: [], leaf: null };
}

/** Each message of the branch that is shown keeps in mind which one came next: a way back leads to the same end. */
function remember(conversation) {
  const shown = path(conversation);
  for (let i = 1; i < shown.length; i += 1) shown[i - 1].next = shown[i].id;
}

export function addNode(conversation, fields) {
  remember(conversation);
  const node = { id: newId(), at: Date.now(), ...fields };
  conversation.nodes.push(node);
  conversation.leaf = node.id;
  conversation.updated = node.at;
  return node;
}

/** The messages from the first to `leaf`: the branch that is shown. */
export function path(conversation, leaf = conversation.leaf) {
  const byId = new Map(conversation.nodes.map((node) => [node.id, node]));
  const nodes = [];
  for (let node = byId.get(leaf); node; node = byId.get(node.parent)) nodes.push(node);
  return nodes.reverse();
}

export const siblings = (conversation, node) =>
  conversation.nodes.filter((other) => other.parent === node.parent && other.role === node.role);

/** Whether `node` is on the branch that is shown. */
export const shows = (conversation, node) => path(conversation).some((other) => other.id === node.id);

/** Show the branch through `node`, at the end that was shown last, else the newest one. */
export function choose(conversation, node) {
  remember(conversation);
  let end = node;
  for (let next = node; next; ) {
    end = next;
    const after = conversation.nodes.filter((other) => other.parent === end.id);
    next = after.find((other) => other.id === end.next) ?? after.at(-1);
  }
  conversation.leaf = end.id;
}

export function titleFrom(text) {
  const line = text.trim().split("\n", 1)[0].replace(/\s+/g, " ");
  const letters = [...line];
  if (letters.length <= 48) return line || "New chat";
  const cut = letters.slice(0, 48).join("");
  return `${cut.slice(0, Math.max(cut.lastIndexOf(" "), 24))}…`;
}

/** A conversation from a file or an older visit: only known fields of the right type survive. Null if unusable. */
export function checked(raw) {
  if (typeof raw !== "object" || raw === null || !Array.isArray(raw.nodes)) return null;
  const text = (value) => (typeof value === "string" ? value : "");
  const count = (value, fallback) => (Number.isFinite(value) ? value : fallback);
  const now = Date.now();
  const seen = new Set();
  const nodes = [];
  for (const node of raw.nodes) {
    // A parent comes before its child, so a loop cannot be imported.
    if (!node || !ROLES.has(node.role) || !text(node.id) || seen.has(node.id)) continue;
    if (node.parent !== null && !seen.has(node.parent)) continue;
    seen.add(node.id);
    const kept = { id: node.id, parent: node.parent, role: node.role, text: text(node.text), at: count(node.at, now) };
    const pictures = node.role === "user" ? checkedPictures(node.pictures) : [];
    if (pictures.length) kept.pictures = pictures;
    if (text(node.next)) kept.next = node.next;
    if (node.role === "assistant") {
      kept.status = STATUSES.has(node.status) ? node.status : "interrupted";
      if (text(node.thinking)) kept.thinking = node.thinking;
      if (text(node.error)) kept.error = node.error;
      if (text(node.model)) kept.model = node.model;
      if (node.measured && typeof node.measured === "object") {
        const { ttft, rate, tokens, context, window, ahead } = node.measured;
        kept.measured = { ttft: count(ttft, null), rate: count(rate, null), tokens: count(tokens, 0),
          context: count(context, null), window: count(window, null), exact: node.measured.exact === true };
        if (count(ahead, 0) > 0) kept.measured.ahead = ahead;
      }
      if (Array.isArray(node.gaps)) kept.gaps = node.gaps.filter(Number.isFinite).slice(0, 400);
      const timing = cleaned(node.timing);
      if (timing) kept.timing = timing;
    }
    nodes.push(kept);
  }
  if (!nodes.length) return null;
  return { id: text(raw.id) || newId(), title: text(raw.title) || titleFrom(nodes[0].text),
    created: count(raw.created, now), updated: count(raw.updated, now), system: text(raw.system), settings: cleanSettings(raw.settings), nodes,
    leaf: seen.has(raw.leaf) ? raw.leaf : nodes.at(-1).id };
}

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

export class Store {
  /** Opens the database; without one (forbidden by the browser) conversations live until the page is closed. */
  static async open(name = "headrace") {
    const store = new Store();
    store.all = new Map();
    store.dirty = new Set(); // changed since the last write
    store.writing = new Set(); // in a write that has not been confirmed
    store.timer = null;
    store.db = null;
    store.onchange = () => {};
    store.onfault = () => {};
    try {
      const request = indexedDB.open(name, 1);
      request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
      store.db = await done(request);
      for (const raw of await done(store.#objects("readonly").getAll())) store.#take(raw);
    } catch (fault) {
      store.fault = fault;
    }
    for (const raw of keep.journal()) {
      const newer = raw.updated >= (store.all.get(raw.id)?.updated ?? 0);
      if (newer && store.#take(raw)) store.save(store.all.get(raw.id));
      else keep.set(`journal.${raw.id}`, null);
    }
    // Another tab saved or deleted something: show it here too.
    store.channel = new BroadcastChannel(`headrace.${name}`);
    store.channel.onmessage = async ({ data: id }) => {
      if (store.dirty.has(id) || !store.db) return;
      const raw = await done(store.#objects("readonly").get(id));
      if (raw) store.#take(raw);
      else store.all.delete(id);
      store.onchange(id);
    };
    return store;
  }

  list(filter = "") {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    const holds = (c) => {
      const text = [c.title, ...c.nodes.map((node) => node.text)].join("\n").toLowerCase();
      return words.every((word) => text.includes(word));
    };
    return [...this.all.values()].filter((c) => !words.length || holds(c)).sort((a, b) => b.updated - a.updated);
  }

  /** Keep a conversation. Written soon, and at the latest when the page is left (`flush`). */
  save(conversation) {
    this.all.set(conversation.id, conversation);
    this.dirty.add(conversation.id);
    this.timer ??= setTimeout(() => this.flush(), SAVE_MS);
  }

  async flush() {
    clearTimeout(this.timer);
    this.timer = null;
    const ids = [...this.dirty];
    this.dirty.clear();
    if (!this.db || !ids.length) return;
    for (const id of ids) this.writing.add(id);
    try {
      const objects = this.#objects("readwrite");
      for (const id of ids) {
        const conversation = this.all.get(id);
        if (conversation) objects.put(conversation);
        else objects.delete(id);
      }
      await new Promise((resolve, reject) => {
        objects.transaction.oncomplete = resolve;
        objects.transaction.commit();
        objects.transaction.onabort = objects.transaction.onerror = () => reject(objects.transaction.error);
      });
      for (const id of ids) {
        this.writing.delete(id);
        keep.set(`journal.${id}`, null);
        this.channel.postMessage(id);
      }
    } catch (fault) {
      this.onfault(fault);
    }
  }

  /** The page may be gone before the database has written: what is not safe yet goes where writing is immediate. */
  leave() {
    for (const id of new Set([...this.dirty, ...this.writing])) {
      if (this.all.has(id)) keep.set(`journal.${id}`, JSON.stringify(this.all.get(id)));
    }
    return this.flush();
  }

  remove(id) {
    this.all.delete(id);
    this.dirty.add(id);
    return this.flush();
  }

  export(conversations = this.list()) {
    return JSON.stringify({ format: "headrace.conversations", version: 1, conversations }, null, 1);
  }

  /** Adds the conversations of an exported file; returns how many. Throws an Error with a sentence for a person. */
  import(text) {
    let file;
    try {
      file = JSON.parse(text);
    } catch {
      throw new Error("This file is not JSON.");
    }
    if (file?.format !== "headrace.conversations" || !Array.isArray(file.conversations)) {
      throw new Error("This file does not hold headrace conversations.");
    }
    const found = file.conversations.map(checked).filter(Boolean);
    for (const conversation of found) {
      if (this.all.has(conversation.id)) conversation.id = newId();
      this.save(conversation);
    }
    return found.length;
  }

  #take(raw) {
    const conversation = checked(raw);
    if (conversation) this.all.set(conversation.id, conversation);
    return conversation !== null;
  }

  #objects(mode) {
    return this.db.transaction("conversations", mode).objectStore("conversations");
  }
}
