// Type-ahead: the server reads a message while it is typed, so that its answer begins at once. No DOM.
//
// Nothing depends on it. Where the server does not know drafts, or refuses one, the message is sent as ever.

const PAUSE_MS = 120; // changes within this time are told together
const SAID = "ahead"; // event_id of what is said while typing
const SENT = "commit";

/** What was changed between two texts: {from, to, text} with places in code points of `before`; null: nothing. */
export function change(before, after) {
  if (before === after) return null;
  const old = Array.from(before);
  const now = Array.from(after);
  const most = Math.min(old.length, now.length);
  let from = 0;
  while (from < most && old[from] === now[from]) from += 1;
  let same = 0;
  while (same < most - from && old[old.length - 1 - same] === now[now.length - 1 - same]) same += 1;
  return { from, to: old.length - same, text: now.slice(from, now.length - same).join("") };
}

export class Ahead {
  /** `chat.opening(conversation)`: what a message in it would continue, or null if its history cannot be named. */
  constructor({ link, chat, after = (ms, run) => setTimeout(run, ms) }) {
    Object.assign(this, { link, chat, after });
    this.draft = null; // {lane, epoch, key, text, rev}: what the server was told
    this.wanted = null; // {conversation, text}: what is typed
    this.timer = null;
    this.barred = null; // the key of a draft that the server refused
    link.onahead = (event) => this.#hear(event);
  }

  /** `text` stands in the composer of `conversation` now; `plain`: it cannot be read ahead. */
  typed(conversation, text, plain) {
    const said = text.trim();
    this.wanted = said && !plain ? { conversation, text: said } : null;
    this.timer ??= this.after(PAUSE_MS, () => {
      this.timer = null;
      this.#tell();
    });
  }

  /** The event that asks for the answer to the message `user` in `lane`, if it was read ahead there; else null. */
  commit(conversation, user, lane, settings) {
    const { draft } = this;
    if (!draft || draft.lane !== lane || draft.epoch !== this.link.epoch) return null;
    if (draft.key !== this.#key(this.chat.opening(conversation, user.parent))) return null;
    this.#replace(user.text);
    this.draft = this.wanted = null;
    return { type: "x.input.commit", stream_id: lane, event_id: SENT, rev: draft.rev, ...settings };
  }

  /** What was typed is not wanted any more, or belongs to another conversation. */
  drop() {
    this.wanted = null;
    this.#discard();
  }

  #key(opening) {
    return JSON.stringify(opening);
  }

  #tell() {
    const { wanted, link } = this;
    const opening = wanted && link.state === "open" ? this.chat.opening(wanted.conversation) : null;
    const key = this.#key(opening);
    if (this.draft && (this.draft.key !== key || this.draft.epoch !== link.epoch)) this.#discard();
    if (!opening || key === this.barred) return;
    if (this.draft) {
      this.#replace(wanted.text);
      return;
    }
    const lane = link.lane(wanted.conversation.id);
    if (!lane) return;
    const { model, system, previous } = opening;
    const event = { type: "x.input.append", stream_id: lane, event_id: SAID, model, text: wanted.text };
    if (system) event.instructions = system;
    if (previous) event.previous_response_id = previous;
    link.say(event);
    this.draft = { lane, epoch: link.epoch, key, text: wanted.text, rev: 1 };
  }

  #replace(text) {
    const { draft } = this;
    const changed = change(draft.text, text);
    if (!changed) return;
    this.link.say({ type: "x.input.replace", stream_id: draft.lane, event_id: SAID, from_char: changed.from,
      to_char: changed.to, text: changed.text });
    Object.assign(draft, { text, rev: draft.rev + 1 });
  }

  #discard() {
    const { draft, link } = this;
    this.draft = null;
    if (draft && draft.epoch === link.epoch) {
      link.say({ type: "x.input.discard", stream_id: draft.lane, event_id: SAID });
    }
  }

  #hear(event) {
    const { draft, link } = this;
    const lane = event.stream_id;
    if (event.type === "x.input.committed") this.chat.began(lane, event);
    else if (event.type === "x.error" && event.event_id === SENT) {
      // The server forgot it, or took less than was typed: the message is sent as ever.
      if (event.error?.code !== "draft_not_found") {
        link.say({ type: "x.input.discard", stream_id: lane, event_id: SAID });
      }
      link.resend(lane);
    } else if (draft && draft.lane === lane && (event.type === "x.input.ended" || event.type === "x.error")) {
      if (event.type === "x.error") this.barred = draft.key;
      this.draft = null;
    }
  }
}
