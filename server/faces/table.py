"""Every path of the port and the face behind it; what is not here is a 404. Knows no protocol itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from headrace.runtime.interface import Runtime
from headrace.server.conversation import Conversations
from headrace.server.exchange import (
    WITH_IMAGES,
    HttpReply,
    HttpRequest,
    HttpRoute,
    RouteTable,
    SocketRoute,
    Wire,
)
from headrace.server.faces import messages_http, ollama_http
from headrace.server.faces.abouts import described
from headrace.server.faces.answers import error_reply
from headrace.server.faces.asks import check_model
from headrace.server.faces.chat_http import ChatFace
from headrace.server.faces.completions_http import CompletionsFace
from headrace.server.faces.engine_http import NOT_GENERATIVE, EngineFace
from headrace.server.faces.facts_http import FactsFace
from headrace.server.faces.generate_http import GenerateFace
from headrace.server.faces.held import HeldResponses
from headrace.server.faces.openapi_http import OpenApiFace
from headrace.server.faces.pinned import PinnedResponses
from headrace.server.faces.profile_http import ProfileFace
from headrace.server.faces.realtime_ws import PROTOCOLS as REALTIME_PROTOCOLS
from headrace.server.faces.realtime_ws import RealtimeSocket, refuse_realtime
from headrace.server.faces.responses_http import ResponsesFace
from headrace.server.faces.responses_ws import EXTENDED, ResponsesSocket, extended
from headrace.server.faces.running import Running
from headrace.server.faces.settings import FaceSettings
from headrace.server.faces.tokenizer_http import TokenizerFace
from headrace.server.protocol.errors import WireError
from headrace.server.session import WaitingBudget

GET = frozenset({"GET"})
POST = frozenset({"POST"})
BOTH = GET | POST


def build_routes(
    runtime: Runtime,
    settings: FaceSettings,
    store: Conversations,
    metrics_text: Callable[[], tuple[bytes, str]],
    page_files: Mapping[str, tuple[bytes, str]],
    alive: Callable[[], bool] = lambda: True,
    running: Running | None = None,
    held: HeldResponses | None = None,
) -> RouteTable:
    """The route table of one server.

    `metrics_text()` gives (text, content type). `page_files` maps a path ("/", "/app.js") to (bytes, content
    type). `alive()` says whether the step loop runs. `running` is the table of responses under way, `held` that of
    those which outlive their connections, for who wants to look into them. Health and page need no key; everything
    else does.
    """
    chat = ChatFace(runtime, settings)
    completions = CompletionsFace(runtime, settings)
    generate = GenerateFace(runtime, settings)
    tokenizer = TokenizerFace(runtime, settings)
    engine = EngineFace(runtime, settings)
    running = (
        running if running is not None else Running(runtime, store, PinnedResponses(runtime.cache, settings))
    )
    profiles = ProfileFace(runtime)
    responses = ResponsesFace(runtime, settings, running)
    budget = WaitingBudget(settings.waiting_bytes)
    kept = held if held is not None else held_responses(settings)
    conversations = WaitingBudget(
        settings.waiting_bytes
    )  # of the Realtime sockets: they last as long as those
    facts = FactsFace(runtime, settings, metrics_text, alive)

    def refuse_socket(request: HttpRequest) -> HttpReply | None:
        model = request.query.get("model")
        if model is None:
            return None
        try:
            check_model(model, runtime.card, settings.model_aliases)
        except WireError as error:
            return error_reply(error)
        return None

    http = {
        "/v1/chat/completions": HttpRoute(POST, chat.respond, body_limit=WITH_IMAGES),
        "/v1/completions": HttpRoute(POST, completions.respond),
        "/v1/responses": HttpRoute(POST, responses.create, body_limit=WITH_IMAGES),
        "/v1/responses/input_tokens": HttpRoute(POST, responses.count, body_limit=WITH_IMAGES),
        "/v1/responses/compact": HttpRoute(POST, responses.compact, body_limit=WITH_IMAGES),
        "/v1/responses/{id}": HttpRoute(frozenset({"GET", "DELETE"}), responses.one),
        "/v1/responses/{id}/cancel": HttpRoute(POST, responses.cancel),
        "/v1/responses/{id}/input_items": HttpRoute(GET, responses.input_items),
        "/ping": HttpRoute(GET, facts.ready, public=True),
        "/health_generate": HttpRoute(GET, facts.ready, public=True),
        "/generate": HttpRoute(POST, generate.respond),
        "/abort_request": HttpRoute(POST, generate.abort),
        "/flush_cache": HttpRoute(BOTH, engine.flush_cache),
        "/start_profile": HttpRoute(POST, profiles.start),
        "/stop_profile": HttpRoute(POST, profiles.stop),
        "/server_info": HttpRoute(GET, engine.server_facts),
        "/get_server_info": HttpRoute(GET, engine.server_facts),
        "/model_info": HttpRoute(GET, engine.model_facts),
        "/get_model_info": HttpRoute(GET, engine.model_facts),
        "/tokenize": HttpRoute(POST, tokenizer.tokenize),
        "/v1/tokenize": HttpRoute(POST, tokenizer.tokenize),
        "/detokenize": HttpRoute(POST, tokenizer.detokenize),
        "/v1/detokenize": HttpRoute(POST, tokenizer.detokenize),
        "/tokenizer_info": HttpRoute(GET, tokenizer.facts),
        **{path: HttpRoute(POST, engine.refuse) for path in NOT_GENERATIVE},
        "/v1/models": HttpRoute(GET, facts.models),
        "/v1/models/{id:path}": HttpRoute(GET, facts.model),
        "/health": HttpRoute(GET, facts.health, public=True),
        "/healthz": HttpRoute(GET, facts.health, public=True),
        "/ready": HttpRoute(GET, facts.ready, public=True),
        "/readyz": HttpRoute(GET, facts.ready, public=True),
        "/version": HttpRoute(GET, facts.version),
        "/metrics": HttpRoute(GET, facts.metrics),
    }
    http |= messages_http.routes(runtime, settings, http)
    http |= ollama_http.routes(runtime, settings)
    document = OpenApiFace(settings.version)
    http |= document.routes()
    http = described(http)
    for path, (body, content_type) in page_files.items():
        assert path not in http, f"a page file hides the route {path}"
        http[path] = HttpRoute(GET, _page(body, content_type), public=True)
    sockets = {
        "/v1/responses": SocketRoute(
            open=lambda request, wire: ResponsesSocket(
                request, wire, runtime, settings, running, budget, kept
            ),
            refuse=refuse_socket,
            protocols=(EXTENDED, "openai-beta.responses.v1"),
            takes_binary=extended,
        ),
        "/v1/realtime": SocketRoute(
            open=lambda request, wire: RealtimeSocket(request, wire, runtime, settings, conversations),
            refuse=lambda request: refuse_realtime(request, runtime, settings),
            protocols=REALTIME_PROTOCOLS,
        ),
    }
    document.table = RouteTable(http, sockets)
    return document.table


def held_responses(settings: FaceSettings) -> HeldResponses:
    """An empty table of held responses for one server."""
    return HeldResponses(
        settings.call_later,
        linger=settings.linger,
        bytes_limit=settings.held_bytes,
        alone_limit=settings.held_streams,
        window=settings.held_tokens,
    )


def _page(body: bytes, content_type: str) -> Callable[[HttpRequest, Wire], HttpReply]:
    reply = HttpReply(200, body, content_type, {"cache-control": "no-cache"})
    return lambda request, wire: reply
