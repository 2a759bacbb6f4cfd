// Puts the page together: the link, the conversations, the views, and the keyboard.

import { Ahead } from "./ahead.js";
import { Chat } from "./chat.js";
import { $, h, icon, keep } from "./dom.js";
import { Link, PROBE_MS } from "./link.js";
import { copyText, offerThemes, toast } from "./notices.js";
import { examples } from "./examples.js";
import { Tray } from "./pictures.js";
import { Settings, askKey, defaults } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store, choose, newConversation, path, shows, siblings } from "./store.js";
import { Announcer, Thread } from "./thread.js";
import { Versions } from "./versions.js";

const METER_MS = 250;
const TOUCH = matchMedia("(hover: none) and (pointer: coarse)");

const prompt = $("#prompt");
const announcer = new Announcer($("#announcer"));
const store = await Store.open();
let meterTimer = null;
let current = newConversation(defaults());

const copy = async (text, button) => announcer.say((await copyText(text, button)) ? "Copied." : "Copying failed.");

// ---- the server ----

const authorized = () => (keep.get("key") ? { headers: { authorization: `Bearer ${keep.get("key")}` } } : {});

/** What is served, asked before each socket: a browser does not tell why a socket was refused. */
async function lookup() {
  let reply;
  try {
    reply = await fetch("/v1/models", { ...authorized(), cache: "no-store", signal: AbortSignal.timeout(PROBE_MS) });
  } catch {
    return { ok: false, retry: true, why: "The server cannot be reached." };
  }
  if (reply.status === 401) {
    const why = keep.get("key") ? "The server did not accept the key that was given." : "";
    return { ok: false, retry: false, ask: "key", why };
  }
  if (reply.status === 403) return { ok: false, retry: false, why: "The server does not serve pages from this address." };
  const { data } = reply.ok ? await reply.json().catch(() => ({})) : {};
  if (!data?.[0]) return { ok: false, retry: true, why: "The server is not ready yet." };
  showModel(data[0]);
  return { ok: true };
}

