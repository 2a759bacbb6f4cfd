"""Who may call the one port: hosts, origins, keys, room, and what cannot be grown by calling (SEC-33 to SEC-37)."""

from __future__ import annotations

import hashlib
import random
import string
from pathlib import Path

import pytest
from front_rig import Rig, get, handshake, only, post, replies

from headrace.server import auth
from headrace.server.auth import KEY_PROTOCOL, BadSetting, Gate, check_bind, load_keys, tenant_id
from headrace.server.config import ServerConfig

# -- hosts and origins (SEC-35, SEC-36) ---


@pytest.mark.parametrize("upgrade", [False, True])
def test_sec36_only_our_names_are_served(upgrade: bool) -> None:
    rig = Rig(allow_host=("chat.example.org",))

    def status(host: str) -> int:
        raw = handshake("/ws", Host=host) if upgrade else get("/tell", host=host)
        return replies(rig.ask(raw).sent)[0].status

    good = 101 if upgrade else 200
    if upgrade:
        # The 101 is no HTTP reply in the sense of the other routes.
        assert bytes(rig.ask(handshake("/ws", Host="localhost:8000")).sent).startswith(b"HTTP/1.1 101 ")
    else:
        for host in (
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1:8000",
            "[::1]:8000",
            "192.168.1.5",
            "chat.example.org",
            "Chat.Example.org:443",
        ):
            assert status(host) == good, host
    for host in (
        "evil.example",
        "localhost.evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost/evil",
        "localhost@evil.example",
        "localhost:evil",
        "[::1].evil",
        "xn--lcalhost-c1a",
        "",
    ):
        assert status(host) in (421, 400), host
        assert only(rig.ask(get("/", host=host)).sent).status in (421, 400), "public pages too"


def test_sec36_host_with_the_right_origin_is_still_refused() -> None:
    rig = Rig()
    raw = get("/tell", "Origin: http://evil.example", host="evil.example")
    assert only(rig.ask(raw).sent).status == 421


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("upgrade", [False, True])
@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        (None, True),
        ("http://localhost:8000", True),
        ("HTTP://LOCALHOST:8000", True),
        ("https://app.example.org", True),
        ("null", False),
        ("http://evil.example", False),
        ("http://localhost:3000", False),
        ("http://localhost", False),
        ("http://localhost:8000.evil.example", False),
        ("http://evil.example/?http://localhost:8000", False),
        ("https://localhost:8000", False),
        ("https://app.example.org.evil.example", False),
        ("http://app.example.org", False),
        ("file://", False),
        ("", False),
    ],
)
def test_sec35_only_our_pages_may_call(keyed: bool, upgrade: bool, origin: str | None, passes: bool) -> None:
    rig = Rig(keys=["sesame"] if keyed else [], allow_origin=("https://app.example.org/",))
    lines = {"Origin": origin} if origin is not None else {}
    if keyed:
        lines["Authorization"] = "Bearer sesame"
    if upgrade:
        raw = handshake("/ws", Host="localhost:8000")
        raw = raw[:-2] + "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n"
    else:
        raw = get("/tell", *(f"{name}: {value}" for name, value in lines.items()), host="localhost:8000")
    head = bytes(rig.ask(raw).sent).split(b"\r\n")[0]
    assert head.split()[1] == ((b"101" if upgrade else b"200") if passes else b"403")
    assert len(rig.faces.requests) == passes
    if keyed and origin is None:
        assert only(rig.ask(get("/tell", host="localhost:8000")).sent).status == 401


def test_sec35_requests_that_another_site_caused() -> None:
    rig = Rig()
    for site, mode, status in (
        ("cross-site", "no-cors", 403),
        ("same-site", "no-cors", 403),
        ("cross-site", "navigate", 200),
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
    ):
        raw = get("/tell", f"Sec-Fetch-Site: {site}", f"Sec-Fetch-Mode: {mode}")
        assert only(rig.ask(raw).sent).status == status


# -- keys (SEC-33, SEC-34) ---


