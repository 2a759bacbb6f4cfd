// One WebSocket for the whole page: lanes, reconnecting, and noticing a dead link. No DOM.
//
// An exchange is one question and its answer: {owner, body(lane, epoch), event(e), lost(why)}. The link adds `phase`
// ("waiting" for a socket, "sent", "live" after response.created, "away" while its socket is lost), `lane`, `shown`,
// `tries`, `stopped`, `responseId`, and what the server tells an answer on by: its `token` and the `last` number heard.

import { isTerminal } from "./protocol.js";

export const LANES = 32; // the server's limit on distinct stream_ids for one socket
const TICK_MS = 5_000;
const SILENT_MS = 15_000; // then /health is asked; two misses of PROBE_MS make the link dead: 15 + 5 + 2 * 10 = 40 s
export const PROBE_MS = 10_000;
const UNANSWERED_MS = 30_000; // a request without response.created on a server that is otherwise fine
const ASLEEP_MS = 45_000; // the timer was not run for this long: the machine slept, the socket is most likely gone
const RESENDS = 2;
const BARREN = 5; // resumes in a row that brought nothing; then the answer is lost
const COMING_BACK = 4100; // close code: we leave this socket, not its answers
// After these the server holds no answer of ours any more.
const FINAL = new Set([1000, 1001, 1008, 1009, "renew", "left"]);

const TOLD = new Set(["x.queue", "x.prefill.progress"]); // of an answer's time, to whoever asked

const realClock = {
  now: () => performance.now(),
  after: (ms, run) => setTimeout(run, ms),
  every: (ms, run) => setInterval(run, ms),
  forget: (timer) => clearTimeout(timer),
};

export class Link {
  /** `prepare()` is asked before each socket: {ok} or {ok: false, retry, why, ask?: "key"}. `open()` makes a socket (it
   *  may throw on a key that cannot be sent), `probe()` resolves to whether the server can be reached at all. */
  constructor({ prepare, open, probe, onstate, clock = realClock, random = Math.random, visible }) {
    Object.assign(this, { prepare, open, probe, onstate, clock, random });
    this.visible = visible ?? (() => !document.hidden);
    this.socket = null;
    this.state = "idle";
    this.epoch = 0; // counts sockets: ids of an older epoch are not continued from
    this.attempt = 0;
    this.turn = 0; // counts calls of connect(), so that a slow prepare() of an older one is dropped
    this.timer = null;
    this.ticking = null;
    this.probing = false;
    this.heardAt = this.openedAt = this.tickedAt = 0;
    this.waiting = [];
    this.flying = [];
    this.onahead = () => {}; // what the server says of a message that is typed
    this.lanes = new Map(); // owner -> lane, least recently used first
  }

