// Questions and answers: which request goes out, what its answer does to the conversation. No DOM.

import { Answer, cleanSettings, createEvent, isTerminal, measures, splitThinking } from "./protocol.js";
import { commonStart, forkEvent } from "./rewrite.js";
import { addNode, path, shows, titleFrom } from "./store.js";

const STOP_MS = 3_000; // a stop that the server does not confirm within this time is settled here
const KEPT_BARS = 180; // of an answer's timeline
const CHARACTERS_PER_TOKEN = 4; // about, until the server has counted
const PICTURE_TOKENS = 256; // of one picture, about, until the server has counted

const LOST = {
  lanes: "Too many chats are answering at once. Stop one of them and try again.",
  1013: "The server is too busy and closed the connection. Try again in a moment.",
  1012: "The server is restarting. Try again when the connection is back.",
  1009: "This message is larger than the server accepts.",
};

/** The answer so far. A fork tells what it keeps once more, and its reader has that already. */
function textOf({ answer, prefix, fork }) {
  if (!fork) return prefix + answer.text;
  return answer.text.length < prefix.length ? prefix : answer.text;
}

export class Chat {
  constructor({ store, link, onupdate, ontiming = () => {}, now = () => performance.now() }) {
    Object.assign(this, { store, link, onupdate, ontiming, now });
    this.model = null; // {id, max_model_len} of GET /v1/models
    this.ahead = null; // what reads messages while they are typed; see ahead.js
    this.runs = new Map(); // node id -> {conversation, node, answer, exchange, full}
    this.responses = new Map(); // answer node id -> its response, whose text is the node's
    this.chains = new Map(); // answer node id -> {id, epoch}: what the server still remembers on this socket
  }

  /** The answer that comes in on the branch that is shown. */
  runOf(conversation) {
    return this.runsOf(conversation).find((run) => shows(conversation, run.node)) ?? null;
  }

  /** Every answer that comes in: branches of one conversation are written side by side. */
  runsOf(conversation) {
    return [...this.runs.values()].filter((run) => run.conversation.id === conversation.id);
  }

