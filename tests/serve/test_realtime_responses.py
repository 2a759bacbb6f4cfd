"""Realtime: what responses do to each other and to the conversation: side by side, cancelled, refused, failed."""

from __future__ import annotations

from typing import Any

from face_bench import FaceBench
from face_said import prompt_of
from realtime_bench import Talk, code_of, over

from headrace.runtime.refusal import Refusal
from headrace.server.session import LaneLimits


async def test_one_answer_at_a_time_in_the_conversation_and_others_beside_it() -> None:
    bench = FaceBench(gated=True)
    talk = Talk(bench)
    talk.user("hello", id="u")
    talk.ask(max_output_tokens=30)
    await talk.until(lambda: "response.output_text.delta" in talk.reader.types)
    talk.said_now()
    talk.ask(event_id="second")
    (event,) = talk.said_now()
    assert event["error"]["code"] == "conversation_already_has_active_response"
    assert event["error"]["event_id"] == "second" and talk.reader.finals == []
    inputs = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "aside"}]},
        {"type": "item_reference", "id": "u"},
    ]
    talk.ask(conversation="none", input=inputs, metadata={"topic": "aside"}, max_output_tokens=3)
    talk.ask(conversation="none", max_output_tokens=3, instructions="Sum up.")
    finals = await talk.until_done(3)
    assert [final["conversation_id"] is None for final in finals] == [True, True, False]
    assert finals[0]["metadata"] == {"topic": "aside"}
    prompts = [bytes(ids).decode() for ids in bench.prompts]
    assert prompts[1:] == [
        "user: aside\nuser: hello\nassistant: ",
        "system: Sum up.\nuser: hello\nassistant: ",
    ], "out of band with input, and with what the conversation holds"
    assert len(talk.items()) == 2, "the conversation knows nothing of them"
    await over(bench, talk)


async def test_input_replaces_the_context_for_one_answer() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.user("long ago")
    talk.ask(input=[{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "now"}]}])
    (final,) = await talk.until_done()
    assert prompt_of(bench) == "user: now\nassistant: "
    talk.ask()
    await talk.until_done(2)
    text = final["output"][0]["content"][0]["text"]
    assert prompt_of(bench) == f"user: long ago\nassistant: {text}\nassistant: ", (
        "its answer is kept, in band"
    )
    talk.said_now()
    talk.ask(input=[], event_id="empty")
    assert code_of(talk) == ("invalid_value", "response.input")
    talk.ask(input=[], instructions="Greet.", conversation="auto")
    await talk.until_done(3)
    assert prompt_of(bench) == "system: Greet.\nassistant: "
    talk.said_now()
    talk.ask(input=[{"type": "item_reference", "id": "gone"}])
    assert code_of(talk) == ("invalid_value", "response.input[0].id")
    talk.ask(conversation="other")
    assert code_of(talk) == ("invalid_value", "response.conversation")
    talk.ask(output_modalities=["audio"])
    assert code_of(talk) == ("not_supported", "response.output_modalities")
    talk.ask(conversation=talk.face._conversation.id)
    assert (await talk.until_done(4))[3]["conversation_id"] == talk.face._conversation.id
    await over(bench, talk)


