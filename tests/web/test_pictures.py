"""Pictures in the browser chat: picked, pasted, dropped; shown, sent, kept; refused where the model has no eyes."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest


def png(width: int = 8, height: int = 6, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = (b"\0" + bytes(colour) * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


GIVE = """
const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
const given = new DataTransfer();
given.items.add(new File([bytes], arguments[2], { type: arguments[3] }));
const event = arguments[0] === "paste"
  ? new ClipboardEvent("paste", { clipboardData: given, bubbles: true, cancelable: true })
  : new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true });
document.querySelector("#prompt").dispatchEvent(event);
return event.defaultPrevented;
"""


def give(page: Any, how: str, data: bytes, name: str = "a.png", kind: str = "image/png") -> bool:
    return bool(page.js(GIVE, how, base64.b64encode(data).decode(), name, kind))


def trayed(page: Any, count: int) -> None:
    page.until(lambda: len(page.all("#tray .picture")) == count, f"{count} pictures in the tray")


@pytest.fixture
def seeing(page: Any, server: Any) -> Any:
    server.model["x_pictures"] = True
    page.open().connected()
    page.until(lambda: page.one("#attach").is_displayed(), "the button for pictures")
    return page


def test_picked_pasted_and_dropped_pictures_are_sent_in_front_of_the_text(
    seeing: Any, server: Any, turn: Any, tmp_path: Path
) -> None:
    page = seeing
    server.script(turn(["Three."]), turn(["Still three."]))
    data = [png(8, 6, (n, 9, 9)) for n in range(3)]
    (tmp_path / "picked.png").write_bytes(data[0])
    page.one("#picture-file").send_keys(str(tmp_path / "picked.png"))
    trayed(page, 1)
    assert give(page, "paste", data[1])
    trayed(page, 2)
    assert give(page, "drop", data[2])
    trayed(page, 3)
    page.type("what is this?")
    page.answer("Three.")
    (asked,) = server.of("response.create")
    assert asked["input"] == [
        {
            "type": "message",
            "role": "user",
            "content": [
                *({"type": "input_image", "image_url": url(each), "detail": "auto"} for each in data),
                {"type": "input_text", "text": "what is this?"},
            ],
        }
    ]
    assert not page.one("#tray").is_displayed()
    shown = page.js("return [...document.querySelectorAll('.user .picture img')].map((e) => e.src)")
    assert shown == [url(each) for each in data]
    page.until(
        lambda: page.js(
            "return [...document.querySelectorAll('.user img')].every((e) => e.naturalWidth === 8)"
        ),
        "the pictures to be drawn",
    )
    # The next turn goes out alone; a forgotten one takes its pictures along.
    page.type("and now?")
    page.answer("Still three.")
    assert server.of("response.create")[1]["input"][0]["content"] == "and now?"


def test_pictures_outlive_the_page_and_a_forgetful_server(seeing: Any, server: Any, turn: Any) -> None:
    page = seeing
    server.script(turn(["Red."]), turn(["unused"]), turn(["Still red."]))
    give(page, "paste", png())
    trayed(page, 1)
    page.type("colour?")
    page.answer("Red.")
    page.reload().connected()
    page.until(lambda: len(page.all(".user .picture img")) == 1, "the picture after a reload")
    page.type("sure?")
    page.until(lambda: len(server.of("response.create")) >= 2, "the whole history")
    first, *rest = server.of("response.create")[1]["input"]
    assert first["content"][0] == {"type": "input_image", "image_url": url(png()), "detail": "auto"}
    assert [item["role"] for item in rest] == ["assistant", "user"]


def test_a_picture_needs_no_words_and_can_be_taken_back(seeing: Any, server: Any, turn: Any) -> None:
    page = seeing
    server.script(turn(["A picture."]))
    assert page.one("#send").get_attribute("disabled")
    give(page, "paste", png())
    trayed(page, 1)
    assert not page.one("#send").get_attribute("disabled")
    page.click("#tray .quiet")
    trayed(page, 0)
    assert page.one("#send").get_attribute("disabled")
    give(page, "paste", png())
    trayed(page, 1)
    page.click("#send")
    page.answer("A picture.")
    (asked,) = server.of("response.create")
    assert [part["type"] for part in asked["input"][0]["content"]] == ["input_image"]
    assert page.titles() == ["A picture"]


def test_editing_the_words_keeps_the_picture(seeing: Any, server: Any, turn: Any) -> None:
    page = seeing
    server.script(turn(["One."]), turn(["Two."]))
    give(page, "paste", png())
    trayed(page, 1)
    page.type("first words")
    page.answer("One.")
    page.click(".user [aria-label='Edit and resend']")
    area = page.one(".editing textarea")
    area.clear()
    area.send_keys("other words")
    page.click(".editing .primary")
    page.answer("Two.")
    parts = server.of("response.create")[1]["input"][0]["content"]
    assert [part["type"] for part in parts] == ["input_image", "input_text"]
    assert parts[1]["text"] == "other words"
    assert len(page.all(".user .picture")) == 1


def test_large_pictures_are_drawn_smaller(seeing: Any) -> None:
    page = seeing
    size = page.module(
        """
        const { pictureUrl } = await import("./pictures.js");
        const canvas = document.createElement("canvas");
        Object.assign(canvas, { width: 5000, height: 1250 });
        const context = canvas.getContext("2d");
        const noise = context.createImageData(5000, 1250);
        const step = 65536;
        for (let i = 0; i < noise.data.length; i += step) crypto.getRandomValues(noise.data.subarray(i, i + step));
        context.putImageData(noise, 0, 0);
        const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
        const url = await pictureUrl(new File([blob], "large.png", { type: "image/png" }));
        const image = new Image();
        image.src = url;
        await image.decode();
        return [url.slice(0, 23), image.naturalWidth, image.naturalHeight];
        """
    )
    assert size == ["data:image/jpeg;base64,", 2048, 512]


def test_what_is_no_picture_is_refused_in_words(seeing: Any) -> None:
    page = seeing
    assert give(page, "paste", b"<svg", "broken.tiff", "image/tiff")
    page.until(lambda: "cannot read broken.tiff" in page.text("#toast"), "a sentence")
    give(page, "drop", b"hello", "notes.txt", "text/plain")
    page.until(lambda: "Only pictures" in page.text("#toast"), "a sentence")
    for _ in range(9):
        give(page, "paste", png())
    page.until(lambda: "at most 8 pictures" in page.text("#toast"), "a sentence")
    trayed(page, 8)


def test_a_model_without_eyes(page: Any, server: Any) -> None:
    page.open().connected()
    page.until(lambda: page.text("#model-name"), "the model")
    assert not page.one("#attach").is_displayed()
    assert give(page, "paste", png())
    page.until(lambda: "takes no pictures" in page.text("#toast"), "a sentence")
    assert not page.all("#tray .picture")


def test_imported_conversations_bring_pictures_and_nothing_else(seeing: Any) -> None:
    page = seeing
    kept = page.module(
        """
        const { checked } = await import("./store.js");
        const node = (pictures, role = "user") => ({ id: role, parent: null, role, text: "x", pictures });
        return [
          ["data:image/png;base64,AAAA"], ["https://example.org/x.png"], ["data:text/html;base64,AAAA"],
          ["data:image/svg+xml;base64,AAAA"], ["javascript:alert(1)"], "data:image/png;base64,AAAA", [5],
          Array(20).fill("data:image/gif;base64,AA=="),
        ].map((pictures) => checked({ nodes: [node(pictures)] }).nodes[0].pictures?.length ?? 0);
        """
    )
    assert kept == [1, 0, 0, 0, 0, 0, 0, 8]


def test_the_model_inside_the_package_offers_pictures_to_look_at(page, server):
    server.model |= {"x_embedded": True, "x_pictures": True}
    page.open().connected()
    assert len(page.all("#chips .seen button")) == 3
    assert "345" in page.text("#chips")
    page.until(
        lambda: page.js("return [...document.querySelectorAll('#chips img')].every((i) => i.naturalWidth)"),
        "them",
    )
    page.all("#chips .seen button")[1].click()
    page.answer("All is well.")
    picture, text = server.of("response.create")[0]["input"][0]["content"]
    assert picture["image_url"].startswith("data:image/png;base64,")
    assert text["text"] == "Which bar is the highest?"


def test_a_model_that_is_not_ours_is_offered_no_examples_of_ours(page, server):
    server.model |= {"x_pictures": True}
    page.open().connected()
    assert len(page.all("#chips button")) == 4 and not page.all("#chips img")
