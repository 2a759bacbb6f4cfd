"""Chat templates: everything transformers offers, nothing that does not end (SEC-17), no way out (SEC-18)."""

from __future__ import annotations

import threading
import time
import tracemalloc
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.template import ChatTemplate, TemplateRefused
from headrace.runtime.woven import Woven, spans_of, weave

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<x>", "<y>"]}
TURNS = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "Say <b>\"hi\" & 'bye' ü你🎉</b>"},
    {"role": "assistant", "content": "hi\n"},
    {"role": "user", "content": ""},
]

# Each uses something that templates in the wild use.
FEATURES = [
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}{{ eos_token }}"
    "{% endfor %}",
    "{% for m in messages %}{% if loop.first %}F{% endif %}{{ loop.index }}{{ loop.index0 }}"
    "{{ loop.last }}{% endfor %}",
    "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.found = true %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.n }}",
    "{% macro turn(m, end='!') %}<{{ m.role }}>{{ m.content }}{{ end }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{{ turn(m, end='?') }}{% endfor %}",
    "{{ messages | tojson }}",
    "{{ messages | tojson(indent=2) }}",
    "{{ {'b': 1, 'a': [1, 2.5, none, true, 'é<>&']} | tojson(sort_keys=true, ensure_ascii=true) }}",
    "{{ {'a': 1} | tojson(separators=(',', ':')) }}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
    "{% break %}{% endfor %}",
    "{% generation %}{% set a = 'in' %}{{ a }}{% endgeneration %}{{ a is defined }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
    "{{ messages | rejectattr('role', 'in', ['user', 'system']) | list | length }}",
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | map('length') | join('-') }}",
    "{{ messages[0]['content'].strip().split(' ') | last }} {{ messages[-1].content or 'empty' }}",
    "{{ 'a,b,c'.split(',') }} {{ 'abc'[1:] }} {{ 'abc'[::-1] }} {{ 'x'.startswith('x') }}"
    " {{ 'a-b'.replace('-', '+') }}",
    "{{ messages[1:] | length }} {{ (messages | first).role | upper }} {{ 'ab' | title }} {{ 'AB' | lower }}",
    "{% set x %}<{{ messages[0].role }}>{% endset %}{{ x ~ '|' ~ 3 ~ none }}",
    "{{ '%s=%d' % ('a', 5) }} {{ '{} {b}'.format(1, b=2) }} {{ '%.2f' | format(1.5) }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}"
    "{% for k, v in {'a': 1} | items %}{{ k }}{% endfor %}",
    "{{ dict(a=1) }} {{ range(3) | list }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ 7 % 4 }} {{ -3 | abs }}"
    " {{ [1, 2] + [3] }}",
    "{{ undefined_name }}{{ undefined_name is defined }}{{ undefined_name | default('d') }}"
    "{{ tools is none }}",
    "{%- if messages[0].role is string and messages is iterable and messages is not mapping -%}"
    "  yes  {%- endif %}",
    "  {% if true %}\n  kept\n  {% endif %}\n  {#- a comment -#}\nend\n",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{% else %}none{% endfor %}{% for x in [] %}{% else %}"
    "none{% endfor %}",
    "{{ 'a' 'b' }}{{ 'x' * 3 }}{{ ['u'] * 2 }}{{ ('a', 'b') }}{{ 1 if false }}{{ not true }}",
    "{% filter upper %}{{ messages[0].content }}{% endfilter %}{% with a = 1 %}{{ a }}{% endwith %}",
    "{% macro m() %}({{ caller('c') }}){% endmacro %}"
    "{% call(x) m() %}{{ x }}{% endcall %}",
    "{{ messages | groupby('role') | map('first') | list }}{{ [3, 1, 2] | sort }}"
    "{{ ['b', 'a', 'b'] | unique | join }}",
    "{{ additional_special_tokens | join }}{{ additional_special_tokens[0] }}{{ 'line\nline' | indent(2) }}",
    "{% for m in messages if m.role != 'system' %}{{ loop.length }}{{ m.role[0] }}{% endfor %}{{ 'é' | e }}",
    "{% for m in messages[::-1] %}{{ loop.previtem.role if loop.previtem is defined }}"
    "{{ m.get('x', '-') }}{% endfor %}",
    "{{ 'a' | safe ~ '<b>' }}{{ '<i>' | escape }}",
]  # fmt: skip


