"""Engine settings. Frozen; flags are derived from these fields, so a knob is spelled once."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the model is run. 0 means "choose from the model and the machine" where the description says auto."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="where to run; auto takes a GPU if there is one")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Meta(description="compute type; auto: bfloat16 where the device has it, else float32"),
    ] = "auto"
    weights: Annotated[
        Literal["checkpoint", "random"],
        Meta(description="random: the folder's shapes with made-up numbers, to measure speed (GPU only)"),
    ] = "checkpoint"
    threads: Annotated[
        int, Meta(ge=0, description="compute threads (0 = auto: physical cores; one for a tiny model)")
    ] = 0
    decode: Annotated[
        Literal["auto", "native", "torch"],
        Meta(
            description="what runs decode steps of few rows on the CPU: native code that is compiled at start and "
            "keeps the layers' weights a second time, or torch; auto: native where it can and memory allows"
        ),
    ] = "auto"
    page_size: Annotated[
        int, Meta(ge=0, le=256, description="tokens per KV page (0 = auto: 16 on the CPU, 64 on a GPU)")
    ] = 0
    kv_memory_mb: Annotated[
        int, Meta(ge=0, description="size of the KV slab in MiB (0 = auto: from the model and free memory)")
    ] = 0
    gpu_memory: Annotated[
        float, Meta(gt=0, le=0.98, description="share of the GPU's memory that is taken, all of it at start")
    ] = 0.9
    max_running: Annotated[
        int,
        Meta(
            ge=0, le=4096, description="requests in one step at most, slots (0 = auto: 64, or 256 on a GPU)"
        ),
    ] = 0
    max_context: Annotated[
        int, Meta(ge=0, description="tokens of prompt plus answer at most (0 = auto: the model's own limit)")
    ] = 0
    chunk_tokens: Annotated[int, Meta(ge=0, description="prompt tokens per step at most (0 = auto)")] = 0
    warm_seconds: Annotated[
        float,
        Meta(
            ge=0,
            description="seconds that the start may spend on capturing GPU graphs; the rest is captured when idle",
        ),
    ] = 5.0
    step_ms: Annotated[
        float,
        Meta(
            ge=0,
            description="milliseconds that a step with prompt tokens may take beside running streams, on a GPU "
            "(0 = auto: three times the step without, at most 50)",
        ),
    ] = 0.0
    deterministic: Annotated[
        bool,
        Meta(
            description="the same bits for the same request whatever else runs and however its prompt was cut or "
            "cached; slower (CPU only)"
        ),
    ] = False
    waiting_limit: Annotated[
        int, Meta(ge=1, description="requests waiting for a slot before new ones are refused")
    ] = 1024
    prefix_cache: Annotated[bool, Meta(description="reuse the KV of equal prompt beginnings")] = True
    image_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="tokens of one picture at most, larger ones are scaled down (0 = auto: half the context, "
            "at most 2048 on the CPU and 4096 on a GPU)",
        ),
    ] = 0
    image_memory_mb: Annotated[
        int,
        Meta(
            ge=0,
            description="encoded pictures kept, in MiB (0 = auto: 64, and never less than the largest one)",
        ),
    ] = 0


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What `resolve` needs to know about the model and the machine. Sizes in bytes; nothing here is a choice."""

    bf16: bool  # the CPU computes in bfloat16
    cores: int  # physical cores this process may use
    free_memory: int
    weight_elements: int  # as kept in memory
    kv_token_elements: int  # keys and values of one token, all layers
    max_positions: int  # the model's own limit
    plain_elements: int = 0  # weights that a native decode step keeps a second time
    native_obstacle: str = "it was not asked for"  # why this machine can run none; empty: it can
    team_obstacle: str = ""  # why it can with one thread alone


PLAIN_FRACTION = 0.5  # of what the weights leave free: more is not spent on keeping some of them twice
KV_FRACTION = 0.5  # of what the weights leave free
KV_CEILING = 4 << 30  # an automatic slab is never larger: all of it is touched at start
CPU_PAGE_SIZE, CPU_SLOTS = 16, 64
CPU_IMAGE_TOKENS, GPU_IMAGE_TOKENS = 2048, 4096
IMAGE_MEMORY_MB = 64
GPU_PAGE_SIZE, GPU_SLOTS, GPU_CHUNK_TOKENS = 64, 256, 2048
LONE_THREAD_BYTES = 32 << 20  # weights
STEP_OPERATIONS = 250e9  # of one prompt chunk: about 0.3 s on two cores with bfloat16


class SettingError(ValueError):
    """The settings cannot work with this model on this machine. The message is for the person who gave them."""