def test_sec33_every_route_asks_for_a_key_unless_it_is_public() -> None:
    rig = Rig(keys=["sesame", "second"])
    table = rig.faces.table()
    public = {path for path, route in table.http.items() if route.public}
    assert public == {"/", "/healthz"}
    for path, route in table.http.items():
        for method in [*route.methods, "OPTIONS"]:
            real = path.replace("{id:path}", "a").replace("{id}", "a")
            raw = get(real).replace(b"GET", method.encode(), 1)
            reply = only(rig.ask(raw).sent)
            assert (reply.status == 401) is (path not in public), path
            if reply.status == 401:
                assert reply.headers["www-authenticate"] == "Bearer"
                assert reply.error["code"] == "invalid_api_key"
    for path in table.sockets:
        for wrong in ("", "Bearer wrong", "Basic sesame", "Bearer sesame2", "Bearer sesam", "Bearer"):
            reply = only(rig.ask(handshake(path, Authorization=wrong)).sent)
            assert reply.status == 401
    assert not rig.faces.requests and not rig.faces.sessions


def test_sec33_key_sources_and_tenants() -> None:
    rig = Rig(keys=["sesame", "second"], query_token=True)

    def tenant(raw: bytes) -> str | None:
        before = len(rig.faces.requests)
        rig.ask(raw)
        return rig.faces.requests[-1].tenant.id if len(rig.faces.requests) > before else None

    assert tenant(get("/tell", "Authorization: Bearer sesame")) == tenant_id("sesame")
    assert tenant(get("/tell", "authorization: bearer second")) == tenant_id("second")
    assert tenant(get("/tell", "X-Api-Key: second")) == tenant_id("second")
    assert tenant(get("/tell?access_token=sesame")) == tenant_id("sesame")
    assert tenant(get("/tell?access_token=wrong")) is None
    assert tenant(get("/tell", "Authorization: Bearer wrong", "X-Api-Key: sesame")) is None, (
        "the first counts"
    )
    raw = handshake("/both", Sec_WebSocket_Protocol=f"text, {KEY_PROTOCOL}second")
    assert tenant(raw) == tenant_id("second")
    assert tenant(handshake("/both", Sec_WebSocket_Protocol=f"text, {KEY_PROTOCOL}wrong")) is None
    salts = {request.tenant.id: request.tenant.salt for request in rig.faces.requests}
    assert len(set(salts.values())) == 2
    for key, salt in (("sesame", salts[tenant_id("sesame")]), ("second", salts[tenant_id("second")])):
        assert key not in salt and hashlib.sha256(key.encode()).hexdigest() != salt
    closed = Rig(keys=["sesame"])
    assert only(closed.ask(get("/tell?access_token=sesame")).sent).status == 401, "off unless turned on"
    assert not closed.faces.requests


def test_sec34_keys_are_compared_as_digests_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[bytes, bytes]] = []
    real = auth.hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        calls.append((a, b))
        return real(a, b)

    gate = Gate(ServerConfig(), ["one", "two", "three"])
    monkeypatch.setattr(auth.hmac, "compare_digest", spy)
    for presented in ("one", "three", "none of them", "\udcff"):
        calls.clear()
        gate.tenant({"authorization": f"Bearer {presented}"}, {})
        assert len(calls) == 3, "no early exit tells which key was right"
        assert all(len(a) == len(b) == 32 for a, b in calls)


def test_keys_come_from_flags_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-file\n\nagain\n")
    config = ServerConfig(api_key=("flag", "again"), api_key_file=str(file))
    assert load_keys(config, {"HEADRACE_API_KEY": "env1 env2"}) == (
        "flag",
        "again",
        "from-file",
        "env1",
        "env2",
    )
    assert load_keys(ServerConfig(), {}) == ()
    for bad in (
        ServerConfig(api_key=("with space",)),
        ServerConfig(api_key=("",)),
        ServerConfig(api_key=("é",)),
    ):
        with pytest.raises(BadSetting):
            load_keys(bad, {})
    with pytest.raises(BadSetting, match="no-such-file"):
        load_keys(ServerConfig(api_key_file=str(tmp_path / "no-such-file")), {})
    file.write_text("light\nheavy 2.5\n")
    light, heavy = load_keys(ServerConfig(api_key_file=str(file)), {})
    gate = Gate(ServerConfig(), (light, heavy))
    weights = [gate.tenant({"authorization": f"Bearer {key}"}, {}).weight for key in (light, heavy)]
    assert weights == [1.0, 2.5]
    for bad in ("key x", "key 0", "key -1", "key nan", "key 1 2"):
        file.write_text(bad)
        with pytest.raises(BadSetting, match="weight"):
            load_keys(ServerConfig(api_key_file=str(file)), {})
    file.write_text("# nothing\n")
    with pytest.raises(BadSetting, match="no key"):
        load_keys(ServerConfig(api_key_file=str(file)), {})