const link = new Link({
  prepare: lookup,
  open() {
    const url = new URL("/v1/responses", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("ext", "1"); // answers can be resumed on another socket
    const key = keep.get("key");
    return key ? new WebSocket(url, ["openai-beta.responses.v1", `openai-insecure-api-key.${key}`]) : new WebSocket(url);
  },
  async probe() {
    try {
      await fetch("/health", { cache: "no-store", signal: AbortSignal.timeout(PROBE_MS) });
      return true; // any reply will do: the way to the server is open
    } catch {
      return false;
    }
  },
  onstate: showState,
});

async function showState(state, { why = "", ask = null } = {}) {
  const words = { connecting: "Connecting", open: "Connected", waiting: "Reconnecting" };
  const pill = $("#link");
  if (state === "connecting" && pill.dataset.state === "waiting") return; // one try of many: it goes on saying so
  const before = pill.dataset.state;
  pill.dataset.state = state;
  $("#link-text").textContent = words[state] ?? "Not connected";
  pill.title = state === "open" ? "Connected to the server" : "Try to connect now";
  if (state === "open" && before === "waiting") announcer.say("Connected again.");
  if (state === "waiting" && before === "open") announcer.say("The connection was lost. Reconnecting.");
  if (state === "blocked" && ask === "key") {
    await askKey(why);
    link.renew();
  } else if (state === "blocked") toast(why, "Reconnect", () => link.renew());
}

function showModel(model) {
  chat.model = model;
  tray.allow(model.x_pictures === true);
  $("#chips").replaceChildren(...examples(model, ask, toast));
  $("#model-name").textContent = model.id;
  prompt.setAttribute("placeholder", `Message ${model.id.split("/").at(-1)}`);
  const notice = model.x_notice || model.notice || (model.x_embedded || model.embedded
    ? "This is the small checkpoint built into headrace. Start the server with a model of your own for real answers." : "");
  const banner = $("#banner");
  $("p", banner).textContent = notice;
  banner.hidden = !notice || keep.get("notice") === notice;
  showMeter();
}
$("#banner button").addEventListener("click", () => {
  keep.set("notice", $("#banner p").textContent);
  $("#banner").hidden = true;
  prompt.focus();
});
$("#link").addEventListener("click", () => (link.state === "open" ? link.check() : link.connect()));
addEventListener("online", () => link.check());
addEventListener("offline", () => link.check()); // a server on this machine is still there

// ---- conversations ----

const chat = new Chat({ store, link, onupdate: updated, ontiming: (run) => thread.update(run) });
const ahead = (chat.ahead = new Ahead({ link, chat }));
const tray = new Tray({ onchange: changed, refuse: toast });
const thread = new Thread({ act, runOfNode: (node) => chat.runs.get(node.id), runsOf: (c) => chat.runsOf(c) });
const versions = new Versions();
const sidebar = new Sidebar(store, {
  open: (id) => go(id),
  create: () => go(null),
  rename(id, title) {
    store.all.get(id).title = title;
    store.save(store.all.get(id));
    show();
  },
  remove,
  exportAll() {
    const href = URL.createObjectURL(new Blob([store.export()], { type: "application/json" }));
    h("a", { href, download: `headrace-${new Date().toISOString().slice(0, 10)}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
  },
  async importFile(file) {
    try {
      const count = store.import(await file.text());
      toast(`${count} ${count === 1 ? "chat" : "chats"} imported.`);
      sidebar.show();
    } catch (fault) {
      toast(fault.message);
    }
  },
});
const settings = new Settings((conversation) => {
  if (conversation.nodes.length) store.save(conversation);
}, toast);

/** Show conversation `id`, or an empty one. */
function go(id) {
  if ((location.hash.slice(1) || null) !== id) {
    location.hash = id ?? "";
    return; // hashchange comes back here
  }
  const wanted = id && store.all.get(id);
  if (wanted) current = wanted;
  else if (current.nodes.length || (id && !wanted)) current = newConversation(defaults());
  ahead.drop();
  prompt.value = keep.get(`draft.${draftName()}`, "");
  sidebar.drawer(false);
  show();
  if (!TOUCH.matches) prompt.focus();
}
addEventListener("hashchange", () => go(location.hash.slice(1) || null));

const draftName = () => (current.nodes.length ? current.id : "new");

function show() {
  const title = current.title || "New chat";
  $("#title").textContent = title;
  document.title = current.title ? `${title} · headrace` : "headrace";
  $("#empty").hidden = current.nodes.length > 0;
  sidebar.current = current.id;
  sidebar.busy = new Set([...chat.runs.values()].map((run) => run.conversation.id));
  document.body.classList.toggle("flowing", chat.runs.size > 0);
  sidebar.show();
  thread.show(current);
  showComposer();
}

/** News of an answer: from here on every token is drawn by the message's own view. */
function updated(run, error) {
  const seen = run.conversation.id === current.id && shows(current, run.node);
  const ended = !chat.runs.has(run.node.id);
  if (ended || run.answer.firstAt === null) {
    show();
    if (ended && prompt.value) typed(); // what was typed meanwhile can be read now
    if (error?.code === "model_not_found") lookup();
    if (!seen) {
      if (ended && run.conversation.id === current.id) announcer.say("Another version is finished.");
      return;
    }
    if (!ended) announcer.start();
    else if (run.node.error) announcer.end(run.node.text, run.node.error);
    else announcer.end(run.node.text, `Answer finished. ${run.node.measured?.tokens ?? 0} tokens.`);
  } else if (seen) {
    thread.update(run);
    announcer.hear(run.node.text);
    meterTimer ??= setTimeout(showMeter, METER_MS);
  }
}

function act(name, node, value) {
  if (name === "copy") copy(node.text, value);
  else if (name === "focus") prompt.focus();
  else if (name === "branch") turnTo(siblings(current, node)[value.index], value.by);
  else if (name === "versions") {
    const among = siblings(current, node);
    const written = new Set(chat.runsOf(current).flatMap((run) => path(current, run.node.id).map((on) => on.id)));
    versions.ask(among, node, written, (chosen) => turnTo(chosen, 0));
  } else if (name === "resend") {
    thread.follow();
    chat.send(current, value, node.parent, node.pictures);
    prompt.focus();
  } else if (name === "again") {
    thread.follow();
    chat.answer(current, current.nodes.find((other) => other.id === node.parent));
  } else if (name === "rewrite") {
    thread.follow();
    chat.rewrite(current, node, value);
    prompt.focus();
  }
}

/** Show another version of a message; what is written meanwhile on the one before goes on. */
function turnTo(node, by) {
  if (shows(current, node)) return;
  choose(current, node);
  store.save(current);
  show();
  thread.focusVersions(node, by);
  const among = siblings(current, node);
  announcer.say(`Version ${among.indexOf(node) + 1} of ${among.length}.`);
}

async function remove(id) {
  const conversation = store.all.get(id);
  chat.drop(conversation);
  await store.remove(id);
  if (conversation.id === current.id) {
    current = newConversation(defaults());
    go(null);
  }
  show();
  toast(`“${conversation.title}” deleted.`, "Undo", () => {
    store.save(conversation);
    go(id);
    show();
  });
}

store.onchange = (id) => {
  const fresh = store.all.get(id);
  if (id === current.id && fresh && !chat.runsOf(current).length) current = fresh;
  show();
};
store.onfault = () => toast("This browser could not keep the conversation. Export it before you close the page.");

// ---- writing ----

function send() {
  const text = prompt.value.trim();
  if (!text && !tray.pictures.length) return;
  if (chat.runOf(current)) {
    hint("Stop the running answer first (Esc).");
    return;
  }
  keep.set(`draft.${draftName()}`, null);
  prompt.value = "";
  thread.follow();
  chat.send(current, text, current.leaf, tray.take());
  ahead.drop(); // it has been sent
  history.replaceState(null, "", `#${current.id}`);
  show();
  prompt.focus();
}

/** A message that was ready made. */
function ask(text, pictures) {
  prompt.value = text;
  tray.pictures = pictures;
  tray.show();
  send();
}

/** The message being written has changed: the server may read it. */
function typed() {
  ahead.typed(current, prompt.value, tray.pictures.length > 0);
}

function changed() {
  if (prompt.value) typed();
  showComposer();
}

function showComposer() {
  const running = Boolean(chat.runOf(current));
  const button = $("#send");
  button.classList.toggle("stop", running);
  button.setAttribute("aria-label", running ? "Stop" : "Send");
  button.title = running ? "Stop (Esc)" : "Send (Enter)";
  button.disabled = !running && !prompt.value.trim() && !tray.pictures.length;
  button.replaceChildren(icon(running ? "stop" : "send"));
  if (!CSS.supports("field-sizing", "content")) {
    prompt.rows = 1;
    while (prompt.scrollHeight > prompt.clientHeight + 2 && prompt.rows < 9) prompt.rows += 1;
  }
  hint(running ? "Esc stops" : TOUCH.matches ? "" : "Enter sends · Shift+Enter for a new line");
  showMeter();
}

function hint(words) {
  if ($("#hint").textContent !== words) $("#hint").textContent = words;
}

/** How much of the model's context this branch fills. */
function showMeter() {
  clearTimeout(meterTimer);
  meterTimer = null;
  const run = chat.runOf(current);
  const last = path(current).findLast((node) => node.measured?.context)?.measured;
  const used = run ? run.before + run.answer.deltas : last?.context;
  const size = chat.model?.max_model_len;
  const meter = $("#meter");
  meter.hidden = !(used && size);
  if (meter.hidden) return;
  $("progress", meter).value = Math.min(1, used / size);
  meter.classList.toggle("full", used / size > 0.85);
  const about = run || !last.exact ? "≈ " : "";
  $("span", meter).textContent = `${about}${used.toLocaleString("en")} of ${size.toLocaleString("en")} tokens`;
}

$("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chat.runOf(current)) chat.stop(current);
  else send();
});
prompt.addEventListener("input", () => {
  keep.set(`draft.${draftName()}`, prompt.value);
  typed();
  showComposer();
});
prompt.addEventListener("keydown", (event) => {
  if (event.isComposing) return; // Enter belongs to the input method
  if (event.key === "Enter" && !event.shiftKey && !TOUCH.matches) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !prompt.value && !chat.runOf(current)) {
    const last = path(current).findLast((node) => node.role === "user");
    if (!last) return;
    event.preventDefault();
    thread.views.get(last.id).edit();
  }
});
addEventListener("keydown", (event) => {
  const command = event.ctrlKey || event.metaKey;
  if (document.querySelector("dialog[open]") || event.isComposing) return;
  if (command && !event.shiftKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    go(null);
  } else if (event.key === "Escape" && sidebar.open) sidebar.drawer(false);
  else if (event.key === "Escape") chat.stop(current);
  else if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
    const all = store.list();
    const at = all.findIndex((conversation) => conversation.id === current.id);
    const next = all[at + (event.key === "ArrowDown" ? 1 : -1)];
    if (!next) return;
    event.preventDefault();
    go(next.id);
  }
});

// ---- small things ----

$("#log").addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button.closest("figure").querySelector("code").textContent, button);
});
offerThemes();
$("#settings-open").addEventListener("click", () => settings.edit(current));

addEventListener("pagehide", ({ persisted }) => {
  store.leave();
  if (persisted) link.leave();
});
addEventListener("pageshow", ({ persisted }) => persisted && link.connect());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) store.leave();
  else link.check();
});

if (store.fault) store.onfault(store.fault);
go(location.hash.slice(1) || null);
link.connect();
document.documentElement.dataset.ready = "true"; // from here on the page listens
