// Markdown as people's models write it, to DOM nodes. Only the open block is touched while an answer streams.

import { h, icon } from "./dom.js";
import { highlight } from "./highlight.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^( *)([-+*]|\d{1,9}[.)])(?: +|$)/;
const DELIMITER_ROW = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const DEEPEST = 12; // deeper quotes and lists are shown as the text they are

const LIVE_COLOURS = 6_000; // code longer than this is coloured when it is complete

const blank = (line) => !line.trim();
const indentOf = (line) => line.length - line.trimStart().length;

function cells(line) {
  let row = line.trim();
  if (row.startsWith("|")) row = row.slice(1);
  if (row.endsWith("|") && !row.endsWith("\\|")) row = row.slice(0, -1);
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

const tableAt = (lines, i) => lines[i].includes("|") && i + 1 < lines.length && lines[i + 1].includes("-")
  && DELIMITER_ROW.test(lines[i + 1]) && cells(lines[i]).length === cells(lines[i + 1]).length;

function startsBlock(line, depth) {
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (depth >= DEEPEST) return false;
  if (QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  if (!item || indentOf(line) >= 4 || line.trimEnd().length === item[0].trimEnd().length) return false;
  return !/^\d{2,}|^[02-9]/.test(item[2]); // a year at the start of a line is not the 1999th item of a list
}

/** Lines to blocks: {kind, start, …}. The last block may still grow, all others are final (see Markdown). */
export function parse(lines, depth = 0) {
  const blocks = [];
  let i = 0;
  while (i < lines.length) {
    const start = i;
    const line = lines[i];
    let match;
    if (blank(line)) {
      i += 1;
    } else if ((match = FENCE.exec(line))) {
      const strip = indentOf(line);
      const closing = match[1];
      const body = [];
      let closed = false;
      for (i += 1; i < lines.length && !closed; i += 1) {
        const end = lines[i].trim();
        closed = end.length >= closing.length && indentOf(lines[i]) < 4 && end === closing[0].repeat(end.length);
        if (closed) continue;
        body.push(lines[i].slice(Math.min(strip, indentOf(lines[i]))));
      }
      blocks.push({ kind: "code", start, language: match[2].trim().split(/\s/, 1)[0], text: body.join("\n"), closed });
    } else if ((match = HEADING.exec(line))) {
      let text = line.trim().slice(match[1].length).trim();
      const bare = text.replace(/#{1,99}$/, "");
      if (bare !== text && (bare === "" || bare.endsWith(" "))) text = bare.trimEnd();
      blocks.push({ kind: "heading", start, level: match[1].length, text });
      i += 1;
    } else if (RULE.test(line)) {
      blocks.push({ kind: "rule", start });
      i += 1;
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      const body = [];
      let lazy = false;
      for (; i < lines.length; i += 1) {
        if (QUOTE.test(lines[i])) body.push(lines[i].trimStart().replace(/^> ?/, ""));
        else if (lazy && !blank(lines[i]) && !startsBlock(lines[i], depth)) body.push(lines[i]);
        else break;
        lazy = !blank(body.at(-1));
      }
      blocks.push({ kind: "quote", start, blocks: parse(body, depth + 1) });
    } else if (ITEM.test(line) && depth < DEEPEST) {
      const list = listAt(lines, i, depth);
      blocks.push({ ...list, start });
      i = list.end;
    } else if (tableAt(lines, i)) {
      const align = cells(lines[i + 1]).map((c) => (!c.endsWith(":") ? "" : c.startsWith(":") ? "center" : "right"));
      const rows = [];
      for (i += 2; i < lines.length && lines[i].includes("|") && !startsBlock(lines[i], depth); i += 1) {
        rows.push(cells(lines[i]));
      }
      blocks.push({ kind: "table", start, head: cells(line), align, rows });
    } else {
      const body = [line];
      const more = () => i < lines.length && !blank(lines[i]) && !startsBlock(lines[i], depth) && !tableAt(lines, i);
      for (i += 1; more(); i += 1) body.push(lines[i]);
      blocks.push({ kind: "text", start, text: body.map((l) => l.trim()).join("\n") });
    }
  }
  return blocks;
}

function listAt(lines, from, depth) {
  const kindOf = (marker) => (/\d/.test(marker) ? marker.at(-1) : marker);
  const first = ITEM.exec(lines[from]);
  const kind = kindOf(first[2]);
  const base = first[1].length;
  const items = [];
  let loose = false;
  let gap = false;
  let inner = 0; // lines indented this much belong to the item; models often use less than the standard asks for
  let i = from;
  for (; i < lines.length; i += 1) {
    const line = lines[i];
    const indent = indentOf(line);
    if (blank(line)) {
      gap = true;
      items.at(-1).push("");
      continue;
    }
    const item = ITEM.exec(line);
    if (items.length && indent >= inner) {
      items.at(-1).push(line.slice(Math.min(indent, items.at(-1).width)));
    } else if (item && kindOf(item[2]) === kind && !RULE.test(line) && indent < base + 4) {
      loose ||= gap;
      const spaces = item[0].length - item[0].trimEnd().length;
      const width = spaces > 4 ? item[1].length + item[2].length + 1 : item[0].length;
      items.push(Object.assign([line.slice(Math.min(width, line.length))], { width }));
      inner = Math.min(width, base + 2);
    } else if (!gap && items.length && !startsBlock(line, depth) && !item) {
      items.at(-1).push(line.trimStart());
    } else break;
    gap = false;
  }
  const parsed = items.map((body) => parse(body, depth + 1));
  loose ||= parsed.some((blocks) => blocks.filter((block) => block.kind === "text").length > 1);
  const ordered = /\d/.test(first[2]);
  return { kind: "list", end: i, ordered, number: ordered ? Number.parseInt(first[2], 10) : 1, loose, items: parsed };
}

/** The element of one block. `open` is true for the last block of an answer that is still coming in. */
function element(block, open) {
  switch (block.kind) {
    case "heading": {
      // The page has its own h1 and h2, so an answer's headings start below them.
      const heading = h(`h${Math.min(block.level + 2, 6)}`, { class: `md-h${block.level}` });
      inline(heading, block.text, open);
      return heading;
    }
    case "rule":
      return h("hr");
    case "quote":
      return fill(h("blockquote"), block.blocks, open);
    case "code": {
      const code = h("code", {});
      if (block.closed || !open || block.text.length < LIVE_COLOURS) highlight(code, block.text, block.language);
      else code.append(block.text);
      return h("figure", { class: "code" },
        h("figcaption", {}, h("span", {}, block.language || "text"),
          h("button", { type: "button", "data-copy": "code", "aria-label": "Copy code" },
            icon("copy"), h("span", {}, "Copy"))),
        h("pre", { tabindex: "0" }, code));
    }
    case "table": {
      const row = (tag, values) => h("tr", {}, ...block.head.map((_, i) => {
        const cell = h(tag, { class: block.align[i] || null, scope: tag === "th" ? "col" : null });
        inline(cell, values[i] ?? "", open);
        return cell;
      }));
      return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
        h("table", {}, h("thead", {}, row("th", block.head)),
          h("tbody", {}, ...block.rows.map((values) => row("td", values)))));
    }
    case "list": {
      const list = h(block.ordered ? "ol" : "ul", { start: block.number === 1 ? null : block.number });
      const last = block.items.length - 1;
      block.items.forEach((blocks, i) => list.append(itemElement(blocks, block.loose, open && i === last)));
      return list;
    }
    default: {
      const paragraph = h("p");
      inline(paragraph, block.text, open);
      return paragraph;
    }
  }
}

function itemElement(blocks, loose, open) {
  const item = h("li");
  const task = blocks[0]?.kind === "text" && /^\[([ xX])\] /.exec(blocks[0].text);
  if (task) {
    item.className = "task";
    item.append(h("span", { class: "box" }, task[1] === " " ? "☐" : "☑"));
    blocks[0] = { ...blocks[0], text: blocks[0].text.slice(4) };
  }
  blocks.forEach((block, i) => {
    const last = open && i === blocks.length - 1;
    if (block.kind === "text" && !loose) inline(item.appendChild(h("span")), block.text, last);
    else item.append(element(block, last));
  });
  return item;
}

function fill(parent, blocks, open) {
  blocks.forEach((block, i) => parent.append(element(block, open && i === blocks.length - 1)));
  return parent;
}

/** Make the children of `live` from index `from` on look like those of `fresh`, changing as little as possible: what
 *  stays equal keeps its node, so a selection, a scroll position and the reader's place survive the next token. */
function patch(live, fresh, from = 0) {
  let old = live.childNodes[from] ?? null;
  for (let next = fresh.firstChild; next; ) {
    const wanted = next;
    next = next.nextSibling;
    if (!old) live.append(wanted);
    else if (old.nodeName !== wanted.nodeName) {
      const gone = old;
      old = old.nextSibling;
      gone.replaceWith(wanted);
    } else {
      if (old.nodeType === Node.TEXT_NODE) {
        if (wanted.data.startsWith(old.data)) {
          if (wanted.length > old.length) old.appendData(wanted.data.slice(old.length));
        } else old.data = wanted.data;
      } else {
        for (const { name } of [...old.attributes]) if (!wanted.hasAttribute(name)) old.removeAttribute(name);
        for (const { name, value } of wanted.attributes) {
          if (old.getAttribute(name) !== value) old.setAttribute(name, value);
        }
        patch(old, wanted);
      }
      old = old.nextSibling;
    }
  }
  while (old) {
    const gone = old;
    old = old.nextSibling;
    gone.remove();
  }
}

/** Renders a growing text into `root`. */
export class Markdown {
  constructor(root) {
    this.root = root;
    this.reset();
  }

  reset() {
    this.root.replaceChildren();
    this.settled = 0; // characters before this belong to blocks that cannot change any more
    this.blocks = 0; // and this many of them are in `root`
    this.scanned = 0;
    this.text = "";
  }

  /** Show `text`, which continues the text of the last call (anything else starts over). `open`: more will come. */
  show(text, open) {
    if (!text.startsWith(this.text)) this.reset();
    this.text = text;
    const tail = text.slice(this.settled);
    const lines = tail.replaceAll("\r", "").replaceAll("\t", "    ").split("\n");
    patch(this.root, fill(document.createDocumentFragment(), parse(lines), open), this.blocks);
    // Only whole lines settle anything: what a half line is, the next characters decide.
    const whole = text.lastIndexOf("\n") + 1;
    if (!open || whole <= this.scanned) return;
    this.scanned = whole;
    const finished = parse(lines.slice(0, -1));
    if (finished.length < 2) return;
    const raw = tail.split("\n");
    this.settled += raw.slice(0, finished.at(-1).start).join("\n").length + 1;
    this.blocks += finished.length - 1;
  }
}