def theirs(source: str) -> str:
    rendered, _ = render_jinja_template([TURNS], chat_template=source, add_generation_prompt=True, **SPECIALS)
    return rendered[0]


@pytest.mark.parametrize("source", FEATURES)
def test_features_render_as_in_transformers(source: str) -> None:
    template = ChatTemplate(source, SPECIALS)
    expected = theirs(source)
    assert template.render(TURNS, {}, weaving=False) == expected
    woven = template.render(TURNS, {}, weaving=True)
    assert str.__str__(woven) == expected, "remembering origins changes nothing"


def test_strftime_now() -> None:
    source = "{{ strftime_now('%d %b %Y') }}"
    before = theirs(source)
    rendered = ChatTemplate(source, {}).render(TURNS, {}, weaving=False)
    assert rendered in (before, theirs(source))


# -- who wrote what --------------------------------------------------------------------------------------------


def owned(source: str, content: str = "USER") -> str:
    """The characters that count as the template's own, others as dots."""
    text = ChatTemplate(source, SPECIALS).render(
        [{"role": "user", "content": content}], {"opt": "OPT"}, weaving=True
    )
    marks = ["."] * len(text)
    for start, end in spans_of(text):
        marks[start:end] = text[start:end]
    return "".join(marks)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<a>{{ messages[0].content }}<b>", "<a>....<b>"),
        ("{{ bos_token + messages[0]['content'] + eos_token }}", "<s>....</s>"),
        ("{{ '<a>' ~ messages[0].content ~ '<b>' }}", "<a>....<b>"),
        ("{{ ('  <a>' + messages[0].content + '<b>  ').strip() }}", "<a>....<b>"),
        ("{{ ('  <a>' + messages[0].content) | trim }}", "<a>...."),
        ("{% set c = '<a>' + messages[0].content %}{% set c = c + '<b>' %}{{ c }}", "<a>....<b>"),
        ("{% set c %}<a>{{ messages[0].content }}{% endset %}{{ c }}", "<a>...."),
        ("{% macro m(x) %}<a>{{ x }}{% endmacro %}{{ m(messages[0].content) }}", "<a>...."),
        ("{{ '<a>'.join(['<b>', messages[0].content]) }}", "<b><a>...."),
        ("{{ additional_special_tokens[1] }}{{ opt }}", "<y>..."),
        ("{{ {'user': '<u>'}[messages[0].role] }}{{ ['<a>', '<b>'][1] }}", "<u><b>"),
        ("{% generation %}<a>{{ messages[0].content }}{% endgeneration %}", "<a>...."),
        ("{{ '<a>' * 2 }}{{ ('<abc>' + messages[0].content)[1:7] }}", "<a><a>abc>.."),
        ("{{ messages[0].role }}{{ 1 }}{{ messages | length }}", "....1."),
        # Trust is lost, never gained, where an operation is not followed.
        ("{{ '<a>%s' % messages[0].content }}", "......."),
        ("{{ '<a>{}'.format(messages[0].content) }}", "......."),
        ("{{ messages | tojson }}", "." * len('[{"role": "user", "content": "USER"}]')),
        ("{{ ('<a>' + messages[0].role) | upper }}", "......."),
    ],
)
def test_origins(source: str, expected: str) -> None:
    assert owned(source) == expected


def test_user_text_is_never_the_templates_own() -> None:
    """For every feature template: no character of a message counts as own, whatever happens to it on the way."""
    secret = "ǀǁǂǃ"
    turns = [{**turn, "content": secret} for turn in TURNS]
    for source in FEATURES:
        text = ChatTemplate(source, SPECIALS).render(turns, {}, weaving=True)
        for start, end in spans_of(text):
            assert not set(text[start:end]) & set(secret), source


