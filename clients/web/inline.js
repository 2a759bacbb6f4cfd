// The inside of a line: emphasis, code, links. Builds text nodes and a fixed set of elements, never markup.
//
// Everything is one pass with bounded look-back, so hostile text costs no more than plain text of the same length.

import { h } from "./dom.js";

const SPECIAL = /[\\`*_~[\]!<&\n]|https?:\/\//g;
const PUNCTUATION = /[!-/:-@[-`{-~\p{P}\p{S}]/u;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(amp|[lg]t|quot|apos|nbsp|copy|[mn]dash|hellip|times|[rl]arr));/y;
const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", mdash: "—", ndash: "–",
  hellip: "…", times: "×", rarr: "→", larr: "←" };
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const BARE = /https?:\/\/[^\s<>"`|\\^{}]{1,2000}/y;
const TARGET = new RegExp(
  String.raw`\(\s{0,9}(?:<([^<>\n]{0,2000})>|([^\s()<>]{0,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500}){0,4}))`
  + String.raw`(?:\s{1,9}(?:"[^"\n]{0,500}"|'[^'\n]{0,500}'))?\s{0,9}\)`, "y");
const DEEPEST = 64;

/** The address if it is one that a chat may link to, else null. Relative ones are not: they would reach this server. */
export function safeUrl(text) {
  let url;
  try {
    url = new URL(text);
  } catch {
    return null;
  }
  return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
}

const anchor = (href) => h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow", title: href });

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** Append `text` to `parent`. `open`: more is coming, so an unclosed ** or ` at the end is taken as closed. */
export function inline(parent, text, open = false) {
  const delimiters = []; // unmatched openers: {node, char, length}
  const brackets = []; // unmatched "[": {node, image, depth}
  const runs = backtickRuns(text);
  let at = 0;
  const say = (string) => string && parent.append(string);

  const wrap = (from, element) => {
    // Everything after node `from` moves into `element`, which takes its place at the end.
    while (from.nextSibling) element.append(from.nextSibling);
    parent.append(element);
  };

  const emphasis = (char, length, canOpen, canClose) => {
    while (canClose && length) {
      const index = delimiters.findLastIndex((d) => d.char === char
        && !((d.both || canOpen) && (d.length + length) % 3 === 0 && (d.length % 3 || length % 3)));
      if (index < 0 || (brackets.length && index < brackets.at(-1).depth)) break;
      const opener = delimiters[index];
      const use = opener.length >= 2 && length >= 2 ? 2 : 1;
      if (char === "~" && use === 1) break;
      delimiters.length = index + 1;
      wrap(opener.node, h(char === "~" ? "del" : use === 2 ? "strong" : "em"));
      opener.length -= use;
      opener.node.data = char.repeat(opener.length);
      if (!opener.length) delimiters.pop();
      length -= use;
    }
    if (!length) return;
    const node = document.createTextNode(char.repeat(length));
    parent.append(node);
    if (canOpen && delimiters.length < DEEPEST) delimiters.push({ node, char, length, both: canClose });
  };

  const close = () => {
    const bracket = brackets.pop();
    const target = bracket && !bracket.dead && matchAt(TARGET, text, at + 1);
    if (target) {
      const href = safeUrl(target[1] ?? target[2]);
      if (href) {
        const link = anchor(href);
        wrap(bracket.node, link);
        // Pictures are never fetched by themselves: the reader gets a link and decides.
        if (bracket.image) link.prepend(link.hasChildNodes() ? "Image: " : "Image");
        bracket.node.remove();
        delimiters.length = Math.min(delimiters.length, bracket.depth);
        if (!bracket.image) for (const outer of brackets) outer.dead = true;
        at += 1 + target[0].length;
        return;
      }
    } else if (open && bracket && !bracket.dead && /^\([^\s)]*$/.test(text.slice(at + 1, at + 2000))) {
      bracket.node.remove(); // the address is still coming in: do not show it growing
      at = text.length;
      return;
    }
    say("]");
    at += 1;
  };

  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const found = SPECIAL.exec(text);
    if (!found) {
      say(text.slice(at));
      break;
    }
    say(text.slice(at, found.index));
    at = found.index;
    const char = text[at];
    let match;
    if (char === "\n") {
      parent.append(h("br"));
      at += 1;
    } else if (char === "\\") {
      const next = text[at + 1] ?? "";
      const escaped = /[!-/:-@[-`{-~]/.test(next);
      if (next === "\n") at += 1;
      else {
        say(escaped ? next : "\\");
        at += escaped ? 2 : 1;
      }
    } else if (char === "`") {
      const length = runs.lengthAt(at);
      const end = runs.next(at, length);
      const tail = text.slice(at + length);
      if (end < 0 && !(open && length < 3 && tail.trim())) say(text.slice(at, at + length));
      else {
        let code = (end < 0 ? tail : text.slice(at + length, end)).replaceAll("\n", " ");
        if (code.length > 2 && code.startsWith(" ") && code.endsWith(" ")) code = code.slice(1, -1);
        parent.append(h("code", {}, code));
        at = end < 0 ? text.length : end;
      }
      at += end < 0 && at === text.length ? 0 : length;
    } else if (char === "*" || char === "_" || char === "~") {
      let length = 1;
      while (text[at + length] === char) length += 1;
      const before = at ? text[at - 1] : " ";
      const after = text[at + length] ?? " ";
      const space = (c) => /\s/.test(c);
      const left = !space(after) && (!PUNCTUATION.test(after) || space(before) || PUNCTUATION.test(before));
      const right = !space(before) && (!PUNCTUATION.test(before) || space(after) || PUNCTUATION.test(after));
      if (char === "~" && length !== 2) say("~".repeat(length));
      else if (char === "*" || !(left && right)) emphasis(char, length, left, right);
      else emphasis(char, length, PUNCTUATION.test(before), PUNCTUATION.test(after)); // snake_case stays as it is
      at += length;
    } else if (char === "[" || (char === "!" && text[at + 1] === "[")) {
      const mark = char === "!" ? "![" : "[";
      const node = document.createTextNode(mark);
      parent.append(node);
      if (brackets.length < DEEPEST) brackets.push({ node, image: char === "!", depth: delimiters.length, dead: false });
      at += mark.length;
    } else if (char === "]") close();
    else if (char === "<" && (match = matchAt(ANGLE, text, at)) && safeUrl(match[1])) {
      const link = anchor(safeUrl(match[1]));
      link.append(match[1]);
      parent.append(link);
      at += match[0].length;
    } else if (char === "&" && (match = matchAt(ENTITY, text, at))) {
      const code = match[1] ? Number(match[1]) : Number.parseInt(match[2], 16);
      const valid = code > 0 && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
      say(match[3] ? NAMED[match[3]] : valid ? String.fromCodePoint(code) : "\ufffd");
      at += match[0].length;
    } else if (char === "h" && !/\w/.test(text[at - 1] ?? " ") && !brackets.length && (match = matchAt(BARE, text, at))) {
      let address = match[0].replace(/[?!.,:;*_~'\]]{1,99}$/, "");
      while (address.endsWith(")") && count(address, ")") > count(address, "(")) address = address.slice(0, -1);
      const href = safeUrl(address);
      if (href) {
        const link = anchor(href);
        link.append(address);
        parent.append(link);
      } else say(address);
      at += address.length;
    } else {
      say(found[0]);
      at += found[0].length;
    }
  }

  if (open) {
    // While it streams, **bold looks bold before its end has come.
    for (const { node, char, length } of delimiters.reverse()) {
      if (length < 2 || !node.nextSibling) continue;
      wrap(node, h(char === "~" ? "del" : "strong"));
      node.data = char.repeat(length - 2);
    }
  }
  parent.normalize();
}

const count = (text, char) => text.split(char).length - 1;

/** Where the runs of backticks are, so that finding a closing run never scans the text twice. */
function backtickRuns(text) {
  const lengths = new Map();
  const byLength = new Map();
  for (const { index, 0: run } of text.matchAll(/`+/g)) {
    lengths.set(index, run.length);
    if (!byLength.has(run.length)) byLength.set(run.length, []);
    byLength.get(run.length).push(index);
  }
  return {
    lengthAt: (at) => lengths.get(at) ?? 1,
    next(at, length) {
      const queue = byLength.get(length) ?? [];
      while (queue.length && queue[0] <= at) queue.shift();
      return queue[0] ?? -1;
    },
  };
}