  /** Requests of one lane are answered one after the other, so each branch that is being written has its own. */
  #owner(conversation) {
    const taken = new Set(this.runsOf(conversation).map((run) => run.exchange.owner));
    let owner = conversation.id;
    for (let n = 2; taken.has(owner); n += 1) owner = `${conversation.id}#${n}`;
    return owner;
  }

  /** Add a user message (text, and pictures as data URLs) after `parent` (null: at the root) and ask for its answer. */
  send(conversation, text, parent = conversation.leaf, pictures = []) {
    const shown = pictures?.length ? { pictures } : {};
    const user = addNode(conversation, { parent, role: "user", text, ...shown });
    conversation.title ||= titleFrom(text || "A picture");
    return this.answer(conversation, user);
  }

  /** One more version of the answer `from`: it begins with `text` and goes on by itself. What `from` begins with too
   *  is kept by the server as it is, if it still has that answer. */
  rewrite(conversation, from, text) {
    const user = conversation.nodes.find((other) => other.id === from.parent);
    const kept = commonStart(from.text, text);
    const responseId = this.responses.get(from.id);
    const fork = responseId ? { responseId, kept, text: text.slice(kept.length) } : null;
    return this.answer(conversation, user, text, fork);
  }

  /** Ask for an answer (the first, or one more) to the message `user`; it begins with `prefix`. */
  answer(conversation, user, prefix = "", fork = null) {
    const model = this.model?.id;
    const node = addNode(conversation, { parent: user.id, role: "assistant", text: prefix, status: "waiting", model });
    const run = { prefix, fork, conversation, node, answer: new Answer(this.now()), full: false, continued: false, timer: null,
      before: this.#estimate(conversation, user), window: this.model?.max_model_len ?? null };
    run.exchange = {
      owner: this.#owner(conversation),
      body: (lane, epoch) => this.#body(run, user, lane, epoch),
      event: (event) => this.#event(run, event),
      lost: (why) => this.#lost(run, why),
    };
    this.runs.set(node.id, run);
    this.store.save(conversation);
    this.onupdate(run);
    this.link.send(run.exchange);
    return run;
  }

  /** What a message that is typed in `conversation` would continue, as it is told to the server; null where the server
   *  does not have all of it on this socket, or something runs. `parent`: what a message that is sent now follows. */
  opening(conversation, parent) {
    if (!this.model?.x_type_ahead || (parent === undefined && this.runsOf(conversation).length)) return null;
    parent = parent === undefined ? conversation.leaf : parent;
    const chain = this.chains.get(parent);
    const known = Boolean(chain && chain.epoch === this.link.epoch);
    if (parent && !known) return null;
    return { model: this.model.id, system: conversation.system.trim() ? conversation.system : null,
      previous: known ? chain.id : null };
  }

  /** The answer in `lane` has begun where its prompt was read ahead. */
  began(lane, { tokens_ahead }) {
    const run = [...this.runs.values()].find((other) => other.exchange.lane === lane);
    if (run) run.ahead = tokens_ahead;
  }

  stop(conversation) {
    const run = this.runOf(conversation);
    if (!run || run.timer) return;
    if (this.link.cancel(run.exchange)) {
      run.timer = setTimeout(() => {
        this.#settle(run, "stopped");
        if (this.now() - this.link.heardAt > STOP_MS) this.link.renew("dead");
      }, STOP_MS);
    } else this.#settle(run, "stopped");
  }

  /** Stop, and keep nothing: the conversation is being deleted. */
  drop(conversation) {
    for (const run of this.runsOf(conversation)) {
      this.link.cancel(run.exchange);
      clearTimeout(run.timer);
      run.node.status = "stopped";
      this.runs.delete(run.node.id);
    }
  }

  /** What the prompt will be in tokens, about: the last counted answer, and the rest by its characters per token. */
  #estimate(conversation, user) {
    const messages = path(conversation, user.id);
    const last = messages.findLastIndex((node) => node.measured?.exact);
    const length = (nodes) => nodes.reduce((sum, node) => sum + node.text.length, 0);
    const known = last < 0 ? 0 : messages[last].measured.context;
    const perToken = last < 0 ? CHARACTERS_PER_TOKEN : Math.max(1, length(messages.slice(0, last + 1)) / known);
    const shown = messages.slice(last + 1).reduce((sum, node) => sum + (node.pictures?.length ?? 0), 0);
    return known + shown * PICTURE_TOKENS + Math.ceil(length(messages.slice(last + 1)) / perToken);
  }

  #body(run, user, lane, epoch) {
    const { conversation } = run;
    const asked = path(conversation, user.id);
    const chain = this.chains.get(user.parent);
    run.continued = Boolean(chain && chain.epoch === epoch && !run.full);
    run.epoch = epoch;
    run.answer.sentAt = this.now();
    if (run.fork) return forkEvent(run.fork, { lane, settings: conversation.settings });
    const plain = run.full || run.prefix || user.pictures?.length || (!run.continued && asked.length > 1);
    const typed = plain ? null : this.ahead?.commit(conversation, user, lane, cleanSettings(conversation.settings));
    if (typed) return typed;
    const whole = asked.map(({ role, text, pictures }) => ({ role, text: splitThinking(text).text, pictures }));
    const messages = run.continued ? whole.slice(-1) : whole;
    return createEvent({
      model: this.model?.id, lane, system: conversation.system, settings: conversation.settings,
      messages: run.prefix ? [...messages, { role: "assistant", text: run.prefix }] : messages,
      previous: run.continued ? chain.id : null,
    });
  }

  #event(run, event) {
    const { answer, node, conversation } = run;
    if (!this.runs.has(node.id)) return;
    if (event.type === "x.error") {
      // The server no longer has the answer that this one begins like: it is asked for like any other.
      run.fork = null;
      this.link.send(run.exchange);
      return;
    }
    if (event.type === "response.created" && (run.fork || !run.prefix)) this.responses.set(node.id, event.response.id);
    const code = event.type === "error" ? event.error?.code : null;
    if (code === "previous_response_not_found" && run.continued) {
      // The server forgot: tell it the whole conversation instead.
      run.full = true;
      this.chains.delete(path(conversation, node.id).at(-3)?.id);
      this.link.send(run.exchange);
      return;
    }
    if (code === "websocket_connection_limit_reached" && !run.renewed) {
      run.renewed = true;
      this.link.renew();
      this.link.send(run.exchange);
      return;
    }
    if (event.type.startsWith("x.")) {
      if (answer.timing.hear(event)) this.ontiming(run);
      return;
    }
    if (!answer.apply(event, this.now())) return;
    if (isTerminal(event.type) || event.type === "error") {
      if (answer.responseId && answer.status !== "failed") {
        this.chains.set(node.id, { id: answer.responseId, epoch: run.epoch });
      }
      this.#settle(run, answer.status);
    } else {
      Object.assign(node, { text: textOf(run), status: "streaming" });
      if (answer.thinking) node.thinking = answer.thinking;
      this.store.save(conversation);
      this.onupdate(run);
    }
  }

  #lost(run, why) {
    if (!this.runs.has(run.node.id)) return;
    if (run.exchange.stopped) {
      this.#settle(run, "stopped");
      return;
    }
    const when = run.answer.text ? "while this answer was coming in" : "before an answer came";
    const said = typeof why === "string" && why.includes(" ") ? why : `The connection was lost ${when}.`;
    run.answer.fail({ message: LOST[why] ?? said });
    this.#settle(run, "failed");
  }

  #settle(run, status) {
    const { answer, node, conversation } = run;
    clearTimeout(run.timer);
    answer.status = status;
    Object.assign(node, { text: textOf(run), status, timing: answer.timing.pack(KEPT_BARS) });
    if (answer.thinking) node.thinking = answer.thinking;
    if (answer.error) node.error = answer.error.sentence;
    if (answer.firstAt !== null) node.measured = { ...measures(answer, run.before), window: run.window,
      ...(run.ahead ? { ahead: run.ahead } : {}) };
    conversation.updated = Date.now();
    this.runs.delete(node.id);
    this.store.save(conversation);
    this.store.flush();
    this.onupdate(run, answer.error);
  }
}