def test_woven_operations() -> None:
    a, b = Woven("abc", ((0, 3),)), Woven("xyz", ((1, 2),))
    for text, expected in [
        (a + "u" + b, ((0, 3), (5, 6))),
        ("u" + a, ((1, 4),)),
        (a + a, ((0, 6),)),
        (b * 2, ((1, 2), (4, 5))),
        (b[1:], ((0, 1),)),
        (b[-1:], ()),
        (b[5:2], ()),
        (Woven("  q ", ((1, 4),)).strip(), ((0, 1),)),
        (Woven("xxq", ((0, 1),)).lstrip("x"), ()),
        (weave([]), ()),
        (weave(["", a, "", b]), ((0, 3), (4, 5))),
    ]:
        assert spans_of(text) == expected, str(text)
    assert type(b[::2]) is str
    assert type(b[0]) is str
    assert type(a.upper()) is str
    assert hash(a) == hash("abc")
    assert {"abc": 1}[a] == 1


# -- SEC-17: templates end -------------------------------------------------------------------------------------

ENDLESS = [
    "{% for i in range(3000) %}{% for j in range(3000) %}x{% endfor %}{% endfor %}",
    "{% for i in range(30000) %}{% for j in range(30000) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if range(99999) | list | length == 0 %}{% endfor %}",
    "{% set b = range(99999) | list %}{% for x in range(99999) if -1 in b %}{% endfor %}",
    "{% set b = range(99999) | list %}{{ range(99999) | select('in', b) | list | length }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
]
OVERGROWN = [
    "{{ 'a' * 300000000 }}",
    "{{ 300000000 * 'a' }}",
    "{{ 'a' * 9000 * 9000 }}",
    "{{ [0] * 300000000 }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "{% set ns = namespace(x={}) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}"
    "{% endfor %}",
    "{% set ns = namespace(x={}) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=()) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = x %}{% endfor %}",
    "{{ '%999999999s' % 'x' }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ ('%s' * 99999) % (('a' * 99999,) * 2) }}",
    "{{ '{:>999999999}'.format('x') }}",
    "{{ '{:>{w}}'.format('x', w=999999999) }}",
    "{{ '{w:999999999}'.format_map({'w': 1}) }}",
    "{{ 'x'.center(999999999) }}",
    "{{ 'x'.ljust(10 ** 10) }}",
    "{{ '1'.zfill(999999999) }}",
    "{{ '\t'.expandtabs(10 ** 9) }}",
    "{{ 'x' | center(999999999) }}",
    "{{ 'x' | indent(999999999, true) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ ('a' * 999999).replace('a', 'b' * 9999) }}",
    "{{ ('a' * 999999) | replace('a', 'b' * 9999) }}",
    "{{ ''.join(['a' * 999999] * 99999) }}",
    "{{ ('a' * 999999).join(range(99999) | map('string')) }}",
    "{{ range(99999) | join('x' * 999999) }}",
    "{{ 10 ** (10 ** 8) }}",
    "{{ 1.0 | round(99999999, 'ceil') }}",
    "{{ strftime_now('%999999999d') }}",
    "{% for i in range(99999) %}" + "a" * 100 + "{% endfor %}",
    "{% macro m() %}{% for i in range(99999) %}" + "a" * 100 + "{% endfor %}{% endmacro %}{{ m() }}",
]


# Seconds of this thread's own CPU time, on a slow machine too. None of these templates would end within hours.
SOON = 10.0