  /** Connect now, whatever the state of the backoff. */
  async connect() {
    if (this.socket || this.state === "connecting") return;
    this.clock.forget(this.timer);
    this.ticking ??= this.clock.every(TICK_MS, () => this.#tick());
    this.turn += 1;
    const turn = this.turn;
    this.#say("connecting");
    const verdict = await this.prepare();
    if (turn !== this.turn) return;
    if (!verdict.ok && !verdict.retry) {
      this.#block(verdict.why, verdict.ask);
      return;
    }
    if (!verdict.ok) {
      this.attempt += 1;
      this.#wait(verdict.why);
      return;
    }
    let socket;
    try {
      socket = this.open();
    } catch {
      this.#block("This key has characters that a browser cannot send. Check it and try again.", "key");
      return;
    }
    this.socket = socket;
    let opened = false;
    const giveUp = this.clock.after(PROBE_MS, () => {
      if (socket === this.socket && !opened) this.#down("timeout", false);
    });
    socket.onopen = () => {
      opened = true;
      this.clock.forget(giveUp);
      this.epoch += 1;
      this.lanes.clear();
      this.openedAt = this.heardAt = this.tickedAt = this.clock.now();
      this.#say("open");
      for (const exchange of this.waiting.splice(0)) this.#transmit(exchange);
    };
    socket.onmessage = (message) => this.#receive(message.data);
    socket.onclose = (close) => {
      this.clock.forget(giveUp);
      this.#down(close.code, opened, close.reason);
    };
  }

  send(exchange) {
    Object.assign(exchange, { phase: "waiting", shown: false, stopped: false, responseId: null, token: null, last: -1 });
    exchange.tries ??= 0;
    if (this.state === "open") this.#transmit(exchange);
    else {
      this.waiting.push(exchange);
      this.connect();
    }
  }

  /** Stop an exchange. True: a terminal event will follow. False: nothing more is heard from it. */
  cancel(exchange) {
    exchange.stopped = true;
    if (exchange.phase === "live") {
      this.socket.send(JSON.stringify({ type: "response.cancel", response_id: exchange.responseId }));
      return true;
    }
    // Away: the server works on until it hears of it, so it is resumed to be cancelled.
    if (exchange.phase === "away") return false;
    // Sent but not created: the cancel needs the id, so it goes out with response.created (see #receive).
    this.waiting = this.waiting.filter((other) => other !== exchange);
    return false;
  }

  /** A word of ours beside the exchanges; lost if there is no socket. */
  say(event) {
    if (this.state === "open") this.socket.send(JSON.stringify(event));
  }

  /** The lane in which the next exchange of `owner` will go, or null. */
  lane(owner) {
    return this.#lane(owner);
  }

  /** The request that waits in this lane was not taken: say it anew, as its body is now. */
  resend(lane) {
    const exchange = this.flying.find((x) => x.lane === lane && x.phase === "sent");
    if (!exchange) return;
    this.flying = this.flying.filter((x) => x !== exchange);
    this.#transmit(exchange);
  }

  /** Leave this socket for a new one (its hour is over, or the key changed); unfinished exchanges follow. */
  renew(why = "renew") {
    if (this.socket) this.#down(why, true);
    this.clock.forget(this.timer);
    this.turn += 1;
    this.attempt = 0;
    this.state = "idle";
    this.connect();
  }

  /** The page goes into the browser's back/forward cache: nobody watches, so nothing should be computed. */
  leave() {
    if (this.socket) this.#down("left", true);
    this.clock.forget(this.timer);
    this.turn += 1;
    this.#say("idle");
  }

  /** Ask at once whether the server is there: after `offline`, `online`, or a return to the tab. */
  async check() {
    if (this.state !== "open") {
      if (this.state === "waiting") this.connect();
      return;
    }
    if (this.probing) return;
    this.probing = true;
    const socket = this.socket;
    const alive = (await this.probe()) || (await this.probe());
    this.probing = false;
    if (socket !== this.socket) return;
    if (!alive) {
      this.#down("dead", true);
      return;
    }
    const now = this.clock.now();
    this.heardAt = now;
    // The server answers others, yet not this socket: a middlebox forgot it and only a new one helps.
    const unanswered = this.flying.some((x) => x.phase === "sent" && now - x.sentAt > UNANSWERED_MS);
    if (unanswered) this.#down("unanswered", true);
  }

  #tick() {
    const now = this.clock.now();
    const asleep = now - this.tickedAt > ASLEEP_MS;
    this.tickedAt = now;
    if (this.state !== "open") return;
    // A hidden tab's timers are slowed on purpose, so only a visible one can tell sleep by them.
    if (asleep && this.visible() && now - this.heardAt > ASLEEP_MS) this.#down("asleep", true);
    else if (now - this.heardAt >= SILENT_MS && (this.flying.length || this.visible())) this.check();
  }

