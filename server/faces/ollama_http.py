"""/api/chat, /api/generate and the small routes beside them as Ollama's clients expect them. Knows no socket."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from headrace.runtime.interface import Ask, Refusal, Runtime, Tenant
from headrace.server.exchange import WITH_IMAGES, Answer, HttpReply, HttpRequest, HttpRoute, Wire
from headrace.server.faces.answers import ignored_header
from headrace.server.faces.ollama_ask import chat_ask, check_ollama_model, generate_ask
from headrace.server.faces.ollama_lines import NDJSON, ChatLines, GenerateLines, LinesAnswer, refusal
from headrace.server.faces.settings import FaceSettings, rfc3339
from headrace.server.protocol import ollama as o
from headrace.server.protocol.codec import decode, encode
from headrace.server.protocol.error_body import ErrorBody
from headrace.server.protocol.errors import WireError

# Clients read /api/version as the level of the API and leave servers below some level alone: this is the Ollama
# whose API these routes follow, not a version of ours.
API_VERSION = "0.13.0"
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_NEVER = "2318-01-01T00:00:00Z"

Body = TypeVar("Body", o.OllamaChatRequest, o.OllamaGenerateRequest, o.OllamaShowRequest, o.OllamaPullRequest)


def restated(reply: HttpReply, request_id: str) -> HttpReply:
    """A refusal of the front in Ollama's shape."""
    said = decode(reply.body, ErrorBody).value.error
    return HttpReply(reply.status, encode(o.OllamaError(said.message)), headers=reply.headers)


class OllamaFace:
    """Turns one HTTP request into one answer."""

    def __init__(self, runtime: Runtime, settings: FaceSettings) -> None:
        self._runtime = runtime
        self._settings = settings

    def chat(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /api/chat."""
        return self._answer(request, wire, o.OllamaChatRequest, chat_ask, ChatLines)

    def generate(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /api/generate."""
        return self._answer(request, wire, o.OllamaGenerateRequest, generate_ask, GenerateLines)

    def _answer(
        self,
        request: HttpRequest,
        wire: Wire,
        type_: type[Body],
        to_ask: Callable[[Body, Tenant], Ask | None],
        lines: type[LinesAnswer],
    ) -> HttpReply | Answer:
        headers: dict[str, str] = {}
        try:
            body = self._decoded(request, type_, headers)
            assert isinstance(body, o.OllamaRequest)
            answer = lines(self._runtime, wire, headers, body, self._settings)
            ask = to_ask(body, request.tenant)
            if ask is None:
                return HttpReply(200, answer.loaded(), headers=headers)
            answer.open(ask)
            return answer
        except (WireError, Refusal) as error:
            return refusal(error, headers)

    def _decoded(self, request: HttpRequest, type_: type[Body], headers: dict[str, str]) -> Body:
        decoded = decode(request.body, type_, strict=self._settings.strict_fields)
        headers |= ignored_header(decoded.ignored)
        if decoded.ignored:
            self._settings.on_ignored_fields("ollama", len(decoded.ignored))
        body = decoded.value
        name = body.model
        if isinstance(body, o.OllamaShowRequest | o.OllamaPullRequest) and name is None:
            name = body.name
        check_ollama_model(name, self._runtime.card, self._settings.model_aliases)
        return body

    # -- what there is ---

    def tags(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /api/tags: the one model."""
        return HttpReply(200, encode(o.OllamaModels((self._model(),))))

    def running(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /api/ps: the same model, loaded for good."""
        model = self._model()
        loaded = msgspec.structs.replace(
            model,
            expires_at=_NEVER,
            size_vram=model.size,
            context_length=self._runtime.max_context,
        )
        return HttpReply(200, encode(o.OllamaModels((loaded,))))

    def version(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /api/version."""
        return HttpReply(200, encode(o.OllamaVersion(API_VERSION)))

    def pull(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """POST /api/pull: programs ask for their model before they use it, and the served one is there."""
        headers: dict[str, str] = {}
        try:
            body = self._decoded(request, o.OllamaPullRequest, headers)
        except WireError as error:
            return refusal(error, headers)
        done = encode(o.OllamaStatus("success"))
        if body.stream is False:
            return HttpReply(200, done, headers=headers)
        return HttpReply(200, done + b"\n", NDJSON, headers)

    def embeddings(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """POST /api/embed and /api/embeddings: what another kind of model would answer."""
        what = f"the model '{self._runtime.card.id}' generates text; it offers no embeddings"
        return refusal(WireError("unsupported_endpoint", what, "model"), {})

    def show(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """POST /api/show."""
        headers: dict[str, str] = {}
        try:
            self._decoded(request, o.OllamaShowRequest, headers)
        except WireError as error:
            return refusal(error, headers)
        card, model = self._runtime.card, self._model()
        family = model.details.family
        defaults = self._runtime.prompter.defaults
        shown = o.OllamaShown(
            modelfile=f"FROM {card.id}\n",
            parameters="\n".join(f"{name:<30} {value:g}" for name, value in sorted(defaults.items())),
            template=str(self._runtime.prompter.about().get("chat_template") or ""),
            details=model.details,
            model_info={
                "general.architecture": family,
                "general.parameter_count": card.parameters,
                f"{family}.context_length": self._runtime.max_context,
                f"{family}.vocab_size": card.vocab_size,
            },
            capabilities=(
                "completion",
                *sorted(self._runtime.prompter.abilities),
                *(("vision",) if card.sees else ()),
            ),
            modified_at=model.modified_at,
        )
        return HttpReply(200, encode(shown), headers=headers)

    def _model(self) -> o.OllamaModel:
        card = self._runtime.card
        family = re.sub(r"(ForCausalLM|ForConditionalGeneration)\Z", "", card.architecture).lower()
        name = f"{card.id}:latest"
        return o.OllamaModel(
            name=name,
            model=name,
            modified_at=rfc3339(card.created),
            size=card.parameters * _BYTES.get(card.dtype, 2),
            digest=hashlib.sha256(f"{card.id}\n{card.created}\n{card.parameters}".encode()).hexdigest(),
            details=o.Details(
                format="safetensors",
                family=family,
                families=(family,),
                parameter_size=_size(card.parameters),
                quantization_level={"bfloat16": "BF16", "float16": "F16"}.get(card.dtype, "F32"),
            ),
        )


def routes(runtime: Runtime, settings: FaceSettings) -> dict[str, HttpRoute]:
    """The paths of this face."""
    face = OllamaFace(runtime, settings)
    get, post = frozenset({"GET"}), frozenset({"POST"})
    return {
        "/api/chat": HttpRoute(post, face.chat, body_limit=WITH_IMAGES, restate=restated),
        "/api/generate": HttpRoute(post, face.generate, body_limit=WITH_IMAGES, restate=restated),
        "/api/embed": HttpRoute(post, face.embeddings, restate=restated),
        "/api/embeddings": HttpRoute(post, face.embeddings, restate=restated),
        "/api/pull": HttpRoute(post, face.pull, restate=restated),
        "/api/show": HttpRoute(post, face.show, restate=restated),
        "/api/tags": HttpRoute(get, face.tags, restate=restated),
        "/api/ps": HttpRoute(get, face.running, restate=restated),
        "/api/version": HttpRoute(get, face.version, restate=restated),
    }


def _size(parameters: int) -> str:
    if parameters >= 10**9:
        return f"{parameters / 1e9:.1f}B"
    return f"{parameters / 1e6:.2f}M"
