// Responses over WebSocket as pure data: what to send, and what the events that come back mean. No socket, no DOM.

import { Timing } from "./timing.js";

/** The sampling settings of a conversation, under their names on the wire. Unset ones are not sent. */
export const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, help: "0 is the most predictable" },
  { name: "top_p", label: "Top-p", min: 0.01, max: 1, step: 0.01, help: "Only the likeliest share" },
  { name: "top_k", label: "Top-k", min: 1, max: 100000, step: 1, help: "Only the k likeliest tokens" },
  { name: "min_p", label: "Min-p", min: 0, max: 1, step: 0.01, help: "Drops unlikely tokens" },
  { name: "repetition_penalty", label: "Repetition", min: 0.5, max: 2, step: 0.05, help: "Penalty; 1 is off" },
  { name: "max_output_tokens", label: "Max tokens", min: 1, max: 1000000, step: 1, help: "The longest answer" },
  { name: "seed", label: "Seed", min: 0, max: 2 ** 53 - 1, step: 1, help: "Same seed, same answer" },
];

/** Only known settings with values in range; everything else is left out. */
export function cleanSettings(raw) {
  const clean = {};
  for (const { name, min, max, step } of FIELDS) {
    const value = raw?.[name];
    if (typeof value !== "number" || !(value >= min && value <= max)) continue;
    if (step === 1 && !Number.isInteger(value)) continue;
    clean[name] = value;
  }
  return clean;
}

/** Messages ({role, text, pictures}) as input items. Empty answers are left out and neighbours of one role are joined,
 *  since many chat templates insist on strict turns. Pictures (data URLs) stand in front of their message's text. */
export function inputItems(messages) {
  const items = [];
  for (const { role, text, pictures } of messages) {
    if (!text && !pictures?.length) continue;
    const content = pictures?.length ? [
      ...pictures.map((url) => ({ type: "input_image", image_url: url, detail: "auto" })), ...textParts(text),
    ] : text;
    const last = items.at(-1);
    if (last?.role !== role) items.push({ type: "message", role, content });
    else if (typeof last.content === "string" && typeof content === "string") last.content += `\n\n${content}`;
    else last.content = [...asParts(last.content), ...textParts("\n\n"), ...asParts(content)];
  }
  return items;
}

const textParts = (text) => (text ? [{ type: "input_text", text }] : []);
const asParts = (content) => (typeof content === "string" ? textParts(content) : content);

/** One `response.create`. `previous` continues on the server's side; then `messages` is only what is new. */
export function createEvent({ model, lane, messages, previous = null, system = "", settings = {} }) {
  const input = inputItems(messages);
  const event = { type: "response.create", model, stream_id: lane, input, x_telemetry: "step", ...cleanSettings(settings) };
  if (system.trim()) event.instructions = system;
  if (previous) event.previous_response_id = previous;
  return event;
}

export const isTerminal = (type) =>
  type === "response.completed" || type === "response.incomplete" || type === "response.failed";

/** One answer as it comes in. `apply` returns true when something visible changed. Times are milliseconds. */
export class Answer {
  constructor(sentAt) {
    Object.assign(this, {
      sentAt, firstAt: null, lastAt: null, text: "", thinking: "", deltas: 0, timing: new Timing(),
      status: "waiting", responseId: null, kept: 0, usage: null, error: null,
    });
  }

  get ended() {
    return this.status !== "waiting" && this.status !== "streaming";
  }

  apply(event, now) {
    if (this.ended) return false;
    switch (event.type) {
      case "response.created":
        this.responseId = event.response.id;
        this.kept = event.response.x_forked_from?.at_token ?? 0;
        return false;
      case "response.output_text.delta":
        this.text += event.delta;
        this.#arrived(now);
        return true;
      case "response.reasoning_text.delta":
      case "response.reasoning_summary_text.delta":
        this.thinking += event.delta;
        this.#arrived(now);
        return true;
      case "response.completed":
      case "response.incomplete":
      case "response.failed":
        this.#end(event.response);
        return true;
      case "error":
        this.fail(event.error);
        return true;
      default:
        return false;
    }
  }

  fail(error) {
    this.status = "failed";
    this.error = { code: error?.x_code ?? error?.code ?? null, sentence: sentence(error) };
  }

  #arrived(now) {
    this.timing.arrived(this.firstAt === null ? null : now - this.lastAt);
    this.firstAt ??= now;
    this.lastAt = now;
    this.deltas += 1;
    this.status = "streaming";
  }

  #end(response) {
    this.usage = response.usage ?? null;
    // The terminal event repeats every item in full; it, not the sum of the deltas, is what the server remembers.
    const said = (response.output ?? []).filter((item) => item.type === "message");
    const parts = said.flatMap((item) => item.content ?? []).filter((part) => part.type === "output_text");
    const whole = parts.map((part) => part.text).join("");
    if (whole) this.text = whole;
    if (response.status === "failed") this.fail(response.error);
    else if (response.status === "cancelled") this.status = "stopped";
    else if (response.status === "incomplete") this.status = "length";
    else this.status = "done";
  }
}

/** The measured line under an answer. `exact` is false while tokens are still counted by deltas; `before` is the
 *  estimated size of everything that was sent. */
export function measures(answer, before = null) {
  const tokens = answer.usage?.output_tokens ?? answer.deltas;
  const span = answer.lastAt - answer.firstAt;
  return {
    ttft: answer.firstAt === null ? null : answer.firstAt - answer.sentAt,
    rate: span > 0 && answer.deltas > 3 ? (Math.max(0, tokens - answer.kept - 1) * 1000) / span : null,
    tokens,
    context: answer.usage?.total_tokens ?? (before === null ? null : before + answer.deltas),
    exact: answer.usage !== null,
  };
}

/** Some open models write their reasoning into the text itself, between <think> tags at the very start. */
export function splitThinking(text) {
  const start = /^\s*<think>/.exec(text);
  if (!start) return { thinking: "", text };
  const end = text.indexOf("</think>", start[0].length);
  if (end < 0) return { thinking: text.slice(start[0].length).trim(), text: "" };
  return { thinking: text.slice(start[0].length, end).trim(), text: text.slice(end + 8).trimStart() };
}

/** An error of the wire as one sentence for a person. */
export function sentence(error) {
  const said = typeof error?.message === "string" && error.message ? error.message.trim() : "";
  const full = said ? said[0].toUpperCase() + said.slice(1) + (/[.!?]$/.test(said) ? "" : ".") : "";
  switch (error?.x_code ?? error?.code) {
    case "server_is_overloaded":
      return "The server is busy right now. Try again in a moment.";
    case "rate_limit_exceeded":
      return `The server takes no more requests just now. ${full}`.trim();
    case "context_length_exceeded":
      return "This conversation no longer fits into the model's context. Edit an earlier message or start a new chat."
        + ` ${full}`.trimEnd();
    case "model_not_found":
      return "The server no longer has this model. Try again to use the one it has now.";
    case "invalid_value":
    case "unsupported_parameter":
      return `The server does not accept a setting of this chat. ${full}`.trim();
    default:
      return full || "The server could not answer, and did not say why.";
  }
}
