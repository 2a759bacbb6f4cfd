"""Trains the demo model: a plain Llama in torch, two minutes on a GPU. Knows nothing of serving.

Everything is drawn from one seed, in an order that does not depend on the machine; the starting weights are
equal bit for bit everywhere (integers of Philox). Training itself repeats bit for bit on the same machine and
torch version; elsewhere sums round differently and the weights come out alike, not equal.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from headrace.runtime.demo_checkpoint import CONFIG, SEED
from headrace.runtime.demo_dialogues import Turn, conversation
from headrace.runtime.philox import row_words

Weights = dict[str, Tensor]

END, START, STOP = 256, 257, 258
STEPS = 5000
# (share of the steps, tokens per sequence, sequences per step): short first, because short is quick.
STAGES = ((0.74, 512, 32), (0.20, 1024, 16), (0.06, 2048, 8))
PEAK_RATE = 4e-3
WARM_UP = 60


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order of their drawing."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    heads = CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    shared = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (CONFIG["vocab_size"], hidden)}
    for layer in range(CONFIG["num_hidden_layers"]):
        front = f"model.layers.{layer}."
        found |= {
            front + "input_layernorm.weight": (hidden,),
            front + "self_attn.q_proj.weight": (heads, hidden),
            front + "self_attn.k_proj.weight": (shared, hidden),
            front + "self_attn.v_proj.weight": (shared, hidden),
            front + "self_attn.o_proj.weight": (hidden, heads),
            front + "post_attention_layernorm.weight": (hidden,),
            front + "mlp.gate_proj.weight": (inner, hidden),
            front + "mlp.up_proj.weight": (inner, hidden),
            front + "mlp.down_proj.weight": (hidden, inner),
        }
    return found | {"model.norm.weight": (hidden,)}


def starting_weights() -> Weights:
    """float32, equal on every machine. Norms are ones, others uniform, as wide as keeps sums steady."""
    weights = {}
    depth = (2.0 * CONFIG["num_hidden_layers"]) ** 0.5
    for index, (name, shape) in enumerate(shapes().items()):
        if len(shape) == 1:
            weights[name] = torch.ones(shape)
            continue
        words = torch.from_numpy(row_words(SEED, index, shape[0] * shape[1]).astype("int64"))
        uniform = (words.double() + 0.5) / 2.0**31 - 1.0  # exact, within (-1, 1), variance 1/3
        deviation = 0.05 if "embed" in name else shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation /= depth
        weights[name] = (uniform * (deviation * 3.0**0.5)).float().reshape(shape)
    return weights


def forward(weights: Weights, ids: Tensor) -> Tensor:
    """Logits [batch, length, vocabulary] of ids [batch, length]."""
    head, groups = CONFIG["head_dim"], CONFIG["num_attention_heads"] // CONFIG["num_key_value_heads"]
    batch, length = ids.shape
    inverse = CONFIG["rope_theta"] ** (-torch.arange(0, head, 2).float() / head)
    angles = (torch.arange(length).float()[:, None] * inverse).to(ids.device)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weights[name], CONFIG["rms_norm_eps"])

    def heads(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[name]).reshape(batch, length, -1, head).transpose(1, 2)

    def rotate(x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return x * cos + torch.cat((-other, one), -1) * sin

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(CONFIG["num_hidden_layers"]):
        front = f"model.layers.{layer}."
        y = norm(x, front + "input_layernorm.weight")
        q, k = (rotate(heads(y, f"{front}self_attn.{each}_proj.weight")) for each in "qk")
        v = heads(y, front + "self_attn.v_proj.weight")
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, -1)
        x = x + F.linear(y, weights[front + "self_attn.o_proj.weight"])
        y = norm(x, front + "post_attention_layernorm.weight")
        gate = F.silu(F.linear(y, weights[front + "mlp.gate_proj.weight"]))
        y = gate * F.linear(y, weights[front + "mlp.up_proj.weight"])
        x = x + F.linear(y, weights[front + "mlp.down_proj.weight"])
    return F.linear(norm(x, "model.norm.weight"), weights["model.embed_tokens.weight"])


def spell_out(turns: list[Turn]) -> tuple[list[int], list[bool]]:
    """A conversation as the chat template writes it, and which of its tokens are to be learned."""
    ids: list[int] = []
    learn: list[bool] = []
    for role, text in turns:
        said = list(text.encode())
        ids += [START, *f"{role}\n".encode(), *said, STOP, *b"\n"]
        mine = role == "assistant"
        learn += [False] * (2 + len(role)) + [mine] * (len(said) + 1) + [False]
    return ids, learn


def batches(generator: random.Random, length: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, targets) of shape [rows, length]; a target of -100 is not learned. Rows are packed."""
    while True:
        ids, targets = [], []
        for _ in range(rows):
            row: list[int] = []
            learn: list[bool] = []
            while len(row) <= length:
                more, wanted = spell_out(conversation(generator))
                row += more
                learn += wanted
            ids.append(row[:length])
            targets.append([row[i] if learn[i] else -100 for i in range(1, length + 1)])
        yield torch.tensor(ids), torch.tensor(targets)


def train(steps: int = STEPS, report: Callable[[str], None] = print) -> Weights:
    """The trained weights, float32, on the CPU. AdamW with a warm-up and a cosine to zero.

    Runs on a GPU where there is one; on a CPU it takes hours and gives weights that are alike, not equal."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = {name: each.to(device).requires_grad_() for name, each in starting_weights().items()}
    decayed = [each for each in weights.values() if each.dim() == 2]
    others = [each for each in weights.values() if each.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    generator = random.Random(SEED)
    done = 0
    started = time.monotonic()
    for share, length, rows in STAGES:
        stage = batches(generator, length, rows)
        until = steps if length == STAGES[-1][1] else min(steps, done + max(1, round(share * steps)))
        while done < until:
            progress = done / steps
            rate = PEAK_RATE * min(1.0, (done + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = rate
            ids, targets = (each.to(device) for each in next(stage))
            with torch.autocast(device.type, torch.bfloat16):
                logits = forward(weights, ids)
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
            optimizer.step()
            done += 1
            if done % 200 == 0 or done == steps:
                report(f"step {done} of {steps}: loss {loss.item():.4f}, {time.monotonic() - started:.0f} s")
    return {name: each.detach().cpu() for name, each in weights.items()}


def write_weights(weights: Weights, path: Path) -> None:
    """bfloat16 safetensors, in the order of their names."""
    save_file(
        {name: each.bfloat16().contiguous() for name, each in sorted(weights.items())}, path, {"format": "pt"}
    )