async def test_cancel_stops_the_answer_and_keeps_what_was_said() -> None:
    bench = FaceBench(gated=True)
    talk = Talk(bench)
    talk.user("hello")
    for bare in (True, False):
        talk.ask(max_output_tokens=1000)
        count = len(talk.reader.finals)
        await talk.until(lambda: talk.reader.types[-1] == "response.output_text.delta")
        event = {"type": "response.cancel"}
        if not bare:
            event["response_id"] = list(talk.reader.answers)[-1]
        talk.send({"type": "input_audio_buffer.clear"})  # what pipecat sends before each cancel
        talk.send(event)
        talk.send(event)  # a second one finds it ended, but not yet told: silence
        events = talk.said_now()
        assert [e["type"] for e in events if "audio" in e["type"]] == ["input_audio_buffer.cleared"]
        assert [e["type"] for e in events][-2:] == ["response.done", "rate_limits.updated"]
        final = talk.reader.finals[count]
        assert final["status"] == "cancelled" and final["output"][0]["status"] == "incomplete"
        assert final["usage"]["output_tokens"] >= 1
    assert talk.reader.errors == []
    text = final["output"][0]["content"][0]["text"]
    talk.ask()
    await talk.until_done(3)
    assert f"assistant: {text}\nassistant: " in prompt_of(bench)
    talk.said_now()
    for event in (
        {"type": "response.cancel", "event_id": "c"},
        {"type": "response.cancel", "response_id": final["id"], "event_id": "c"},
        {"type": "response.cancel", "response_id": "resp_nobody", "event_id": "c"},
    ):
        talk.send(event)
        (said,) = talk.said_now()
        assert said["error"]["code"] == "response_cancel_not_active" and said["error"]["event_id"] == "c"
    await over(bench, talk)


async def test_cancel_by_id_reaches_answers_out_of_band_and_leaves_the_other() -> None:
    bench = FaceBench(gated=True)
    talk = Talk(bench)
    talk.user("hello")
    talk.ask(max_output_tokens=9)
    talk.ask(conversation="none", max_output_tokens=1000)
    await talk.until(lambda: len(talk.reader.answers) == 2)
    inside, outside = talk.reader.answers.values()
    assert inside.in_band and not outside.in_band
    talk.send({"type": "response.cancel", "response_id": outside.id})
    await talk.until_done(2)
    assert outside.final is not None and outside.final["status"] == "cancelled"
    assert inside.final is not None and inside.final["status"] == "incomplete"
    await over(bench, talk)


async def test_a_cancel_right_behind_the_create_is_in_time() -> None:
    bench = FaceBench(gated=True)
    talk = Talk(bench)
    talk.user("hello")
    talk.said_now()
    talk.ask(max_output_tokens=1000)
    talk.send({"type": "response.cancel"})
    events = talk.said_now()
    assert [e["type"] for e in events] == ["response.created", "response.done", "rate_limits.updated"]
    assert events[1]["response"]["status"] == "cancelled" and events[1]["response"]["output"] == []
    assert events[1]["response"]["usage"]["total_tokens"] == 0
    talk.ask()
    assert (await talk.until_done(2))[1]["status"] == "incomplete"
    await over(bench, talk)


async def test_only_so_many_answers_run_at_once() -> None:
    bench = FaceBench(gated=True, settings={"lanes": LaneLimits(in_flight=3)})
    talk = Talk(bench)
    talk.user("hello")
    for _ in range(3):
        talk.ask(conversation="none")
    talk.said_now()
    talk.ask(event_id="fourth")
    (event,) = talk.said_now()
    assert event["error"]["code"] == "rate_limit_exceeded" and event["error"]["event_id"] == "fourth"
    await talk.until_done(3)
    talk.ask()
    await talk.until_done(4)
    await over(bench, talk)


async def test_a_server_that_takes_no_work_refuses_the_create() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.user("hello")
    talk.said_now()
    bench.runtime.draining = True
    talk.ask()
    assert code_of(talk) == ("server_is_overloaded", None)
    bench.runtime.draining = False
    talk.ask()
    await talk.until_done()
    await over(bench, talk)


async def test_what_the_template_refuses_fails_that_response() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.user("hello")

    def refuse(ask: Any) -> Any:
        raise Refusal("invalid_value", "roles must alternate", ask.wire_name("messages"))

    prepare = bench.runtime.prompter.prepare
    bench.runtime.prompter.prepare = refuse  # type: ignore[method-assign]
    talk.ask()
    (final,) = await talk.until_done()
    assert final["status"] == "failed" and final["output"] == []
    assert final["status_details"]["error"] == {
        "type": "invalid_request_error",
        "code": "invalid_value",
        "message": "roles must alternate",
    }
    bench.runtime.prompter.prepare = prepare  # type: ignore[method-assign]
    talk.ask()
    assert (await talk.until_done(2))[1]["status"] == "incomplete"
    await over(bench, talk)
