"""Key maps run group by group, in little memory, and backwards to the bit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lit_mm.checkpoints.importing import write_checkpoint
from lit_mm.errors import UserError
from lit_mm.weights.clip import hf_clip_to_vit
from lit_mm.weights.files import TensorFiles, tensor_files
from lit_mm.weights.internlm2 import split_wqkv
from lit_mm.weights.llava import hf_llava_to_model
from lit_mm.weights.provenance import elements_of, plan
from lit_mm.weights.qwen_vl import per_head_to_thirds
from lit_mm.weights.stream import Stored

MEGABYTE = 1 << 20


def bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bits as a tensor, negative zeros and infinities among them."""
    whole = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    limits = torch.iinfo(whole)
    values = torch.randint(limits.min, limits.max, shape, dtype=whole)
    values.view(-1)[0] = limits.min  # -0.0
    return values.view(dtype)


MAPS = {
    "renamed": lambda s: {"x": s["a"], "y": s["b"]},
    "joined": lambda s: {"x": torch.cat([s["a"], s["b"]])},
    "cut": lambda s: {f"x{n}": rows for n, rows in enumerate(s["a"].chunk(3))} | {"y": s["b"]},
    "reordered": lambda s: {"x": per_head_to_thirds(s["a"], 2), "y": s["b"].T.contiguous()},
    "split by head": lambda s: dict(zip("qkv", split_wqkv(s["a"], 4, 1), strict=True)) | {"y": s["b"].flatten()},
    "stacked": lambda s: {"x": torch.stack([s["a"], s["b"]])},
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", MAPS)
def test_a_key_map_is_inverted_to_the_bit(name: str, dtype: torch.dtype) -> None:
    state = {"a": bits(dtype, 12, 4), "b": bits(dtype, 12, 4)}
    stored = {key: Stored(str(dtype).removeprefix("torch."), (12, 4)) for key in state}
    planned = plan(stored, MAPS[name])
    expected, back = MAPS[name](state), {}
    for group in planned.groups:
        values = planned.compute(group, state.__getitem__)
        assert all(torch.equal(value.view(torch.int8), expected[key].view(torch.int8)) for key, value in values.items())
        back |= planned.invert(group, values)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key].view(torch.int8), state[key].view(torch.int8)) for key in state)


def test_groups_are_the_smallest_sets_that_share_a_tensor() -> None:
    names = [f"encoder.layers.{n}.self_attn.{p}_proj.weight" for n in range(2) for p in "qkv"]
    stored = {name: Stored("float16", (4, 4)) for name in [*names, "pre_layrnorm.weight", "post_layernorm.weight"]}
    planned = plan(stored, hf_clip_to_vit)
    assert sorted(len(group.sources) for group in planned.groups) == [1, 3, 3]
    assert planned.unused == ("post_layernorm.weight",)


def test_what_a_map_loses_cannot_be_inverted() -> None:
    planned = plan({"table": Stored("float32", (5, 2))}, lambda state: {"positions": state["table"][1:]})
    with pytest.raises(UserError, match=r"positions.*'table'.*10 elements.*8"):
        planned.invert(planned.groups[0], {"positions": torch.zeros(4, 2)})


def test_an_import_at_published_size_needs_at_most_twice_the_largest_tensor() -> None:
    vision = CLIPVisionConfig(
        image_size=336,
        patch_size=14,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    text = LlamaConfig(vocab_size=32064)  # the defaults are those of Llama-7B
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    stored = {name: Stored("float16", tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    assert 7.0e9 < sum(tensor.elements for tensor in stored.values()) < 7.1e9
    planned = plan(stored, hf_llava_to_model)
    assert planned.peak <= 2 * max(tensor.bytes for tensor in stored.values())


def anonymous() -> int:
    """Bytes of memory of this process that no file backs."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' figures of memory")
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_checkpoint_is_written_in_the_memory_of_its_largest_tensor(tmp_path: Path, suffix: str) -> None:
    side = 2048  # 16 MB in fp32
    state = {f"t{number}": torch.full((side, side), float(number)) for number in range(12)}
    save_file(state, tmp_path / "model.safetensors") if suffix == "safetensors" else torch.save(
        state, tmp_path / "pytorch_model.bin"
    )
    del state
    files = TensorFiles(tensor_files(tmp_path))
    joined = {f"x{n}": (f"t{n}", f"t{n + 1}") for n in range(0, 8, 2)}

    def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pairs = {name: torch.cat([state[first], state[second]]) for name, (first, second) in joined.items()}
        return pairs | {f"y{number}": state[f"t{number}"] for number in range(8, 12)}

    planned = plan(files.stored, rename)
    group_of = {name: group for group in planned.groups for name in group.targets}
    before, peak = anonymous(), 0

    def elements(name: str):
        nonlocal peak
        tensor = planned.compute(group_of[name], files.__getitem__)[name]
        peak = max(peak, anonymous())
        yield from elements_of(tensor)

    write_checkpoint(tmp_path / "run", "", "x", {}, planned.targets, elements)
    assert peak - before <= planned.peak + 8 * MEGABYTE < sum(s.bytes for s in files.stored.values()) / 2


def test_an_old_torch_file_is_named_and_read(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 2), "b": torch.randn(4)}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    files = TensorFiles(tensor_files(tmp_path))
    assert files.legacy == [tmp_path / "pytorch_model.bin"]
    assert files.stored["a"] == Stored("float32", (3, 2))
    assert all(torch.equal(files[name], tensor) for name, tensor in state.items())


def test_a_constant_of_a_key_map_must_keep_its_value() -> None:
    planned = plan({"q": Stored("float16", (4,))}, lambda s: {"q": s["q"] * 1, "k": torch.zeros_like(s["q"])})
    (group,) = planned.groups
    values = {"q": bits(torch.float16, 4), "k": torch.zeros(4)}
    assert torch.equal(planned.invert(group, values)["q"].view(torch.int16), values["q"].view(torch.int16))
    with pytest.raises(UserError, match="the published files have no place for 'k'"):
        planned.invert(group, values | {"k": torch.ones(4)})
