// Where the time of one answer went, from what the server tells of each step and from when words arrive. No DOM.
//
// A bar is one token: {ms, wait, batch, prompt, eager, again, late, token}; `ms` since the token before. Servers that
// tell nothing leave the gaps between arrivals, which is all that can be drawn then.

const USUAL = 180; // newest bars that say what is usual
const LATE_MS = 60; // less than this more than the server's own time is nobody's fault
const CAUSES = ["steady", "turn", "again", "prompt", "eager", "way", "slow"]; // their places are kept in conversations

export const milliseconds = (ms) =>
  (ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`);

export class Timing {
  constructor() {
    Object.assign(this, {
      queue: null, prefill: 0, read: null, place: null, // before the first token
      bars: [], first: false, hits: false, told: false,
      again: 0, since: 0, // since the last token, and since the last arrival, in milliseconds of the server
    });
  }

  /** One x. event of this answer; of an x.step, `own` is its row. True: there is something new to say before text. */
  hear(event) {
    if (event.type === "x.queue") {
      this.place = { position: event.position, eta: event.eta_ms };
      return true;
    }
    if (event.type === "x.prefill.progress") {
      this.place = null;
      this.read = { done: event.done, total: event.total, cached: event.cached, eta: event.eta_ms };
      return true;
    }
    if (event.type !== "x.step") return false;
    const { own } = event;
    this.told = true;
    this.since += own.queue_ms + event.step_ms;
    if (event.graph === "hit") this.hits = true;
    const token = own.token_index;
    if (!this.first) {
      if (this.queue === null) this.queue = own.queue_ms;
      else this.prefill += own.queue_ms;
      this.prefill += event.step_ms;
      this.first = token !== undefined;
    } else if (token === undefined) this.again += own.queue_ms + event.step_ms;
    else {
      this.bars.push({ ms: own.queue_ms + event.step_ms + this.again, wait: own.queue_ms, again: this.again, late: 0,
        batch: event.batch, prompt: event.prefill_tokens_in_step, eager: event.graph !== "hit", token });
      this.again = 0;
    }
    return false;
  }

  /** Words arrived, `gap` milliseconds after the ones before (null: the first). */
  arrived(gap) {
    if (gap !== null && !this.told) this.bars.push({ ms: gap, token: this.bars.length + 1 });
    const bar = this.bars.at(-1);
    if (gap !== null && this.told && bar) bar.late = Math.max(bar.late, gap - this.since);
    this.since = 0;
  }

  /** What to say while there are no words yet; "" when there is nothing to say. */
  stage() {
    if (this.first) return "";
    const about = (eta) => (eta === null ? "" : `, about ${milliseconds(Math.max(eta, 1))}`);
    if (this.place) return `Number ${this.place.position.toLocaleString("en")} in the line${about(this.place.eta)}`;
    const { read } = this;
    if (!read || read.done === read.total) return "";
    return `Reading: ${read.done.toLocaleString("en")} of ${read.total.toLocaleString("en")} tokens${about(read.eta)}`;
  }

  /** At most `count` bars, ready to draw and to keep: {ms, cause, token, to, amount, batch}. Live: the newest ones. */
  shown(count, live = false) {
    const usual = this.#usual();
    const drawn = (live ? this.bars.slice(-count) : this.bars).map((bar) => {
      const cause = this.#cause(bar, usual);
      const amount = { turn: bar.wait, again: bar.again, prompt: bar.prompt, way: bar.late }[cause] ?? 0;
      return { ms: tall(bar), cause, token: bar.token, to: bar.token, amount, batch: bar.batch ?? 0 };
    });
    return pool(drawn, count);
  }

  /** The whole in a form that is small enough to be kept with a conversation. */
  pack(count) {
    const round = (value) => Math.round(value * 10) / 10;
    return { queue: this.queue === null ? null : round(this.queue), prefill: round(this.prefill), tokens: this.read?.total ?? 0,
      cached: this.read?.cached ?? 0, ...spread(this.bars.map(tall)),
      bars: this.shown(count).map((bar) => [round(bar.ms), CAUSES.indexOf(bar.cause), bar.token, bar.to, round(bar.amount), bar.batch]) };
  }

  #usual() {
    const sorted = this.bars.slice(-USUAL).map((bar) => bar.ms).sort((a, b) => a - b);
    return sorted[Math.floor(sorted.length / 2)] ?? 0;
  }

  #cause(bar, usual) {
    if ((bar.late ?? 0) > Math.max(LATE_MS, 4 * usual)) return "way";
    if (bar.wait === undefined) return bar.ms > Math.max(4 * usual, LATE_MS) ? "slow" : "steady";
    if (bar.ms <= Math.max(1.5 * usual, usual + 1)) return "steady";
    if (bar.again) return "again";
    if (bar.wait > bar.ms / 2) return "turn";
    if (bar.prompt) return "prompt";
    return bar.eager && this.hits ? "eager" : "slow";
  }
}

/** At most `count` bars; each is the tallest of its share, so that a stall stays visible. */
export function pool(bars, count) {
  if (bars.length <= count) return bars;
  const edge = (i) => Math.floor((i * bars.length) / count);
  return Array.from({ length: count }, (_, i) => {
    const share = bars.slice(edge(i), edge(i + 1));
    const worst = share.reduce((tallest, bar) => (bar.ms > tallest.ms ? bar : tallest));
    return { ...worst, token: share[0].token, to: share.at(-1).to };
  });
}

/** How long a reader waited for the token: what got lost on the way is on top of the server's time. */
const tall = (bar) => bar.ms + (bar.late > LATE_MS ? bar.late : 0);

function spread(values) {
  if (!values.length) return { usual: 0, most: 0, longest: 0, count: 0 };
  const sorted = [...values].sort((a, b) => a - b);
  const at = (q) => Math.round(sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] * 10) / 10;
  return { usual: at(0.5), most: at(0.95), longest: at(1), count: values.length };
}

/** What was packed, as a drawing wants it; from a file or an older visit, so that nothing in it is trusted. */
export function unpacked(packed) {
  if (typeof packed !== "object" || packed === null || !Array.isArray(packed.bars)) return null;
  const count = (value) => (Number.isFinite(value) && value >= 0 ? value : 0);
  const bars = packed.bars.slice(0, 400).filter(Array.isArray).map(([ms, cause, token, to, amount, batch]) => ({ ms: count(ms),
    cause: CAUSES[count(cause)] ?? "slow", token: count(token), to: count(to), amount: count(amount), batch: count(batch) }));
  const queue = Number.isFinite(packed.queue) ? packed.queue : null;
  const [prefill, tokens, cached, usual, most, longest, steps] = ["prefill", "tokens", "cached", "usual", "most", "longest",
    "count"].map((name) => count(packed[name]));
  return { queue, prefill, tokens, cached, usual, most, longest, count: steps, bars };
}

/** The same with nothing in it that does not belong there, to be kept; null if there is none. */
export function cleaned(packed) {
  const drawn = unpacked(packed);
  const row = ({ ms, cause, token, to, amount, batch }) => [ms, CAUSES.indexOf(cause), token, to, amount, batch];
  return drawn && { ...drawn, bars: drawn.bars.map(row) };
}

/** An answer of the time before steps were told, from the gaps that were kept. */
export function ofGaps(gaps) {
  const timing = new Timing();
  for (const gap of gaps) timing.arrived(gap);
  return timing.pack(gaps.length);
}

const REASON = {
  steady: () => "",
  turn: (amount) => `, ${milliseconds(amount)} of it waiting for a turn`,
  again: (amount) => `, ${milliseconds(amount)} of it reading again what others had pushed out`,
  prompt: (amount) => `, beside ${amount.toLocaleString("en")} tokens of another prompt`,
  eager: () => ", without a captured graph",
  way: (amount) => `, ${milliseconds(amount)} of it on the way to you`,
  slow: () => ", slower than usual",
};

/** One bar in words. */
export function barWords({ ms, cause, token, to, amount, batch }) {
  const which = to > token ? `Tokens ${token + 1} to ${to + 1}, the longest` : `Token ${token + 1}`;
  return `${which}: ${milliseconds(ms)}${REASON[cause](amount)}${batch > 1 ? ` · ${batch} in the batch` : ""}`;
}

/** The beginning in words: `part` is "queue" or "prefill". */
export function leadWords(part, { queue, prefill, tokens, cached }) {
  if (part === "queue") return `Waited ${milliseconds(queue)} for its turn`;
  const kept = cached ? `, ${cached.toLocaleString("en")} of them from the cache` : "";
  return `Read ${tokens.toLocaleString("en")} tokens in ${milliseconds(prefill)}${kept}`;
}

/** All of it in one sentence. */
export function sumWords(packed) {
  const { queue, bars, usual, most, longest, count } = packed;
  const lead = queue === null ? [] : [leadWords("queue", packed), leadWords("prefill", packed)];
  const slowest = bars.reduce((worst, bar) => (bar.ms > (worst?.ms ?? 0) ? bar : worst), null);
  const why = slowest ? REASON[slowest.cause](slowest.amount) : "";
  const steps = count ? [`${count} tokens after the first: typically ${milliseconds(usual)}, 95 % under ${milliseconds(most)}, `
    + `longest ${milliseconds(longest)}${why}`] : [];
  return `Time between tokens. ${[...lead, ...steps].join(". ")}.`;
}