  #transmit(exchange) {
    const lane = this.#lane(exchange.owner);
    if (!lane) {
      exchange.lost("lanes");
      return;
    }
    if (exchange.phase === "away") {
      this.#resume(exchange, lane);
      return;
    }
    Object.assign(exchange, { lane, phase: "sent", sentAt: this.clock.now() });
    this.flying.push(exchange);
    this.socket.send(JSON.stringify(exchange.body(lane, this.epoch)));
  }

  /** The answer goes on behind the last event that was heard. */
  #resume(exchange, lane) {
    Object.assign(exchange, { lane, phase: "live" });
    this.flying.push(exchange);
    this.socket.send(JSON.stringify({ type: "x.resume", response_id: exchange.responseId, stream_id: lane,
      starting_after: exchange.last, resume_token: exchange.token }));
    if (exchange.stopped) this.cancel(exchange);
  }

  /** The owner's lane; a new owner gets a fresh one, or the one that has been idle longest. */
  #lane(owner) {
    let lane = this.lanes.get(owner);
    if (!lane && this.lanes.size < LANES) lane = `chat-${this.lanes.size}`;
    if (!lane) {
      const idle = [...this.lanes].find(([, name]) => !this.flying.some((x) => x.lane === name));
      if (!idle) return null;
      this.lanes.delete(idle[0]);
      lane = idle[1];
    }
    this.lanes.delete(owner);
    this.lanes.set(owner, lane);
    return lane;
  }

  #receive(data) {
    this.heardAt = this.clock.now();
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      console.error("headrace: the server sent something that is not JSON");
      return;
    }
    if (event.type.startsWith("x.input.") || (event.type === "x.error" && ["ahead", "commit"].includes(event.event_id))) {
      this.onahead(event);
      return;
    }
    if (event.type === "x.step") {
      // One for all answers of this socket that were in the step.
      for (const own of event.streams) {
        this.flying.find((x) => x.phase === "live" && x.responseId === own.response_id)?.event({ ...event, own });
      }
      return;
    }
    const inLane = (phase) => this.flying.find((x) => x.lane === event.stream_id && x.phase === phase);
    let exchange;
    if (event.type === "error") {
      // An error frame means that no response exists, so it belongs to the oldest request that is not live yet.
      exchange = event.stream_id === undefined ? this.flying.find((x) => x.phase === "sent") : inLane("sent");
    } else if (event.type === "response.created") {
      exchange = inLane("sent");
      if (exchange) {
        exchange.phase = "live";
        exchange.responseId = event.response.id;
        exchange.token = event.response.x_resume_token ?? null;
        if (exchange.stopped) this.cancel(exchange);
      }
    } else exchange = inLane("live");
    if (event.type === "x.error" && !exchange) this.#refused(inLane("sent"), event);
    if (!exchange) return;
    if (event.type.startsWith("x.")) {
      if (event.type === "x.error") this.#forget(exchange);
      if (TOLD.has(event.type)) exchange.event(event);
      return;
    }
    if (event.sequence_number !== undefined) Object.assign(exchange, { last: event.sequence_number, barren: 0 });
    if (event.type.endsWith(".delta")) exchange.shown = true;
    if (event.type === "error" || isTerminal(event.type)) {
      this.flying = this.flying.filter((x) => x !== exchange);
      exchange.phase = "done";
    }
    exchange.event(event);
  }

  /** What was asked for by a verb of the server's own is not to be had. */
  #refused(exchange, event) {
    if (!exchange) return;
    this.flying = this.flying.filter((x) => x !== exchange);
    exchange.phase = "done";
    exchange.event(event);
  }

  /** The server no longer has this answer. */
  #forget(exchange) {
    this.flying = this.flying.filter((x) => x !== exchange);
    exchange.phase = "done";
    exchange.lost(exchange.cut);
  }

  #down(why, opened, reason = "") {
    const socket = this.socket;
    const holds = !FINAL.has(why) && !(why >= 4000);
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (holds) socket.close(COMING_BACK);
    else socket.close();
    this.socket = null;
    const steady = opened && this.clock.now() - this.openedAt > TICK_MS;
    this.attempt = steady ? 0 : this.attempt + 1;
    for (const exchange of this.flying.splice(0)) {
      if (exchange.token && holds && (exchange.barren ?? 0) < BARREN) {
        Object.assign(exchange, { phase: "away", cut: why, barren: (exchange.barren ?? 0) + 1 });
        this.waiting.push(exchange);
        continue;
      }
      // Nothing of it was seen, and the server cancels what belongs to a closed socket: asking again is safe.
      if (why !== "renew") exchange.tries += 1;
      if (!exchange.shown && !exchange.stopped && exchange.tries <= RESENDS) {
        exchange.phase = "waiting";
        this.waiting.push(exchange);
      } else {
        exchange.phase = "done";
        exchange.lost(why);
      }
    }
    if (why === 4401) this.#block("The server no longer accepts this key.", "key");
    else if (opened && (why === 1008 || (why >= 4000 && why < 5000))) {
      this.#block(reason ? `The server closed the connection: ${reason}` : "The server closed the connection.");
    } else if (why !== "renew" && why !== "left") this.#wait(why);
  }

  /** Exponential backoff with jitter, so that a restarted server does not see all its pages in one moment. */
  #wait(why) {
    const delay = Math.min(250 * 2 ** this.attempt, why === 1013 ? 30_000 : 8_000) * (0.5 + this.random() / 2);
    this.#say("waiting", { delay, why });
    this.timer = this.clock.after(delay, () => this.connect());
  }

  /** Reconnecting by itself would not help; a person has to look. */
  #block(why, ask = null) {
    this.#say("blocked", { why, ask });
    for (const exchange of this.waiting.splice(0)) exchange.lost(why);
  }

  #say(state, detail = {}) {
    this.state = state;
    this.onstate(state, detail);
  }
}
