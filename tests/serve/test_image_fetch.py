"""Pictures by address: which hosts are asked, what is connected to, and what of an answer is taken.

Servers are on loopback and names are resolved by the tests, so nothing leaves this machine.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from face_bench import FaceBench
from fake_prompter import CARD

from headrace.runtime.fetching import FetchRefused
from headrace.server.image_fetch import ImageFetch
from headrace.server.image_hosts import BadHost, HostList

LOOPBACK = ipaddress.ip_address("127.0.0.1")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
PICTURE = b"\x89PNG\r\n\x1a\n and the rest of it"


@pytest.mark.parametrize(
    ("entries", "url", "found"),
    [
        (["a.example"], "https://a.example/x.png?size=1&y=%20", "https://a.example:443/x.png?size=1&y=%20"),
        (["a.example"], "HTTPS://A.Example./x#part", "https://a.example:443/x"),
        (["a.example"], "https://a.example", "https://a.example:443/"),
        (["a.example"], "https://a.example:443?x", "https://a.example:443/?x"),
        (["http://a.example:8080"], "http://a.example:8080/", "http://a.example:8080/"),
        (["*"], "https://any.example/", "https://any.example:443/"),
        (["10.1.2.3"], "https://10.1.2.3/", "https://10.1.2.3:443/"),
        (["[::1]:444"], "https://[::1]:444/", "https://[::1]:444/"),
        (["::1"], "https://[0:0::1]/", "https://[::1]:443/"),
        (["a.example"], "https://a.example:8443/", None),
        (["a.example"], "http://a.example/", None),
        (["http://a.example"], "https://a.example/", None),
        (["a.example"], "https://b.a.example/", None),
        (["a.example"], "https://a.example.evil/", None),
        (["a.example"], "https://a.example@evil.example/", None),
        (["a.example"], "https://user@a.example/", None),
        (["a.example"], "https://evil.example#@a.example/", None),
        (["a.example"], "https://evil.example\\@a.example/", None),
        (["a.example"], "https://a.example/ x", None),
        (["a.example"], "https://a.example/\r\nhost: b", None),
        (["a.example"], "https://a.example:0x1bb/", None),
        (["a.example"], "https://a.example:99999/", None),
        (["a.example"], "https:///x", None),
        (["a.example"], "https://[::1/", None),
        (["a.example"], "https://a..example/", None),
        (["a.example"], "https://a.example/" + "x" * 2048, None),
        (["10.0.0.0/8"], "https://10.1.2.3/", None),
        (["*"], "http://any.example/", None),
    ],
)
def test_sec30_which_hosts_are_asked(entries: list[str], url: str, found: str | None) -> None:
    hosts = HostList.read(entries)
    if found is None:
        with pytest.raises(FetchRefused):
            hosts.target(url)
    else:
        assert hosts.target(url).url == found


@pytest.mark.parametrize(
    "entry",
    ["", "ftp://a.example", "a.example/x", "https://a.example/x", "u@a.example", "a b", "a:b", "10.0.0.1/8"],
)
def test_an_entry_that_is_no_host_stops_the_start(entry: str) -> None:
    with pytest.raises(BadHost):
        HostList.read([entry])


@pytest.mark.parametrize(
    ("address", "open_to_all"),
    [
        ("93.184.215.14", True), ("2606:2800:21f::1", True),
        ("127.0.0.1", False), ("127.1.2.3", False), ("0.0.0.0", False), ("10.0.0.1", False), ("172.16.0.1", False),
        ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("192.0.2.1", False),
        ("224.0.0.1", False), ("240.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False),
        ("fe80::1", False), ("fc00::1", False), ("ff02::1", False), ("::ffff:169.254.169.254", False),
        ("::ffff:93.184.215.14", True), ("64:ff9b::10.0.0.1", False), ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False), ("2001:0:0:0:0:0:f5ff:fffe", False),
    ],
)  # fmt: skip
def test_sec30_which_addresses_are_connected_to(address: str, open_to_all: bool) -> None:
    found = ipaddress.ip_address(address)
    assert HostList.read(["a.example"]).may_connect(found) is open_to_all
    assert HostList.read(["a.example", f"{address}"]).may_connect(found), "who lists an address means it"


def test_a_listed_network_holds_for_addresses_that_stand_for_its_own() -> None:
    hosts = HostList.read(["a.example", "10.1.0.0/16"])
    assert hosts.may_connect(ipaddress.ip_address("10.1.9.9"))
    assert hosts.may_connect(ipaddress.ip_address("::ffff:10.1.9.9"))
    assert not hosts.may_connect(ipaddress.ip_address("10.2.0.1"))


def answer(
    body: bytes = PICTURE, kind: str | None = "image/png", status: str = "200 OK", **headers: str
) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}"]
    lines += [] if kind is None else [f"content-type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Host:
    """A server whose answers are written down by path; None: it says nothing. `asked`: the heads it was sent."""

    def __init__(self, answers: dict[str, bytes | None]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        said = self.answers[head.split()[1]]
        if said is None:
            await reader.read()
        else:
            writer.write(said)
        writer.close()


@asynccontextmanager
async def fetching(
    answers: dict[str, bytes | None], *places: str, seconds: float = 10.0, most_bytes: int = 1 << 20
) -> AsyncIterator[tuple[Host, ImageFetch, str]]:
    """A host, and who fetches from `http://pictures.example:port`, which lies at `places`."""
    host = Host(answers)
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
    host.port = server.sockets[0].getsockname()[1]
    asked = 0

    async def resolve(name: str, port: int) -> list[Any]:
        nonlocal asked
        asked += 1
        assert asked <= len(answers) + 4
        if name not in ("pictures.example", "127.0.0.1"):
            raise OSError(f"{name} is not known here")
        return [ipaddress.ip_address(place) for place in places or ("127.0.0.1",)]

    origin = f"http://pictures.example:{host.port}"
    listed = [origin, "http://missing.example"] + ([] if places else ["127.0.0.1"])
    fetch = ImageFetch(HostList.read(listed), seconds=seconds, most_bytes=most_bytes, resolve=resolve)
    await fetch.warm()
    async with server:
        yield host, fetch, origin
        await fetch.close()


async def test_a_picture_is_fetched_plainly() -> None:
    async with fetching({"/a.png?x=1": answer(), "/b": answer(kind=None)}) as (host, fetch, origin):
        assert await fetch.fetch(f"{origin}/a.png?x=1") == PICTURE
        assert await fetch.fetch(f"{origin}/b") == PICTURE
        head = host.asked[0].lower()
        assert f"host: pictures.example:{host.port}" in head and "accept-encoding: identity" in head
        assert "cookie" not in head and "authorization" not in head


async def test_redirects_stay_on_the_list_and_end() -> None:
    moved = answer(b"", status="302 Found", location="/a.png")
    async with fetching({"/old": moved, "/a.png": answer()}) as (host, fetch, origin):
        assert await fetch.fetch(f"{origin}/old") == PICTURE
    for place in (
        "http://127.0.0.1/",
        "https://evil.example/",
        "file:///etc/passwd",
        "//evil.example/x",
        "http://[",
    ):
        away = answer(b"", status="301 Moved", location=place)
        async with fetching({"/": away}) as (host, fetch, origin):
            with pytest.raises(FetchRefused, match=r"not on this server's list|not understood"):
                await fetch.fetch(f"{origin}/")
            assert len(host.asked) == 1
    async with fetching({"/": answer(b"", status="307 Again", location="/")}) as (host, fetch, origin):
        with pytest.raises(FetchRefused, match="more than 3 redirects"):
            await fetch.fetch(f"{origin}/")
        assert len(host.asked) == 4


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer(status="404 Not Found"), "status 404"),
        (answer(status="206 Partial Content"), "status 206"),
        (answer(kind="text/html; charset=utf-8"), "no picture"),
        (answer(kind="image/svg+xml"), "no picture"),
        (answer(content_encoding="gzip"), "compressed"),
        (answer(b"x" * 2000), "more than"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n",
            "more than",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ntoo little", "no whole answer"),
        (b"SSH-2.0-nothing of this kind\r\n", "no whole answer"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000, "no whole answer"),
        (b"", "no whole answer"),
    ],
)
async def test_sec30_what_is_no_picture_is_not_taken(said: bytes, why: str) -> None:
    async with fetching({"/": said}, most_bytes=1000) as (_, fetch, origin):
        with pytest.raises(FetchRefused, match=why):
            await fetch.fetch(f"{origin}/")


async def test_sec30_a_slow_host_is_given_up() -> None:
    async with fetching({"/": None}, seconds=0.05) as (_, fetch, origin):
        with pytest.raises(FetchRefused, match=r"no picture within 0\.05 seconds"):
            await fetch.fetch(f"{origin}/")


@pytest.mark.parametrize(
    "places", [("127.0.0.1",), ("93.184.215.14", "127.0.0.1"), ("::ffff:127.0.0.1",), ("169.254.169.254",)]
)
async def test_sec30_a_name_that_leads_inside_is_not_followed(places: tuple[str, ...]) -> None:
    async with fetching({"/": answer()}, *places) as (host, fetch, origin):
        with pytest.raises(FetchRefused, match="not open to everybody"):
            await fetch.fetch(f"{origin}/")
        assert not host.asked


async def test_hosts_that_are_not_there() -> None:
    async with fetching({}) as (_, fetch, origin):
        with pytest.raises(FetchRefused, match="not to be found"):
            await fetch.fetch("http://missing.example/")
        url = f"{origin}/"
    with pytest.raises(FetchRefused, match="does not answer"):
        await fetch.fetch(url)


# -- through the faces -----------------------------------------------------------------------------------------


class Fetcher:
    """Takes addresses of a.example; a fetch ends when its test lets it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.waiting: dict[str, asyncio.Future[bytes]] = {}

    def check(self, url: str) -> None:
        if not url.startswith("https://a.example/"):
            raise FetchRefused("names a host that is not on this server's list (--image-url-allow)")

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        future = self.waiting[url] = asyncio.get_running_loop().create_future()
        return await future

    async def give(self, url: str, data: bytes | FetchRefused) -> None:
        while url not in self.waiting:
            await asyncio.sleep(0)
        if isinstance(data, bytes):
            self.waiting[url].set_result(data)
        else:
            self.waiting[url].set_exception(data)


