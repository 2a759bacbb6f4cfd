"""What a client may send to the Ollama routes under /api, and what comes back. Knows fields and bounds only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from headrace.server.protocol import fields as f
from headrace.server.protocol.fields import NULL, honoured, ignored, refused
from headrace.server.protocol.logprobs import ChatTokenLogprob
from headrace.server.protocol.tools import TOOLS, ToolName

Images = Annotated[list[str], Meta(max_length=8)]
Limit = Annotated[int, Meta(ge=-2, le=(1 << 31) - 1)]
_LOADED = "set when the server starts"


class OllamaOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`options`: Ollama's names of the sampling settings. Those of the loader are the operator's here."""

    temperature: Annotated[f.Temperature | None, honoured("below 1e-5 is greedy")] = None
    top_p: Annotated[f.TopP | None, honoured()] = None
    top_k: Annotated[f.TopK | None, honoured("0 and -1 are off")] = None
    min_p: Annotated[f.MinP | None, honoured()] = None
    repeat_penalty: Annotated[f.RepetitionPenalty | None, honoured("over the whole context; 1 is off")] = None
    presence_penalty: Annotated[f.Penalty | None, honoured()] = None
    frequency_penalty: Annotated[f.Penalty | None, honoured()] = None
    seed: Annotated[f.Seed | None, honoured()] = None
    num_predict: Annotated[
        Limit | None, honoured("-1 and -2: to the end of the context; more than fits is cut to it")
    ] = None
    stop: Annotated[f.Stop | None, honoured("left out of the text")] = None
    ignore_eos: Annotated[bool | None, honoured("extra")] = None
    tfs_z: Annotated[Annotated[float, Meta(ge=0, le=1e9)] | None, refused(1.0)] = None
    typical_p: Annotated[Annotated[float, Meta(ge=0, le=1e9)] | None, refused(1.0)] = None
    mirostat: Annotated[Annotated[int, Meta(ge=0, le=2)] | None, refused(0)] = None
    mirostat_tau: Annotated[Raw, ignored("mirostat is refused")] = NULL
    mirostat_eta: Annotated[Raw, ignored("mirostat is refused")] = NULL
    penalize_newline: Annotated[bool | None, refused(True)] = None
    repeat_last_n: Annotated[Limit | None, ignored("penalties see the whole context")] = None
    num_keep: Annotated[Raw, ignored("nothing is shifted out of the context")] = NULL
    num_ctx: Annotated[Raw, ignored(_LOADED)] = NULL
    num_batch: Annotated[Raw, ignored(_LOADED)] = NULL
    num_gpu: Annotated[Raw, ignored(_LOADED)] = NULL
    main_gpu: Annotated[Raw, ignored(_LOADED)] = NULL
    num_thread: Annotated[Raw, ignored(_LOADED)] = NULL
    numa: Annotated[Raw, ignored(_LOADED)] = NULL
    low_vram: Annotated[Raw, ignored(_LOADED)] = NULL
    f16_kv: Annotated[Raw, ignored(_LOADED)] = NULL
    use_mmap: Annotated[Raw, ignored(_LOADED)] = NULL
    use_mlock: Annotated[Raw, ignored(_LOADED)] = NULL
    logits_all: Annotated[Raw, ignored(_LOADED)] = NULL
    vocab_only: Annotated[Raw, ignored(_LOADED)] = NULL
    embedding_only: Annotated[Raw, ignored(_LOADED)] = NULL


class OllamaFunction(msgspec.Struct, frozen=True):
    name: ToolName
    description: str | None = None
    parameters: Raw = NULL


class OllamaTool(msgspec.Struct, frozen=True):
    function: OllamaFunction
    type: Literal["function"] = "function"


class OllamaCalled(msgspec.Struct, frozen=True):
    """A call: the arguments are an object here, not text."""

    name: ToolName
    arguments: Raw = NULL
    index: Raw = NULL


class OllamaCall(msgspec.Struct, frozen=True):
    function: OllamaCalled
    id: f.ShortText | None = None
    type: f.ShortText | None = None


class OllamaMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Images | None = None
    tool_calls: Annotated[list[OllamaCall], Meta(max_length=TOOLS)] | None = None
    tool_name: f.ShortText | None = None
    tool_call_id: f.ShortText | None = None


class OllamaRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What /api/chat and /api/generate have in common."""

    model: Annotated[f.Name, honoured("required; a tag `:latest` may follow the name")]
    stream: Annotated[bool | None, honoured("true unless it is false")] = None
    options: Annotated[OllamaOptions | None, honoured("see the table of options")] = None
    think: Annotated[
        bool | f.Effort | None, honoured("false turns the template's thinking off, all else on")
    ] = None
    format: Annotated[Raw, honoured('"json" or a schema: enforced, and refused where the device cannot')] = (
        NULL
    )
    logprobs: Annotated[bool | None, honoured("of the model itself, before temperature")] = None
    top_logprobs: Annotated[f.TopLogprobs | None, honoured("needs logprobs")] = None
    keep_alive: Annotated[Raw, ignored("the model stays while the server runs")] = NULL
    truncate: Annotated[bool | None, ignored("a prompt that is too long is refused")] = None
    shift: Annotated[bool | None, ignored("an answer ends where the context ends")] = None


class OllamaChatRequest(OllamaRequest, frozen=True, kw_only=True):
    """Body of POST /api/chat."""

    messages: Annotated[
        Annotated[list[OllamaMessage], Meta(max_length=1024)] | None,
        honoured(
            "text, images (base64), calls and results; a last one of the assistant's is continued; without any, "
            "the answer says that the model is loaded"
        ),
    ] = None
    tools: Annotated[
        Annotated[list[OllamaTool], Meta(max_length=TOOLS)] | None,
        honoured("functions; refused where the model's chat template has no place for them"),
    ] = None


class OllamaGenerateRequest(OllamaRequest, frozen=True, kw_only=True):
    """Body of POST /api/generate."""

    prompt: Annotated[
        str | None, honoured("the user's turn, or with raw the whole prompt; without it the model is loaded")
    ] = None
    system: Annotated[str | None, honoured("a system message; not with raw")] = None
    raw: Annotated[
        bool | None,
        honoured("the prompt is taken without a template; special tokens spelled in it stay text"),
    ] = None
    suffix: Annotated[str | None, refused("")] = None
    template: Annotated[str | None, refused("", note="a client's template is never run")] = None
    images: Annotated[Images | None, honoured("base64, each in front of the prompt; not with raw")] = None
    context: Annotated[Raw, refused("[]", note="send messages to /api/chat instead")] = NULL
    width: Annotated[Raw, refused("0")] = NULL
    height: Annotated[Raw, refused("0")] = NULL
    steps: Annotated[Raw, refused("0")] = NULL


class OllamaShowRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /api/show."""

    model: Annotated[f.Name | None, honoured("required, or name")] = None
    name: Annotated[f.Name | None, honoured("an older spelling of model")] = None
    verbose: Annotated[bool | None, ignored()] = None
    system: Annotated[Raw, ignored()] = NULL
    template: Annotated[Raw, ignored()] = NULL
    options: Annotated[Raw, ignored()] = NULL


class OllamaPullRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /api/pull."""

    model: Annotated[f.Name | None, honoured("required, or name; only the served model is there")] = None
    name: Annotated[f.Name | None, honoured("an older spelling of model")] = None
    stream: Annotated[bool | None, honoured("true unless it is false")] = None
    insecure: Annotated[bool | None, ignored("nothing is fetched")] = None


# -- replies ---------------------------------------------------------------------------------------------------


class OllamaError(msgspec.Struct, frozen=True):
    """Body of a refused request, and the line that ends a failed stream."""

    error: str


class SaidFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: Any
    index: int


class SaidCall(msgspec.Struct, frozen=True):
    id: str
    function: SaidFunction


class Said(msgspec.Struct, frozen=True):
    """A piece of an answer. A call is told at once, when it is whole."""

    role: str
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: tuple[SaidCall, ...] | UnsetType = UNSET


class OllamaLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a stream, or with stream:false the whole reply. The counts stand on the last one."""

    model: str
    created_at: str
    done: bool
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    logprobs: tuple[ChatTokenLogprob, ...] | UnsetType = UNSET


class OllamaChatLine(OllamaLine, frozen=True, kw_only=True):
    message: Said


class OllamaGenerateLine(OllamaLine, frozen=True, kw_only=True):
    response: str
    thinking: str | UnsetType = UNSET


class Details(msgspec.Struct, frozen=True, kw_only=True):
    parent_model: str = ""
    format: str
    family: str
    families: tuple[str, ...]
    parameter_size: str
    quantization_level: str


class OllamaModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model of /api/tags, and of /api/ps with the last three fields. `digest` names the checkpoint only."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    expires_at: str | UnsetType = UNSET
    size_vram: int | UnsetType = UNSET
    context_length: int | UnsetType = UNSET


class OllamaModels(msgspec.Struct, frozen=True):
    models: tuple[OllamaModel, ...]


class OllamaShown(msgspec.Struct, frozen=True, kw_only=True):
    """The reply of /api/show."""

    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: tuple[str, ...]
    modified_at: str


class OllamaStatus(msgspec.Struct, frozen=True):
    """The reply of /api/pull, whose only line says that the model is there."""

    status: str


class OllamaVersion(msgspec.Struct, frozen=True):
    version: str
