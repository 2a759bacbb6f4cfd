"""Markdown to elements: what the model writes, what the reader sees, whole and while it streams."""

# ruff: noqa: E501 - the long lines are scripts for the page and texts, which a break would change

from __future__ import annotations

import pytest

SHAPE = """
const { Markdown } = await import("/markdown.js");
const shape = (node) => node.nodeType === 3 ? node.data
  : `<${node.localName}${[...node.attributes].filter((a) => ["href", "start"].includes(a.name)).map((a) => ` ${a.name}=${a.value}`).join("")}>`
    + [...node.childNodes].map(shape).join("") + `</${node.localName}>`;
const inner = (root) => [...root.childNodes].map(shape).join("");
"""

CASES = [
    ("plain", "<p>plain</p>"),
    ("two\nlines", "<p>two<br></br>lines</p>"),
    ("a\n\nb", "<p>a</p><p>b</p>"),
    ("# One\n## Two ##\n###### Six", "<h3>One</h3><h4>Two</h4><h6>Six</h6>"),
    ("#no heading", "<p>#no heading</p>"),
    (
        "**b** *i* ***bi*** ~~s~~",
        "<p><strong>b</strong> <em>i</em> <em><strong>bi</strong></em> <del>s</del></p>",
    ),
    ("**bold *and italic* inside**", "<p><strong>bold <em>and italic</em> inside</strong></p>"),
    ("snake_case_name and _really_", "<p>snake_case_name and <em>really</em></p>"),
    ("2 * 3 * 4", "<p>2 * 3 * 4</p>"),
    ("a `code` and ``co`de``", "<p>a <code>code</code> and <code>co`de</code></p>"),
    ("`**not bold**`", "<p><code>**not bold**</code></p>"),
    (r"\*plain\* \# \\", r"<p>*plain* # \</p>"),
    ("&lt;b&gt; &amp;&#65;&#x42; &unknown;", "<p><b> &AB &unknown;</p>"),
    ("---", "<hr></hr>"),
    ("* * *", "<hr></hr>"),
    ("- a\n- b", "<ul><li><span>a</span></li><li><span>b</span></li></ul>"),
    ("3. a\n4. b", "<ol start=3><li><span>a</span></li><li><span>b</span></li></ol>"),
    (
        "1. a\n   - b\n     - c\n2. d",
        "<ol><li><span>a</span><ul><li><span>b</span><ul><li><span>c</span></li></ul></li></ul></li>"
        "<li><span>d</span></li></ol>",
    ),
    ("1. a\n  - b", "<ol><li><span>a</span><ul><li><span>b</span></li></ul></li></ol>"),
    ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
    (
        "- a\n\n  more\n\n  ```\n  x\n  ```",
        "<ul><li><p>a</p><p>more</p><figure><figcaption><span>text</span><button><svg><use href=#i-copy></use></svg>"
        "<span>Copy</span></button></figcaption><pre><code>x</code></pre></figure></li></ul>",
    ),
    (
        "- [ ] open\n- [x] done",
        "<ul><li><span>☐</span><span>open</span></li><li><span>☑</span><span>done</span></li></ul>",
    ),
    ("text\n- item", "<p>text</p><ul><li><span>item</span></li></ul>"),
    ("in\n1999. was", "<p>in<br></br>1999. was</p>"),
    (
        "> quote\n> > deeper\n\nout",
        "<blockquote><p>quote</p><blockquote><p>deeper</p></blockquote></blockquote><p>out</p>",
    ),
    ("[a](https://x.example/y)", "<p><a href=https://x.example/y>a</a></p>"),
    ("[a](<https://x.example/> 'title')", "<p><a href=https://x.example/>a</a></p>"),
    ("[w](https://en.example/A_(b))", "<p><a href=https://en.example/A_(b)>w</a></p>"),
    ("[m](mailto:a@b.example)", "<p><a href=mailto:a@b.example>m</a></p>"),
    (
        "see https://x.example/a_b_c.",
        "<p>see <a href=https://x.example/a_b_c>https://x.example/a_b_c</a>.</p>",
    ),
    ("(https://x.example/)", "<p>(<a href=https://x.example/>https://x.example/</a>)</p>"),
    ("<https://x.example>", "<p><a href=https://x.example/>https://x.example</a></p>"),
    ("![cat](https://x.example/cat.png)", "<p><a href=https://x.example/cat.png>Image: cat</a></p>"),
    ("[no](/v1/models) [no](javascript:alert(1))", "<p>[no](/v1/models) [no](javascript:alert(1))</p>"),
    ("a [b] c](d", "<p>a [b] c](d</p>"),
    ("<b>text</b>", "<p><b>text</b></p>"),
    ("Roses\n\n***\n\nred", "<p>Roses</p><hr></hr><p>red</p>"),
    ("~~~\ntilde ``` inside\n~~~", None),
]
TABLE = "| a | b |\n|:--|--:|\n| 1 | **2** |\n| x \\| y |"