def chat_body(*urls: str) -> dict[str, Any]:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": "what?"}]
    return {"model": "fake", "max_tokens": 3, "messages": [{"role": "user", "content": content}]}


@pytest.fixture
def bench() -> FaceBench:
    found = FaceBench(card=replace(CARD, sees=True))
    found.runtime.fetches.fetcher = Fetcher()
    return found


ONE, TWO = "https://a.example/1.png", "https://a.example/2.png"


async def test_a_request_waits_for_its_pictures(bench: FaceBench) -> None:
    fetcher: Any = bench.runtime.fetches.fetcher
    fetch = bench.fetch("/v1/chat/completions", chat_body(ONE, TWO, ONE))
    assert not fetch.over
    await fetcher.give(TWO, b"12345")
    await fetcher.give(ONE, b"123")
    assert (await fetch.done()).status == 200
    assert fetcher.asked == [ONE, TWO], "each address once"
    shown = "".join(f"[whole picture of {size}]" for size in (3, 5, 3))
    assert bytes(bench.prompts[-1]).decode() == f"user: {shown}what?\nassistant: "
    await bench.baseline()


async def test_every_route_takes_them(bench: FaceBench) -> None:
    fetcher: Any = bench.runtime.fetches.fetcher
    by_url = {"type": "image", "source": {"type": "url", "url": ONE}}
    turn = {"role": "user", "content": [by_url, {"type": "text", "text": "what?"}]}
    asked = {"model": "fake", "messages": [turn]}
    counted = bench.fetch("/v1/messages/count_tokens", asked)
    await fetcher.give(ONE, b"123")
    assert (await counted.done()).json["input_tokens"] == len("user: [whole picture of 3]what?\nassistant: ")
    fetcher.waiting.clear()
    said = bench.fetch("/v1/messages", {**asked, "max_tokens": 2})
    await fetcher.give(ONE, b"123")
    assert (await said.done()).status == 200
    fetcher.waiting.clear()
    body = {
        "model": "fake",
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": ONE}]}],
    }
    response = bench.fetch("/v1/responses", {**body, "max_output_tokens": 2})
    await fetcher.give(ONE, b"1234")
    assert (await response.done()).status == 200
    assert bytes(bench.prompts[-1]).decode() == "user: [whole picture of 4]\nassistant: "
    await bench.baseline()


