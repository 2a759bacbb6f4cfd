"""The random checkpoints of the benches are whole: several shards, a tokenizer, a template, and they load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from headrace.bench import shapes
from headrace.runtime.config import EngineConfig
from headrace.runtime.engine import open_engine
from headrace.runtime.interface import Ask, Message
from headrace.runtime.prompt import FolderPrompter


def small_llama() -> dict[str, object]:
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 512,
        "bos_token_id": 500,
        "eos_token_id": 502,
    }
    return {**shapes.CONFIGS["llama-3.1-8b"], **sizes}


@pytest.mark.parametrize("config", [shapes.CONFIGS["tiny"], small_llama()], ids=["qwen3", "llama"])
def test_a_random_checkpoint_loads(tmp_path: Path, config: dict[str, object]) -> None:
    shapes.write_checkpoint(tmp_path, config, weights=False)
    shapes.write_weights(tmp_path, config, seed=3, most=200_000)
    files = {path.name for path in tmp_path.glob("model-*.safetensors")}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and set(index["weight_map"].values()) == files
    engine = open_engine(tmp_path, EngineConfig(device="cpu", dtype="float32", max_running=2, kv_memory_mb=4))
    try:
        engine.warm()
        assert engine.embedding_rows == config["vocab_size"]
        prompter = FolderPrompter(tmp_path, engine.embedding_rows, engine.logits_width, engine.max_context)
        prepared = prompter.prepare(Ask(messages=(Message("user", "hé"),)))
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        text = theirs.apply_chat_template(
            [{"role": "user", "content": "hé"}], tokenize=False, add_generation_prompt=True
        )
        assert list(prepared.ids) == theirs.encode(text)
        assert prepared.ids.count(config["eos_token_id"]) == 1
        assert prompter.detokenize([300, 104, 511]) == theirs.decode(
            [300, 104, 511], skip_special_tokens=True
        )
    finally:
        engine.close()


def test_a_model_runs_without_torchs_compiler(tmp_path: Path) -> None:
    """It takes a second and a hundred MiB of every start; some plain torch calls import it, for meta tensors."""
    shapes.write_checkpoint(tmp_path, shapes.CONFIGS["tiny"])
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from headrace.runtime.config import EngineConfig\n"
        "from headrace.runtime.engine import open_engine\n"
        "engine = open_engine(Path(sys.argv[1]), EngineConfig(device='cpu', max_running=2, kv_memory_mb=4))\n"
        "engine.warm()\n"
        "engine.close()\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'triton') if name in sys.modules])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