@pytest.fixture
def shown(page):
    page.open()

    def show(text, split=None):
        return page.module(
            SHAPE
            + """
            const [text, split] = given;
            const root = document.createElement("div"); const markdown = new Markdown(root);
            for (let i = split ?? 0; split && i < text.length; i += split) markdown.show(text.slice(0, i), true);
            markdown.show(text, false);
            return inner(root);
            """,
            text,
            split,
        )

    return show


def test_markdown_becomes_these_elements(shown):
    for text, wanted in CASES:
        if wanted is not None:
            assert shown(text) == wanted, text


def test_html_is_text_not_elements(page):
    page.open()
    counted = page.module(
        """
        const { Markdown } = await import("/markdown.js");
        const root = document.createElement("div");
        new Markdown(root).show("<b>text</b> <img src=x>", false);
        return [root.querySelectorAll("b, img").length, root.textContent];
        """
    )
    assert counted == [0, "<b>text</b> <img src=x>"]


def test_tables_keep_their_shape(page, shown):
    drawn = shown(TABLE)
    assert "<th>a</th><th>b</th>" in drawn
    assert "<td>1</td><td><strong>2</strong></td>" in drawn
    assert "<td>x | y</td><td></td>" in drawn
    assert shown("| no | table |") == "<p>| no | table |</p>"
    assert shown("Intro:\n" + TABLE).startswith("<p>Intro:</p><div><table>")


EVERYTHING = "\n\n".join(
    [
        "# Title with `code` and **bold**", "A paragraph with *emphasis*, [a link](https://x.example/a_(b)),\na second line.",
        "1. one\n   - nested **bold\n     text**\n   - [ ] task\n\n     loose part\n2. two", "- a\n- b\n\n\n- c",
        "> quote\n> - list in quote\n> ```js\n> const a = '</script>';\n> ```\nlazy", "```python\ndef f():\n\n    return '''x'''\n```",
        TABLE, "---", "text\n* item\n\t* tabbed\r\n* last", "~~~\nopen ``` fence\n~~~", "*a **b *c ~~d~~ `e", "Ünïcödé 🌊 日本語 **太字** end",
        "```\nnever closed\n# not a heading",
    ]
)  # fmt: skip


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64])
def test_streaming_ends_in_the_same_elements_as_all_at_once(shown, step):
    assert shown(EVERYTHING, step) == shown(EVERYTHING)


def test_every_prefix_of_a_stream_equals_its_own_whole_rendering(page):
    """At each moment the closed blocks are what a fresh rendering of the same text would make of them."""
    wrong = page.open().module(
        SHAPE
        + """
        const text = given[0]; const root = document.createElement("div"); const markdown = new Markdown(root);
        const wrong = [];
        for (let i = 1; i <= text.length; i += 1) {
          markdown.show(text.slice(0, i), true);
          const fresh = document.createElement("div"); new Markdown(fresh).show(text.slice(0, i), true);
          if (inner(root) !== inner(fresh)) wrong.push([text.slice(Math.max(0, i - 20), i), inner(root).slice(-120), inner(fresh).slice(-120)]);
        }
        return wrong.slice(0, 3);
        """,
        EVERYTHING,
    )
    assert wrong == []


TRAPS = "talk about\n#hashtags and\n-1 degrees\n1.5 litres\n>\n***bold\nstart*** and\n``x``\n+\n| a | b\n--- | ---\n1 | 2\n\nx\n---x\n"


def test_wherever_two_deltas_meet_nothing_is_settled_too_early(page):
    """What a half line is (a heading? a tag?) its next characters decide: for each cut, two parts end as one whole."""
    wrong = page.open().module(
        SHAPE
        + """
        const wrong = []; const text = given[0];
        const whole = document.createElement("div"); new Markdown(whole).show(text, false);
        for (let one = 1; one < text.length; one += 1) for (const two of [1, 2, 5]) {
          const root = document.createElement("div"); const markdown = new Markdown(root);
          for (const end of [one, one + two, one + two + 3]) markdown.show(text.slice(0, end), true);
          markdown.show(text, false);
          if (inner(root) !== inner(whole)) wrong.push([one, two, inner(root)]);
        }
        return wrong.slice(0, 2);
        """,
        TRAPS,
    )
    assert wrong == []


