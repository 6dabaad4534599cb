"""BERT starts BLIP-2's Q-Former, and published files of BLIP-2 and T5 fill its parts by reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Blip2VisionConfig, Blip2VisionModel

from lit_mm.checkpoints.origins import Origins
from lit_mm.language.t5 import T5
from lit_mm.run.stages import say_fresh
from lit_mm.samples.batch import Texts
from lit_mm.stages.parts import Parts
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.weights.blip2 import bert_to_connector, blip2_to_hf, blip2_to_lavis
from lit_mm.weights.convert import load_strict
from lit_mm.weights.layouts.blip2 import hf_encoder
from lit_mm.weights.layouts.layout import Described
from lit_mm.weights.names import add_prefix
from lit_mm.weights.source import load_part
from lit_mm.weights.timm import hf_blip2_to_timm
from tests.hub import EVA, randomised
from tests.tiny_blip2 import blip2, qformer
from tests.weights.test_blip import bert


@torch.inference_mode()
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_the_blocks_of_the_encoder_have_the_epsilon_of_the_config(eps: float) -> None:
    config = Blip2VisionConfig(**EVA, image_size=28, patch_size=14, layer_norm_eps=eps)
    theirs = randomised(Blip2VisionModel(config))
    described = Described(Path(), {"vision_config": config.to_dict()}, {})
    ours = TimmEncoder(**hf_encoder(described)["init_args"] | {"select_layer": -1}).eval()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("post_")}
    load_strict(ours, hf_blip2_to_timm(state))
    pixels = torch.randn(1, 3, 28, 28)
    hidden = theirs.encoder(theirs.embeddings(pixels)).last_hidden_state  # before the norm, which the connector has
    torch.testing.assert_close(ours(pixels), hidden, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_text_branch_that_starts_from_bert_equals_bert() -> None:
    model = bert()
    sizes = {"width": 24, "layers": 2, "heads": 3, "ffn_width": 40, "max_positions": 16}
    connector = qformer(8, 12, vocab_size=32, head=False, **sizes).eval()
    fresh = {name: tensor.clone() for name, tensor in connector.state_dict().items()}
    load_strict(connector, bert_to_connector(model.state_dict(), connector))
    ids, mask = torch.randint(30, (2, 5)), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    expected = model.bert(ids, attention_mask=mask).last_hidden_state
    texts = Texts(ids, mask)
    hidden = connector.qformer(None, texts.ids, mask[:, None, :].expand(-1, 5, -1))
    torch.testing.assert_close(hidden[mask], expected[mask], rtol=0, atol=1e-5)
    state = connector.state_dict()
    for name, tensor in state.items():
        if ".cross." in name or "queries" in name or name.startswith(("contrast", "matching", "projection")):
            assert torch.equal(tensor, fresh[name]), name
        if ".query_ffn." in name:
            assert torch.equal(tensor, state[name.replace("query_ffn", "text_ffn")])
    assert torch.equal(state["qformer.words.weight"][30:], fresh["qformer.words.weight"][30:])


def test_tensors_that_bert_does_not_have_are_named_and_their_parts_are_stored_in_checkpoints(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_file({name: tensor.clone() for name, tensor in bert().state_dict().items()}, tmp_path / "bert.safetensors")
    sizes = {"width": 24, "layers": 2, "heads": 3, "ffn_width": 40, "max_positions": 16}
    weights = f"bert-connector:{tmp_path / 'bert.safetensors'}"
    connector = qformer(8, 12, vocab_size=32, head=False, weights=weights, **sizes)
    first = {name: tensor.clone() for name, tensor in connector.state_dict().items()}
    origins = Origins(Parts(nn.ModuleDict({"connector": connector})))
    origins.load()
    assert origins.by_part == {"text_branch": weights}  # every parameter of it comes from BERT
    assert origins.fresh.keys() == {"connector", "projection", "contrast", "matching"}
    assert origins.fresh["projection"] == ["projection.weight", "projection.bias"]
    names = [name for names in origins.fresh.values() for name in names]
    state = connector.state_dict()
    assert all(torch.equal(state[name], first[name]) for name in names)
    assert {"norm.weight", "qformer.queries", "qformer.layers.0.cross.query.weight"} <= set(names)
    assert not any("attention" in name or "ffn" in name for name in names)
    say_fresh(origins.fresh)
    line = "lit_mm: part 'matching': 2 tensors are not in its weights and start fresh: matching.head.weight, "
    assert line in capfd.readouterr().err


@pytest.mark.parametrize("names", ["lavis", "hugging face"])
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_published_files_fill_the_parts_by_reference(kind: str, names: str, tmp_path: Path) -> None:
    source, target = blip2(kind, seed=1, vision=eva()), blip2(kind, seed=2, vision=eva())
    plain = {name: tensor.clone() for name, tensor in source.network.state_dict().items()}
    state: dict[str, Any] = {name: tensor for name, tensor in plain.items() if not is_retrieval(name)}
    if names == "hugging face":
        state = blip2_to_hf(state)
    else:
        language = {name: tensor for name, tensor in state.items() if name.startswith("language.lm.")}
        state = blip2_to_lavis({name: tensor for name, tensor in state.items() if name not in language})
        prefix = "llm_model" if kind == "decoder" else "t5_model"
        state |= add_prefix({name.removeprefix("language.lm."): of for name, of in language.items()}, prefix)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    for part in ("vision", "connector", "language"):
        load_part(getattr(target.network, part), f"blip2-{part}:{tmp_path / 'model.safetensors'}", part)
    for name, tensor in target.network.state_dict().items():
        if not is_retrieval(name):
            assert torch.equal(tensor, plain[name]), name


def is_retrieval(name: str) -> bool:
    """True for parameters that a checkpoint of the second stage does not have."""
    pieces = (".text_ffn.", "qformer.words", "qformer.positions", "qformer.head", "connector.contrast", "matching")
    return any(piece in name for piece in pieces)


def eva() -> TimmEncoder:
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    return TimmEncoder("eva_giant_patch14_clip_224", 28, drop_cls=False, overrides=sizes)


def test_published_t5_fills_a_t5_and_its_copies_of_the_embeddings_are_ignored(tmp_path: Path) -> None:
    source, target = (T5(24, layers=1, heads=2, ffn_width=32, vocab_size=64) for _ in range(2))
    state = {name: tensor.clone() for name, tensor in source.lm.state_dict().items()}
    assert "encoder.embed_tokens.weight" in state
    save_file(state, tmp_path / "model.safetensors")
    load_part(target, f"t5:{tmp_path / 'model.safetensors'}", "language")
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.lm.state_dict().items())
