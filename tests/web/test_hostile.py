"""SEC-40: whatever model, person or server says stays text. No script, no dialog, no foreign request."""

# ruff: noqa: E501 - the long lines are scripts for the page and texts, which a break would change

from __future__ import annotations

import json

import pytest

EVIL = "https://evil.example/"
_HANDLERS = ("img src=x onerror", "svg onload", "body onload", "video src=x onerror", "audio src=x onerror",
             "details open ontoggle", "input autofocus onfocus", "select autofocus onfocus", "marquee onstart",
             "iframe onload", "object data=x onerror", "embed src=x onload", "a href=x onclick", "div onmouseover",
             "p onpointerenter", "style onload", "link rel=stylesheet href=x onerror", "textarea autofocus onfocus",
             "math onclick", "form onsubmit")  # fmt: skip
_SCHEMES = ("javascript:boom()", "JaVaScRiPt:boom()", "java\tscript:boom()", " javascript:boom()", "javascript&colon;boom()",
            "&#106;avascript:boom()", "\x01javascript:boom()", "vbscript:boom()", "data:text/html,<script>boom()</script>",
            "data:text/html;base64,PHNjcmlwdD5ib29tKCk8L3NjcmlwdD4=", "file:///etc/passwd", "blob:https://evil.example/x",
            "//evil.example/x", "/v1/models", "..\\..", "about:blank", "filesystem:x", "view-source:x", "chrome://version",
            "javascript://%0aboom()")  # fmt: skip
VECTORS = [
    *(f"<{handler}=boom()>" for handler in _HANDLERS),
    *(f"[click]({scheme})" for scheme in _SCHEMES),
    *(f"![image]({scheme})" for scheme in _SCHEMES[:8]),
    *(f"<{scheme}>" for scheme in _SCHEMES[:6]),
    "<script>boom()</script>", f"<script src={EVIL}a.js></script>", "<scr<script>ipt>boom()</scr</script>ipt>",
    "</code></pre><script>boom()</script>", "```\n</code></pre><img src=x onerror=boom()>\n```",
    '```"><img src=x onerror=boom()>\ncode\n```', "```<svg/onload=boom()>\nx\n```", "`<img src=x onerror=boom()>`",
    f"![x]({EVIL}pixel.png)", f"![x]({EVIL}pixel.png \"t\\\" onerror=boom()\")", f"<img src={EVIL}pixel.png>",
    f'[x]({EVIL} "a\\" onmouseover=boom() b")', f"[![x]({EVIL}i.png)]({EVIL})", f"<iframe src={EVIL}></iframe>",
    f"<link rel=prefetch href={EVIL}>", f"<meta http-equiv=refresh content='0;url={EVIL}'>", f"<base href={EVIL}>",
    f"<style>@import '{EVIL}x.css';</style>", f"<div style=\"background:url({EVIL}x)\">", f"<video poster={EVIL}x>",
    f"<svg><image href={EVIL}x /></svg>", f"<svg><use href={EVIL}x#a /></svg>", f"<object data={EVIL}x></object>",
    f"<form action={EVIL}><button>go</button></form>", "| <img src=x onerror=boom()> | b |\n|---|---|\n| <svg onload=boom()> | c |",
    "# <img src=x onerror=boom()>", "> <svg onload=boom()>", "- <script>boom()</script>", "1. [x](javascript:boom())",
    "**<img src=x onerror=boom()>**", "~~<svg/onload=boom()>~~", "<math><mtext><img src=x onerror=boom()></mtext></math>",
    "<svg><script>boom()</script></svg>", "<svg><animate onbegin=boom() attributeName=x dur=1s>", "<![CDATA[<script>boom()</script>]]>",
    "<!--><script>boom()</script>-->", "<noscript><p title=\"</noscript><img src=x onerror=boom()>\">", "<template><script>boom()</script></template>",
    "<think><img src=x onerror=boom()></think>", "{{constructor.constructor('boom()')()}}", "${boom()}", "javascript:boom()",
    "https://evil.example/\"onmouseover=\"boom()", "https://evil.example/<script>boom()</script>", "[a](https://evil.example/%22%3E%3Cscript%3Eboom()%3C/script%3E)",
    "[<img src=x onerror=boom()>](https://evil.example/)", "&lt;script&gt;boom()&lt;/script&gt;", "&#60;img src=x onerror=boom()&#62;",
    "\\<script>boom()\\</script>", "<a href=\"jav&#x09;ascript:boom()\">x</a>", "\u2028<script>boom()</script>", "\u202e<img src=x onerror=boom()>",
]  # fmt: skip