async def test_what_is_not_fetched_is_named(bench: FaceBench) -> None:
    fetcher: Any = bench.runtime.fetches.fetcher
    fetch = bench.fetch("/v1/chat/completions", chat_body(ONE, TWO))
    await fetcher.give(TWO, FetchRefused("was answered with status 404"))
    error = (await fetch.done()).error
    assert fetch.status == 400 and error["code"] == "invalid_value"
    named = "messages[0].content[1].image_url.url"
    assert error["param"] == named
    assert error["message"] == f"{named}: the picture's address was answered with status 404"
    assert fetcher.waiting[ONE].cancelled(), "the other one is not waited for"
    off = bench.fetch("/v1/chat/completions", chat_body("https://b.example/x"))
    assert off.over and off.status == 400 and "--image-url-allow" in off.error["message"]
    await bench.baseline()


async def test_a_client_that_leaves_takes_its_fetches_with_it(bench: FaceBench) -> None:
    fetcher: Any = bench.runtime.fetches.fetcher
    fetch = bench.fetch("/v1/chat/completions", chat_body(ONE))
    while ONE not in fetcher.waiting:
        await asyncio.sleep(0)
    fetch.drop()
    while not fetcher.waiting[ONE].cancelled():
        await asyncio.sleep(0)
    await bench.baseline()


async def test_nothing_is_fetched_for_who_cannot_see_or_shows_too_much(bench: FaceBench) -> None:
    blind = FaceBench()
    blind.runtime.fetches.fetcher = fetcher = Fetcher()
    fetch = await blind.fetch("/v1/chat/completions", chat_body(ONE)).done()
    assert fetch.status == 400 and "takes no pictures" in fetch.error["message"] and not fetcher.asked
    many = await bench.fetch("/v1/chat/completions", chat_body(*[ONE] * 9)).done()
    assert not bench.runtime.fetches.fetcher.asked  # type: ignore[union-attr]
    assert many.over
    await bench.baseline()