def test_settled_blocks_keep_their_elements_while_the_answer_grows(page):
    found = page.open().module(
        """
        const { Markdown } = await import("/markdown.js");
        const root = document.createElement("div"); const markdown = new Markdown(root);
        let text = ""; const first = []; let touched = 0;
        const watch = new MutationObserver((all) => { touched += all.filter((m) => m.target !== root && root.firstChild.contains(m.target)).length; });
        watch.observe(root, { subtree: true, childList: true, characterData: true });
        for (let i = 0; i < 200; i += 1) {
          for (const piece of ["Para", "graph ", `${i}`, "\\n", "\\n"]) { text += piece; markdown.show(text, true); }
          if (i === 1) { await null; touched = 0; watch.takeRecords(); first.push(root.firstChild); }
        }
        await null;
        return { same: first[0] === root.firstChild, touched, blocks: root.children.length, settled: markdown.settled / text.length };
        """
    )
    assert found["same"]
    assert found["touched"] == 0
    assert found["blocks"] == 200
    assert found["settled"] > 0.98, "a long answer must not be parsed again from its start"


def test_a_selection_inside_the_growing_block_stays(page):
    words = page.open().module(
        """
        const { Markdown } = await import("/markdown.js");
        const root = document.createElement("div"); document.body.append(root);
        const markdown = new Markdown(root);
        markdown.show("Select **these words** please", true);
        const range = document.createRange(); range.selectNodeContents(root.querySelector("strong"));
        getSelection().removeAllRanges(); getSelection().addRange(range);
        for (const more of [" and", " go *on*", " for `ever`"]) markdown.show(markdown.text + more, true);
        const chosen = getSelection().toString(); root.remove(); return chosen;
        """
    )
    assert words == "these words"


HOSTILE = {
    "brackets": "[" * 40_000,
    "links": "[a](" * 20_000,
    "stars": "*a " * 30_000,
    "mixed": "*_`~[" * 12_000,
    "backticks": " ".join("`" * (i % 200 + 1) for i in range(2_000)),
    "quotes": ">" * 20_000,
    "lists": "\n".join(" " * i + "- x" for i in range(800)),
    "spaces": "# " + " " * 60_000 + "#",
    "table": "|" * 30_000 + "\n" + "|-" * 15_000,
    "angle": "<http://" * 15_000,
    "bang": "![" * 30_000,
    "entities": "&#" * 30_000,
    "address": "https://" * 10_000,
    "closing": "a](b" * 20_000,
    "code": "```js\n" + "'\"`/*" * 12_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_costs_no_more_than_a_moment(page, name):
    """Quadratic work on these texts would take minutes, so the bound can be wide."""
    spent = page.open().module(
        """
        const { Markdown } = await import("/markdown.js");
        const root = document.createElement("div"); const markdown = new Markdown(root);
        const began = performance.now();
        for (const part of [0.3, 0.6, 1]) markdown.show(given[0].slice(0, given[0].length * part), part < 1);
        const depth = (n) => { let d = 0; for (let w = document.createTreeWalker(root), e; (e = w.nextNode()); ) { let k = 0; for (let p = e; p !== root; p = p.parentNode) k += 1; d = Math.max(d, k); if (k > 400) return k; } return d; };
        return [performance.now() - began, depth(root)];
        """,
        HOSTILE[name],
    )
    assert spent[0] < 8_000
    assert spent[1] < 200, "nesting stays bounded"


def test_copying_code_gives_the_code_alone(page, server, turn):
    code = "def f(a, b):\n    return a < b  # <tag>\n"
    server.script(turn([f"Look:\n\n```python\n{code}```\n\nDone."]))
    page.open()
    page.cdp(
        "Browser.grantPermissions",
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        origin=server.url,
    )
    page.connected().type("code please")
    page.until(lambda: page.all(".code button") and not page.all(".streaming"), "the code")
    assert page.text(".code figcaption span") == "python"
    assert page.text(".code .hl-k") == "def"
    page.click(".code button")
    page.until(lambda: page.all(".code use[href='#i-check']"), "the tick")
    assert page.module("return navigator.clipboard.readText()") == code.rstrip("\n")
    page.click(".assistant [aria-label='Copy message']")
    page.until(lambda: page.all(".tools use[href='#i-check']"), "the other tick")
    assert page.module("return navigator.clipboard.readText()") == f"Look:\n\n```python\n{code}```\n\nDone."
