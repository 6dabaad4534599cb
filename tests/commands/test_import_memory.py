"""An import of tensors of a 7B model takes little more memory than its largest tensor."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tests import hub
from tests.commands.test_import import command  # noqa: F401  # a fixture

VISION = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 3}
VISION |= {"image_size": 336, "patch_size": 14}
TEXT = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008, "vocab_size": 32064}
LAYERS = 4  # of 32, which have the same shapes


def sparse_checkpoint(folder: Path) -> int:
    """Write LLaVA-1.5-7B with some layers as a file of holes. Return the bytes of its largest tensor."""
    hub.hf_llava(folder)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT, num_hidden_layers=LAYERS),
        image_token_index=hub.IMAGE_ID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    with torch.device("meta"):
        state = LlavaForConditionalGeneration(config).state_dict()
    header: dict[str, object] = {}
    end = largest = 0
    for name, tensor in state.items():
        begin, end = end, end + 2 * tensor.numel()
        largest = max(largest, end - begin)
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    words = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        file.truncate(8 + len(words) + end)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    side = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels | side))
    return largest


def anonymous() -> int:
    """Memory of this process that no file backs, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@pytest.mark.slow
def test_an_import_takes_the_memory_of_twice_its_largest_tensor(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    largest = sparse_checkpoint(tmp_path / "hub")
    assert largest == 2 * 32064 * 4096
    assert command("import", hub.hf_llava(tmp_path / "tiny"), "--to", "first", "--proof_memory", "0")[0] == 0
    start, peak, ended = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.002):
            peak = max(peak, anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        code, output, error = command("import", tmp_path / "hub", "--to", "run", "--proof_memory", "0")
    finally:
        ended.set()
        watching.join()
    assert code == 0 and "against none: the comparison needs" in output, error
    assert 0 < peak - start < 2 * largest, (peak - start) / largest
    for path in (tmp_path / "run").rglob("*.safetensors"):
        path.unlink()