ALLOWED = """
const elements = new Set("p br h3 h4 h5 h6 hr ul ol li span strong em del code pre figure figcaption button svg use a blockquote div table thead tbody tr th td".split(" "));
const attributes = { a: ["href", "target", "rel", "title"], svg: ["class", "aria-hidden"], use: ["href"], button: ["type", "data-copy", "aria-label"],
  th: ["class", "scope"], td: ["class"], ol: ["start"], div: ["class", "tabindex", "role", "aria-label"], pre: ["tabindex"] };
const breaches = (root) => [...root.querySelectorAll("*")].flatMap((e) => {
  const name = e.localName; const found = [];
  if (!elements.has(name)) found.push(name);
  for (const { name: key, value } of e.attributes) {
    if (!(attributes[name] ?? ["class"]).includes(key)) found.push(`${name} ${key}`);
    if (name === "a" && key === "href" && !/^(https?|mailto):/.test(value)) found.push(`a ${value}`);
    if (name === "use" && value !== "#i-copy") found.push(`use ${value}`);
  }
  if (name === "a" && (e.rel !== "noopener noreferrer nofollow" || e.target !== "_blank")) found.push("a without rel");
  return found;
});
"""
WATCH = "window.ran = []; window.boom = () => ran.push('boom'); for (const f of ['alert', 'confirm', 'prompt', 'print']) window[f] = () => ran.push(f);"


def test_there_are_enough_vectors():
    assert len(VECTORS) >= 100
    assert len(set(VECTORS)) == len(VECTORS)


def test_every_vector_split_everywhere_makes_only_allowed_elements(page):
    """For each vector and each place to cut it: streamed in two parts, then ended."""
    found = page.open().module(
        ALLOWED
        + """
        const { Markdown } = await import("/markdown.js");
        const bad = []; let splits = 0; let links = 0;
        for (const vector of given[0]) for (const around of ["", "- ", "> ", "| a |\\n|---|\\n| "]) {
          const text = around + vector;
          for (let cut = 0; cut <= text.length; cut += 1) {
            const root = document.createElement("div"); const markdown = new Markdown(root);
            markdown.show(text.slice(0, cut), true);
            const half = breaches(root);
            markdown.show(text, true); markdown.show(text, false);
            splits += 1; links += root.querySelectorAll("a").length;
            for (const what of [...half, ...breaches(root)]) bad.push([text, cut, what]);
          }
        }
        return { bad: bad.slice(0, 5), splits, links };
        """,
        VECTORS,
    )
    assert found["bad"] == []
    assert found["splits"] > 10_000
    assert found["links"] > 100, "harmless links do become links, so the walk above had something to check"


def test_the_element_check_would_notice(page):
    """The check of the two tests around this one finds what it is there to find."""
    found = page.open().module(
        ALLOWED
        + """
        const root = document.createElement("div");
        for (const [name, key, value] of [["img"], ["a", "href", "javascript:1"], ["p", "dir", "x"], ["b", "class", "x"]]) {
          const bad = root.appendChild(document.createElement(name));
          if (key) bad.setAttribute(key, value);
        }
        return breaches(root);
        """
    )
    assert {"img", "a javascript:1", "a without rel", "p dir", "b"} <= set(found)


