// Colours for code: strings, comments, numbers and keywords, by language family. Spans around text, nothing else.

import { h } from "./dom.js";

const LONGEST = 60_000; // beyond this the colours are not worth the spans
const words = (text) => new Set(text.split(" "));
const C_WORDS = "auto break case catch class const continue default delete do else enum export extends extern "
    + "finally for from function goto if implements import in inline instanceof interface let namespace "
    + "new null nullptr of operator package private protected public return sizeof static struct super "
    + "switch template this throw throws true false try typedef typeof undefined union using var "
    + "virtual void volatile while with yield async await bool boolean byte char double float int long "
    + "short signed string unsigned type readonly fn impl mut pub use mod match trait where ref self "
    + "Self dyn move unsafe crate loop func defer go chan map range select val fun when object data "
    + "override suspend final abstract";
const FAMILIES = {
  c: { line: "\\/\\/[^\\n]*", words: words(C_WORDS) },
  python: { line: "#[^\\n]*", words: words("and as assert async await break case class continue def del elif else except False finally for "
    + "from global if import in is lambda match None nonlocal not or pass raise return self True try "
    + "while with yield") },
  shell: { line: "#[^\\n]*", words: words("if then else elif fi for in do done while until case esac function return export local echo cd "
    + "set source sudo exit") },
  sql: { line: "--[^\\n]*", words: words("select from where and or not null insert into values update set delete create table index view "
    + "join left right inner outer on group by order having limit offset as distinct union all primary "
    + "key foreign references default case when then else end in is like between exists begin commit "
    + "with"), fold: true },
  data: { line: "#[^\\n]*", words: words("true false null yes no on off") },
};
const LANGUAGES = new Map(Object.entries({
  c: "c h cpp c++ cc cxx hpp cuda cu java javascript js jsx mjs typescript ts tsx rust rs go golang "
    + "kotlin kt swift csharp cs php scala dart json css scss",
  python: "python py python3 ruby rb", shell: "shell sh bash zsh console dockerfile makefile make", sql: "sql postgresql sqlite mysql",
  data: "yaml yml toml ini conf",
}).flatMap(([family, names]) => names.split(" ").map((name) => [name, family])));

const patterns = new Map();
function patternOf(family) {
  if (!patterns.has(family)) {
    const strings = '"""[^]*?(?:"""|$)|\'\'\'[^]*?(?:\'\'\'|$)'
      + '|"(?:[^"\\\\\\n]|\\\\.)*"?|\'(?:[^\'\\\\\\n]|\\\\.)*\'?|`(?:[^`\\\\]|\\\\[^])*`?';
    const block = family === "c" ? "|\\/\\*[^]*?(?:\\*\\/|$)" : "";
    const source = `(${FAMILIES[family].line}${block})|(${strings})|(\\b\\d[\\w.]*)|([A-Za-z_]\\w*)(?=(\\s*\\()?)`;
    patterns.set(family, new RegExp(source, "g"));
  }
  return patterns.get(family);
}

/** Append `text` to `code`, coloured when the language is known. */
export function highlight(code, text, language) {
  const family = LANGUAGES.get(language.toLowerCase());
  if (!family || text.length > LONGEST) {
    code.append(text);
    return;
  }
  const { words: keywords, fold } = FAMILIES[family];
  let plain = "";
  const paint = (kind, piece) => {
    if (!kind) {
      plain += piece;
      return;
    }
    if (plain) code.append(plain);
    plain = "";
    code.append(h("span", { class: kind }, piece));
  };
  let at = 0;
  for (const match of text.matchAll(patternOf(family))) {
    const [piece, comment, string, number, word, call] = match;
    paint("", text.slice(at, match.index));
    const keyword = word && keywords.has(fold ? word.toLowerCase() : word);
    const kind = comment ? "hl-c" : string ? "hl-s" : number ? "hl-n" : keyword ? "hl-k" : call ? "hl-f" : "";
    paint(kind, piece);
    at = match.index + piece.length;
  }
  paint("", text.slice(at));
  if (plain) code.append(plain);
}