def resolve(config: EngineConfig, facts: Facts) -> EngineConfig:
    """`config` with every automatic choice replaced by a value. Pure; raises SettingError where nothing fits.

    `max_context` never exceeds the model nor the slab. The slab has `kv_memory_mb` over the bytes of a page, whole
    pages only.
    """
    if config.weights == "random":
        raise SettingError("weights random needs a GPU")
    config = msgspec.structs.replace(
        config, page_size=config.page_size or CPU_PAGE_SIZE, max_running=config.max_running or CPU_SLOTS
    )
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if facts.bf16 else "float32"
    item = 2 if dtype == "bfloat16" else 4
    token = facts.kv_token_elements * item
    page = token * config.page_size
    limit = min(config.max_context or facts.max_positions, facts.max_positions)
    if config.max_context > facts.max_positions:
        raise SettingError(
            f"max_context {config.max_context} is more than the {facts.max_positions} positions of this model"
        )
    left = facts.free_memory - facts.weight_elements * item
    # Below this a matrix product is shorter than waking a second thread for it, and where another process has that
    # core, waiting for it costs tens of milliseconds a step (28 ms against 2 on a busy two-core machine).
    lone = facts.weight_elements * item <= LONE_THREAD_BYTES
    threads = config.threads or (1 if lone else facts.cores)
    obstacle = facts.native_obstacle or (facts.team_obstacle if threads > 1 else "")
    if config.deterministic:
        # Long chunks run in torch, and a token must not tell which of the two computed it.
        obstacle = "deterministic steps run in torch alone"
    plain = facts.plain_elements * item
    decode = config.decode
    if decode == "native" and obstacle:
        raise SettingError(f"decode native: {obstacle}")
    if decode == "auto":
        decode = "torch" if obstacle or plain > left * PLAIN_FRACTION else "native"
    if decode == "native":
        left -= plain
    if config.kv_memory_mb:
        pages = (config.kv_memory_mb << 20) // page
        if config.kv_memory_mb << 20 > left:
            raise SettingError(
                f"kv_memory_mb {config.kv_memory_mb} does not fit: {max(left, 0) >> 20} MiB are free beside weights"
            )
    else:
        wish = -(-limit // config.page_size) * config.max_running
        pages = min(wish, int(min(left * KV_FRACTION, KV_CEILING)) // page)
    held = pages * config.page_size
    if held < 2 or (config.max_context and held < config.max_context):
        raise SettingError(
            f"the KV slab holds {max(held, 0)} tokens, {config.max_context or 2} are needed: give it more memory "
            "(kv_memory_mb), lower max_context, or run a smaller model"
        )
    context = min(limit, held)
    chunk = config.chunk_tokens
    if not chunk:
        # A chunk delays every decoding stream, so it is bounded in time; a power of two from 32 to 512.
        room = STEP_OPERATIONS * (1 if dtype == "bfloat16" else 0.25) / (2 * facts.weight_elements)
        chunk = next((size for size in (512, 256, 128, 64) if size <= room), 32)
    return msgspec.structs.replace(
        config,
        device="cpu",
        dtype=dtype,
        threads=threads,
        decode=decode,
        kv_memory_mb=config.kv_memory_mb or -(-pages * page >> 20),
        max_context=context,
        chunk_tokens=min(chunk, context),
        image_tokens=config.image_tokens or max(1, min(context // 2, CPU_IMAGE_TOKENS)),
        image_memory_mb=config.image_memory_mb or IMAGE_MEMORY_MB,
    )


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What `resolve_device` needs to know. Sizes in bytes."""

    free_memory: int  # of the device, nothing of ours taken yet
    total_memory: int
    weight_elements: int
    kv_token_elements: int
    max_positions: int


def settle_device(config: EngineConfig, facts: DeviceFacts) -> EngineConfig:
    """`config` for a GPU with every choice made that does not depend on how much memory is left for KV."""
    limit = facts.max_positions
    if config.deterministic:
        raise SettingError("deterministic is for the CPU: on a GPU no kernel promises it yet")
    if config.max_context > limit:
        raise SettingError(
            f"max_context {config.max_context} is more than the {limit} positions of this model"
        )
    page_size = config.page_size or GPU_PAGE_SIZE
    if page_size & (page_size - 1) or page_size < 16:
        raise SettingError(f"page_size {page_size}: a GPU needs a power of two from 16 to 256")
    context = config.max_context or limit
    return msgspec.structs.replace(
        config,
        device="cuda",
        dtype="bfloat16" if config.dtype == "auto" else config.dtype,
        decode="torch",
        page_size=page_size,
        max_running=config.max_running or GPU_SLOTS,
        max_context=context,
        chunk_tokens=min(config.chunk_tokens or GPU_CHUNK_TOKENS, context),
        threads=1,
        image_tokens=config.image_tokens or max(1, min(context // 2, GPU_IMAGE_TOKENS)),
        image_memory_mb=config.image_memory_mb or IMAGE_MEMORY_MB,
    )


def device_pages(config: EngineConfig, facts: DeviceFacts, fixed: int) -> int:
    """How many KV pages a settled `config` gets when `fixed` bytes go to everything else."""
    item = 2 if config.dtype == "bfloat16" else 4
    page = facts.kv_token_elements * item * config.page_size
    used = facts.total_memory - facts.free_memory
    left = int(facts.total_memory * config.gpu_memory) - used - fixed
    if config.kv_memory_mb:
        if config.kv_memory_mb << 20 > left:
            raise SettingError(
                f"kv_memory_mb {config.kv_memory_mb} does not fit: {max(left, 0) >> 20} MiB are left beside weights"
            )
        left = config.kv_memory_mb << 20
    pages = left // page
    if pages * config.page_size < max(2, config.max_context):
        raise SettingError(
            f"the KV slab would hold {max(0, pages * config.page_size)} tokens, {config.max_context} are needed: "
            "give it more memory (gpu_memory, kv_memory_mb), lower max_context, or run a smaller model"
        )
    # Never more than all slots could use at once, and their cache beside them.
    return min(pages, 4 * config.max_running * -(-config.max_context // config.page_size))