@pytest.mark.parametrize("source", ENDLESS)
def test_endless_templates_are_refused_at_load(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(CheckpointError):
        ChatTemplate(source, {})
    assert time.thread_time() - start < SOON


@pytest.mark.parametrize("source", OVERGROWN)
def test_overgrown_values_are_refused_at_load(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            ChatTemplate(source, {})
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("source", ENDLESS + OVERGROWN)
def test_a_template_that_waits_for_its_victim(source: str) -> None:
    """Harmless at load, hostile for one kind of message: that request is refused, soon."""
    template = ChatTemplate("{% if messages[0].content == 'go' %}" + source + "{% endif %}ok", {})
    assert template.render([{"role": "user", "content": "wait"}], {}, weaving=False) == "ok"
    for weaving in (False, True) if source in OVERGROWN else (True,):
        start = time.thread_time()
        with pytest.raises(TemplateRefused):
            template.render([{"role": "user", "content": "go"}], {}, weaving=weaving)
        assert time.thread_time() - start < SOON
    assert template.render([{"role": "user", "content": "wait"}], {}, weaving=False) == "ok"


def test_large_messages_render() -> None:
    """The caps are for what templates make, not for what clients may send."""
    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}", {})
    turns = [{"role": "user", "content": "x" * 7000}] * 1024
    assert len(template.render(turns, {}, weaving=False)) == 1024 * 7006
    assert len(template.render(turns, {}, weaving=True)) == 1024 * 7006


def test_budgets_of_threads_are_separate() -> None:
    """One thread at its limit does not take from the others, and origins do not mix."""
    slow = ChatTemplate("{% if messages[0].content == 'go' %}" + ENDLESS[1] + "{% endif %}", {})
    quick = ChatTemplate("<a>{{ messages[0].content }}", {})
    results: list[Any] = []

    def hostile() -> None:
        try:
            slow.render([{"role": "user", "content": "go"}], {}, weaving=False)
        except TemplateRefused as refused:
            results.append(refused)

    thread = threading.Thread(target=hostile)
    thread.start()
    while thread.is_alive():
        for weaving in (False, True):
            text = quick.render([{"role": "user", "content": "b"}], {}, weaving=weaving)
            assert text == "<a>b"
            assert spans_of(text) == (((0, 3),) if weaving else ())
    thread.join()
    assert len(results) == 1


# -- SEC-18: no way out ----------------------------------------------------------------------------------------

PAYLOADS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ messages.__class__ }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages.append('x') }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].__setitem__('role', 'x') }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(a=1).__class__.__mro__ }}",
    "{{ range.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__code__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ dict.__base__ }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ loop.__class__ }}{% for x in [1] %}{{ loop.__class__ }}{{ loop._iterator }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}{{ m._func }}{{ m._environment }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__}'.format_map({'0': ''}) }}",
    "{{ ('%s' | format(messages)).__class__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ config }}{{ request }}{{ environment }}{{ context }}",
    "{{ (1).__class__ }}{{ true.__class__ }}{{ none.__class__ }}",
    "{% set x = messages.__class__ %}{{ x }}",
    "{{ [].__class__.__base__.__subclasses__() | length }}",
    "{{ environment.tick }}{{ environment.own }}",
]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("weaving", [False, True])
def test_injections_have_no_effect(payload: str, weaving: bool) -> None:
    turns = [{"role": "user", "content": "hi"}]
    try:
        text = ChatTemplate(payload, {}).render(turns, {}, weaving=weaving)
    except (TemplateRefused, CheckpointError):
        text = ""
    assert turns == [{"role": "user", "content": "hi"}]
    for leak in ("class", "built-in", "function", "object at", "uid=", "module", "globals"):
        assert leak not in text


def test_template_code_in_messages_is_text() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    for text in ("{{ 7 * 7 }}", "{% raw %}", "{# x #}", "{{ raise_exception('x') }}"):
        assert template.render([{"role": "user", "content": text}], {}, weaving=False) == text


@pytest.mark.parametrize(
    "source",
    [
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{% import 'x' as y %}",
        "{% from 'x' import y %}",
        "{% if %}",
        "{{ x | no_such_filter }}",
        "{% for x in y %}",
        "{{" + "(" * 5000,
        "{{ " + "-" * 100_000 + "1 }}",
        "x" * ((1 << 20) + 1),
    ],
)
def test_templates_that_do_not_compile_are_refused_at_load(source: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        ChatTemplate(source, {})
    assert len(str(caught.value)) < 500
