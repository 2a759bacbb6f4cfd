// What users of the unmodified `openai` package for Node do, one flow a run: node flows.mjs FLOW BASE_URL KEY.
// Each line on stdout is a JSON object: {"ask": …} wants something of the server from the test and waits for a line
// on stdin; {"result": …} is the last one.

import { createInterface } from "node:readline";
import OpenAI from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";

const [flow, baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function ask(what) {
  process.stdout.write(JSON.stringify({ ask: what }) + "\n");
  await lines.next();
}

const ENDS = ["response.completed", "response.incomplete", "response.failed"];

// Everything that a connection receives, and a way to wait for one kind of event.
class Heard {
  constructor(ws) {
    this.events = [];
    this.errors = [];
    this.closes = [];
    this.waiting = null;
    // An error is told twice, here and below.
    ws.on("event", (event) => { if (event.type !== "error") this.events.push(event); this.look(); });
    ws.on("error", (error) => { this.errors.push(error.error ?? { message: error.message }); this.look(); });
    ws.on("reconnecting", () => this.look());
    ws.on("close", (code) => { this.closes.push(code); this.look(); });
  }
  look() {
    if (this.waiting && this.waiting.test()) { const { done } = this.waiting; this.waiting = null; done(); }
  }
  until(test) {
    return new Promise((done) => { this.waiting = { test, done }; this.look(); });
  }
  count(...types) { return this.events.filter((event) => types.includes(event.type)).length; }
  async ends(count) { await this.until(() => this.count(...ENDS) >= count); return this.finals(); }
  finals() { return this.events.filter((event) => ENDS.includes(event.type)).map((event) => event.response); }
}

const create = (fields) => ({ type: "response.create", model: "fake", input: "hello", ...fields });

const flows = {
  async conversation() {
    const ws = new ResponsesWS(client);
    const heard = new Heard(ws);
    ws.send(create({ input: "one", store: false }));
    const [first] = await heard.ends(1);
    ws.send(create({ input: "two", store: false, previous_response_id: first.id }));
    const [, second] = await heard.ends(2);
    ws.send(create({ previous_response_id: "resp_gone" }));
    await heard.until(() => heard.errors.length === 1);
    ws.close();
    await heard.until(() => heard.closes.length === 1);
    return { events: heard.events, errors: heard.errors, closes: heard.closes, first, second };
  },

  async iterated() {
    const ws = new ResponsesWS(client);
    ws.send(create());
    let text = "", final = null;
    for await (const event of ws.stream()) {
      if (event.type !== "message") continue;
      if (event.message.type === "response.output_text.delta") text += event.message.delta;
      if (ENDS.includes(event.message.type)) { final = event.message.response; break; }
    }
    ws.close();
    return { text, final };
  },

  async warm_up() {
    const ws = new ResponsesWS(client);
    const heard = new Heard(ws);
    const instructions = "You keep a lighthouse and talk about nothing else. ".repeat(3);
    ws.send(create({ generate: false, instructions, input: [] }));
    const [warm] = await heard.ends(1);
    ws.send(create({ instructions, previous_response_id: warm.id }));
    const [, final] = await heard.ends(2);
    ws.close();
    return { warm, final };
  },

  async lanes() {
    await ask("hold");
    const ws = new ResponsesWS(client);
    const heard = new Heard(ws);
    for (const lane of ["a", "b"]) ws.send(create({ stream_id: lane, input: "story", max_output_tokens: 60 }));
    await heard.until(() => heard.count("response.in_progress") === 2);
    await ask("release");
    await heard.ends(2);
    ws.close();
    return { events: heard.events };
  },

  async steer() {
    await ask("hold");
    const ws = new ResponsesWS(client);
    const heard = new Heard(ws);
    ws.send(create({ input: "story", stream_id: "a" }));
    await heard.until(() => heard.count("response.in_progress") === 1);
    await ask("land");
    await heard.until(() => heard.count("response.output_text.delta") > 0);
    const target = heard.events[0].response.id;
    ws.send({ type: "response.steer", previous_response_id: target, input: "Be quick." });
    await heard.until(() => heard.count("response.steer.accepted") === 1);
    await ask("release");
    await heard.ends(2);
    ws.send({ type: "response.steer", previous_response_id: target, input: "Too late." });
    await heard.until(() => heard.count("response.steer.failed") === 1);
    ws.close();
    return { events: heard.events };
  },

  async cancel() {
    await ask("hold");
    const ws = new ResponsesWS(client);
    const heard = new Heard(ws);
    ws.send(create({ input: "story" }));
    await heard.until(() => heard.count("response.in_progress") === 1);
    await ask("land");
    await heard.until(() => heard.count("response.output_text.delta") > 0);
    ws.send({ type: "response.cancel", response_id: heard.events[0].response.id });
    await heard.ends(1);
    await ask("release");
    ws.close();
    return { events: heard.events };
  },

  async reconnect() {
    const seen = [];
    const ws = new ResponsesWS(client, {
      reconnect: { onReconnecting: (event) => { seen.push(event.closeCode); }, initialDelay: 0 },
    });
    const heard = new Heard(ws);
    ws.send(create({ input: "one" }));
    const [first] = await heard.ends(1);
    await ask("close");
    await heard.until(() => seen.length > 0);
    ws.send(create({ input: "two", previous_response_id: first.id }));
    const [, second] = await heard.ends(2);
    ws.close();
    return { seen, first, second };
  },

  async http() {
    const whole = await client.responses.create({ model: "fake", input: "hello" });
    const events = [];
    for await (const event of await client.responses.create({ model: "fake", input: "hello", stream: true })) {
      events.push(event);
    }
    const again = [];
    const id = events.at(-1).response.id;
    for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: 2 })) {
      again.push(event);
    }
    const read = await client.responses.retrieve(whole.id);
    await ask("hold"); // or the story may have come to its end before the cancel
    const queued = await client.responses.create({ model: "fake", input: "story", background: true });
    const cancelled = await client.responses.cancel(queued.id);
    await ask("release");
    const items = [];
    for await (const item of client.responses.inputItems.list(whole.id)) items.push(item);
    await client.responses.delete(whole.id);
    const gone = await client.responses.retrieve(whole.id).catch((error) => ({ status: error.status, code: error.code }));
    return { whole, events, again, read, queued, cancelled, items, gone };
  },

  async chat() {
    const messages = [{ role: "user", content: "hello" }];
    const whole = await client.chat.completions.create({ model: "fake", messages, seed: 3 });
    const chunks = [];
    const stream = await client.chat.completions.create({
      model: "fake", messages, seed: 3, stream: true, stream_options: { include_usage: true },
    });
    for await (const chunk of stream) chunks.push(chunk);
    const runner = client.chat.completions.stream({ model: "fake", messages, seed: 3 });
    const final = await runner.finalChatCompletion();
    const wrong = await client.chat.completions.create({ model: "gpt-9", messages }).catch((error) => ({
      status: error.status, code: error.code, param: error.param, name: error.constructor.name,
    }));
    return { whole, chunks, final, wrong };
  },
};

const result = await flows[flow]();
process.stdout.write(JSON.stringify({ result }) + "\n", () => process.exit(0));