def test_sec50_an_open_bind_needs_a_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.9"):
        check_bind(ServerConfig(host=host), ())
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(BadSetting, match="--api-key"):
            check_bind(ServerConfig(host=host), ())
        check_bind(ServerConfig(host=host), ("key",))
        check_bind(ServerConfig(host=host, insecure=True), ())


# -- room (WS-08) ---


@pytest.mark.parametrize("upgrade", [False, True])
def test_ws08_connections_of_the_process(upgrade: bool) -> None:
    rig = Rig(limits={"max_sockets": 3})
    held = [rig.upgrade() if upgrade else rig.connect() for _ in range(3)]
    refused = rig.ask(handshake() if upgrade else get("/tell"))
    reply = only(refused.sent)
    assert reply.status == 503 and reply.headers["retry-after"] and refused.eof
    assert reply.error["type"] == "server_error"
    held[0].lose()
    assert bytes(rig.ask(get("/")).sent).startswith(b"HTTP/1.1 200 ")
    assert rig.metrics.refused_connections == 1


def test_ws08_connections_of_one_address() -> None:
    rig = Rig(limits={"max_sockets_per_ip": 2})

    def status(address: str) -> int:
        return only(rig.ask(get("/"), address=address).sent).status

    first = rig.connect("203.0.113.5")
    rig.connect("203.0.113.5")
    reply = only(rig.ask(get("/"), address="203.0.113.5").sent)
    assert reply.status == 429 and reply.headers["retry-after"]
    assert reply.error["type"] == "rate_limit_error"
    assert status("203.0.113.6") == 200
    first.lose()
    assert status("203.0.113.5") == 200
    assert [status(f"2001:db8:0:1::{number}") for number in range(2)] == [200, 200]
    assert status("2001:db8:0:1:ffff::9") == 429, "a /64 is one address"
    assert status("2001:db8:0:2::1") == 200
    assert status("::ffff:203.0.113.5") == 429
    assert [status("127.0.0.1") for _ in range(5)] == [200] * 5, (
        "the operator and local proxies are not counted"
    )


def test_ws08_a_connection_without_room_that_says_nothing_is_closed() -> None:
    rig = Rig(limits={"max_sockets": 1})
    rig.connect()
    silent = rig.connect()
    assert not silent.sent, "a reply before the request would confuse some clients"
    rig.loop.advance(2.1)
    assert silent.lost and not silent.sent


def test_ws08_connections_of_one_key() -> None:
    rig = Rig(keys=["a", "b"], limits={"max_sockets_per_key": 2})
    first = rig.upgrade(Authorization="Bearer a")
    second = rig.ask(get("/tell", "Authorization: Bearer a"))
    for raw in (handshake(Authorization="Bearer a"), get("/tell", "Authorization: Bearer a")):
        reply = only(rig.ask(raw).sent)
        assert reply.status == 429 and reply.headers["retry-after"]
    second.feed(get("/tell", "Authorization: Bearer a"))
    assert [reply.status for reply in replies(second.sent)] == [200, 200], "counted once per connection"
    second.feed(get("/tell", "Authorization: Bearer b"))
    assert only(rig.ask(get("/tell", "Authorization: Bearer a")).sent).status == 200, "b has it now"
    first.lose()
    second.lose()
    rig.loop.advance(80)
    assert rig.port.census.open == 0 and not rig.port.census._keys and not rig.port.census._addresses


# -- labels (SEC-37) ---


def test_sec37_clients_cannot_grow_the_label_set() -> None:
    rig = Rig()
    rng = random.Random(1)
    letters = string.ascii_letters + string.digits

    def word() -> str:
        return "".join(rng.choices(letters, k=8))

    def labels() -> set[str]:
        return {
            line.rpartition(" ")[0] for line in rig.metrics.text().decode().splitlines() if line[0] != "#"
        }

    def burst() -> None:
        for _ in range(300):
            path, method = word(), word()
            rig.ask(f"{method} /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).lose()
            rig.ask(f"{method} /tell HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).lose()
            rig.ask(get(f"/models/{path}?user={word()}", f"User-Agent: {word()}")).lose()
            rig.ask(post(f"/items/{path}/cancel", word().encode())).lose()

    burst()
    before = labels()
    burst()
    assert labels() == before
    assert 'headrace_http_requests_total{method="GET",route="/models/{id:path}",status="200"}' in before
    assert 'headrace_http_requests_total{method="other",route="none",status="404"}' in before