@pytest.mark.parametrize("speaker", ["model", "person"])
def test_in_the_live_page_nothing_runs_and_nothing_is_fetched(page, server, turn, driver, speaker):
    """All vectors through the socket, one character in each delta; then every link and button is looked at."""
    page.cdp("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
    batches = ["\n\n".join(VECTORS[i : i + 15]) for i in range(0, len(VECTORS), 15)]
    server.script(
        *(turn(list(batch) if speaker == "model" else ["ok"], reasoning=[batch]) for batch in batches)
    )
    driver.get_log("performance")
    page.open().connected()
    for i, batch in enumerate(batches):
        if speaker == "person":
            page.js(
                "const p = document.querySelector('#prompt'); p.value = arguments[0]; p.dispatchEvent(new Event('input'))",
                batch,
            )
            page.click("#send")
        else:
            page.type(f"batch {i}")
        page.until(
            lambda n=i: len(page.all(".assistant")) == n + 1 and not page.all(".streaming"), "the answer"
        )
    if speaker == "person":
        shown = page.js("return [...document.querySelectorAll('.user .body')].map((e) => e.textContent)")
        assert shown == [batch.strip() for batch in batches]
        assert page.js("return document.querySelectorAll('.user .body *').length") == 0
    else:
        bad = page.js(ALLOWED + "return [...document.querySelectorAll('.assistant .body')].flatMap(breaches)")
        assert bad == []
    page.reload().connected()
    page.js(
        "for (const e of document.querySelectorAll('.message, .message *, #conversations *'))"
        " for (const kind of ['pointerenter', 'mouseover', 'focus', 'toggle', 'load', 'error'])"
        " e.dispatchEvent(new Event(kind, { bubbles: true }))"
    )
    assert page.js("return ran") == []
    fetched = {
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in driver.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    }
    assert fetched, "the log of requests is being read"
    strange = [url for url in fetched if not url.startswith((server.url, "data:", "blob:"))]
    assert strange == []


def test_hostile_names_stay_text_outside_the_messages_too(page, server, turn):
    page.cdp("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
    bad = "<img src=x onerror=boom()>"
    server.model |= {"id": bad, "x_notice": bad}
    server.script(turn([], error={"type": "x", "code": bad, "message": bad}))
    page.open().connected().type(bad)
    page.until(lambda: page.all(".note.error"), "the error")
    assert page.titles() == [bad]
    assert page.text("#title") == bad
    assert page.js("return document.querySelectorAll('img').length") == 0
    assert page.js("return ran") == []


def test_the_page_asks_no_one_but_its_own_server_and_breaks_no_policy(page, server, driver):
    """The `page` fixture fails on any breach of the content security policy; here: what is loaded at all."""
    driver.get_log("performance")
    page.open().connected().type("hello")
    page.answer("All is well.")
    urls = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in driver.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert any(url.endswith("/main.js") for url in urls)
    assert all(url.startswith(server.url) for url in urls), urls


def test_the_sources_never_parse_markup():
    """No file of the page uses an interface that turns a string into elements or code."""
    from importlib.resources import files

    sources = {
        f.name: f.read_text()
        for f in files("headrace.clients").joinpath("web").iterdir()
        if f.name.endswith((".js", ".html"))
    }
    assert len(sources) > 10
    for name, source in sources.items():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser",
                     "createContextualFragment", "srcdoc", "setHTMLUnsafe", "parseHTMLUnsafe", ".style.cssText", " style=", "javascript:"):  # fmt: skip
            assert word not in source, f"{name} uses {word}"
        if name.endswith(".html"):
            assert " on" not in "".join(part.split(">")[0] for part in source.split("<")).replace(
                " on ", ""
            ), "inline listeners"
            assert "<script>" not in source
        assert "http://" not in source.replace("http://www.w3.org/2000/svg", "").replace("https?://", "")
