"""XComposer: parts, token counts, gradients, and the names of the published checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_mm.connectors.qformer_projector import QFormerProjector
from lit_mm.errors import UserError
from lit_mm.families import XComposer
from lit_mm.language.llama import Llama
from lit_mm.prompts.xcomposer import XComposerPrompt
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.processor import TEXT
from lit_mm.stages.stage import Stage, Train, apply_stage
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.weights.convert import load_strict
from lit_mm.weights.xcomposer import internlm_to_llama, xcomposer_to_model
from tests.rows import hidden, loss_sum, states
from tests.tiny import document, language

QUERIES = 5
PARTS = {"vision", "connector", "flags", "language", "lora"}


def sampler(vision_width: int, language_width: int) -> QFormerProjector:
    return QFormerProjector(
        vision_width, language_width, queries=QUERIES, width=16, layers=3, heads=2, ffn_width=24, dropout=0.0
    )


def eva() -> TimmEncoder:
    """Build ViT-g in small: two of three blocks."""
    sizes = {"embed_dim": 16, "depth": 3, "num_heads": 2}
    return TimmEncoder("eva_giant_patch14_clip_224", 28, select_layer=-2, drop_cls=False, overrides=sizes)


def build(**options: Any) -> XComposer:
    vision = eva()
    decoder = Llama(width=32, layers=2, heads=4, kv_heads=4, ffn_width=48, vocab_size=512, attention_bias=True)
    prompt = XComposerPrompt("<|im_start|>", "<|im_end|>")
    options = {"rank": 3, "dropout": 0.0, "inputs": Inputs(prompt=prompt)} | options
    return XComposer(vision, decoder, "nano", 28, sampler, **options)


def batch_of(module: XComposer, *numbers: int) -> Any:
    return collate([module.processor.sample(document(number)) for number in numbers], module.processor)


@pytest.mark.parametrize("number", range(3))
def test_an_image_takes_its_queries_and_two_flags(number: int) -> None:
    module = build()
    sample = module.processor.sample(document(number))
    shown = len(document(number).pictures)
    assert module.processor.visual_tokens(20, 500) == QUERIES + 2
    assert (sample.index != TEXT).sum() == shown * (QUERIES + 2)
    assert [sample.index[start] for start, _ in sample.spans] == [-1] * shown
    assert [sample.index[end - 1] for _, end in sample.spans] == [-2] * shown
    with torch.no_grad():
        assert states(module.network, collate([sample], module.processor)).isfinite().all()


def test_visual_tokens_stand_between_the_flags() -> None:
    module = build().eval()
    connector = module.network.connector
    torch.nn.init.constant_(connector.start, 7)
    torch.nn.init.constant_(connector.end, 8)
    batch = batch_of(module, 2)  # two images
    with torch.no_grad():
        rows = module.network.embed(batch)[0, batch.visual]
        tokens = connector(module.network.vision(batch.views.groups[0]))
    rows = rows.unflatten(0, (2, QUERIES + 2))
    assert (rows[:, 0] == 7).all() and (rows[:, -1] == 8).all()
    torch.testing.assert_close(rows[:, 1:-1], tokens)


@pytest.mark.parametrize("train", [("connector", "language"), ("connector", "lora"), ("vision", "flags")])
def test_the_parts_that_a_stage_names_learn_and_no_other(train: tuple[str, ...]) -> None:
    module = build()
    parts = module.parts()
    assert set(parts) == PARTS
    for parameter in parts["lora"].values():
        torch.nn.init.normal_(parameter, std=0.3)
    apply_stage(parts, Stage("s", {part: Train(1e-3) for part in train}))
    loss_sum(module, batch_of(module, 1, 2, 4)).backward()
    for part, parameters in parts.items():
        for name, parameter in parameters.items():
            if name.endswith(("key.bias", "k_proj.bias")):  # softmax does not feel it
                continue
            learnt = parameter.grad is not None and bool(parameter.grad.any())
            assert learnt == (part in train), f"{part}: {name}"


def test_a_batch_without_pictures_has_a_gradient_of_zero_and_not_none() -> None:
    module = build()
    loss_sum(module, batch_of(module, 0)).backward()
    for part in ("vision", "connector", "flags"):
        assert all(p.grad is not None and not p.grad.any() for p in module.parts()[part].values()), part


def test_parts_are_complete_and_disjoint() -> None:
    module = build()
    counted = [id(p) for parameters in module.parts().values() for p in parameters.values()]
    assert sorted(counted) == sorted(id(p) for p in module.network.parameters())


# --- published weights -----------------------------------------------------------------------------------------------
LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "query_ffn.fc1": "intermediate_query.dense",
    "query_ffn.fc2": "output_query.dense",
    "query_ffn.norm": "output_query.LayerNorm",
}
LAYER |= {
    ours.replace("attention", "cross"): theirs.replace("attention", "crossattention", 1)
    for ours, theirs in LAYER.items()
    if ours.startswith("attention")
}


def published_name(ours: str) -> str:
    """Rename a parameter under `network` to the index of the release."""
    part, _, rest = ours.partition(".")
    if part == "vision":
        return rest.replace("model.", "visual_encoder.", 1)
    if part == "language":
        for ours_piece, theirs in (("lm.", ""), (".base_layer.", "."), (".default.", ".")):
            rest = rest.replace(ours_piece, theirs, 1)
        return f"internlm_model.{rest}"
    if rest in ("start", "end"):
        return f"flag_image_{rest}"
    rest = rest.removeprefix("projector.")
    if rest == "qformer.queries":
        return "query_tokens"
    if rest.startswith("qformer.norm."):
        return rest.replace("qformer.norm.", "Qformer.bert.embeddings.LayerNorm.")
    if rest.startswith("qformer."):
        _, _, number, piece, kind, leaf = rest.split(".")
        return f"Qformer.bert.encoder.layer.{number}.{LAYER[f'{piece}.{kind}']}.{leaf}"
    return rest.replace("norm.", "ln_vision.").replace("projection.", "internlm_proj.")


def published(module: XComposer) -> dict[str, Tensor]:
    """A random checkpoint with the names and shapes of the release."""
    state = {}
    for name, tensor in module.network.state_dict().items():
        theirs = published_name(name)
        if theirs.endswith("k_bias"):  # the release has none
            continue
        front = {"query_tokens": (1,), "flag_image": (1, 1)}
        shape = next((s for piece, s in front.items() if piece in theirs), ())
        state[theirs] = torch.randn(*shape, *tensor.shape)
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(9)[None]
    state["internlm_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    return state


def test_a_whole_checkpoint_leaves_nothing_over() -> None:
    module = build()
    state = published(module)
    for name in (  # as the release's index spells them
        "Qformer.bert.encoder.layer.0.crossattention.self.key.weight",
        "Qformer.bert.encoder.layer.1.output_query.LayerNorm.bias",
        "internlm_model.model.layers.1.mlp.down_proj.lora_B.weight",
        "internlm_model.model.layers.0.self_attn.o_proj.bias",
        "visual_encoder.blocks.0.attn.q_bias",
        "visual_encoder.patch_embed.proj.bias",
        "internlm_model.lm_head.weight",
        "ln_vision.weight",
    ):
        assert name in state, name
    load_strict(module, xcomposer_to_model(state))
    for name, tensor in module.network.state_dict().items():
        expected = state.get(published_name(name), torch.zeros_like(tensor))  # a key bias is zero
        assert torch.equal(tensor.flatten(), expected.flatten()), name


def test_an_entry_that_no_map_knows_is_named() -> None:
    module = build()
    for odd in ("Qformer.cls.odd", "visual_encoder.blocks.0.gamma_1", "internlm_model.odd", "odd"):
        with pytest.raises(UserError, match=odd.rpartition(".")[2]):
            load_strict(module, xcomposer_to_model(published(module) | {odd: torch.zeros(1)}))


def test_internlm_alone_loads_below_lora_through_its_reference(tmp_path: Any) -> None:
    module = build()
    plain = Llama(width=32, layers=2, heads=4, kv_heads=4, ffn_width=48, vocab_size=512, attention_bias=True)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter)
    state = {name.removeprefix("lm."): tensor for name, tensor in plain.state_dict().items()}
    torch.save(state, tmp_path / "internlm.bin")
    module.network.language.weights = f"llama:{tmp_path / 'internlm.bin'}"
    before = {name: p.clone() for name, p in module.parts()["lora"].items()}
    module.load_pretrained()
    assert all(torch.equal(before[name], p) for name, p in module.parts()["lora"].items())
    ids = torch.arange(6)
    assert torch.equal(hidden(module.network.language.eval(), [ids]), hidden(plain.eval(), [ids]))


def test_a_checkpoint_without_branches_keeps_plain_names() -> None:
    state = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(1), "model.norm.weight": torch.zeros(1)}
    assert set(internlm_to_llama(state)) == {f"lm.{name}" for name in state}


def test_the_eva_checkpoint_loads_through_its_reference(tmp_path: Any) -> None:
    module = build()
    state = {n.removeprefix("visual_encoder."): t for n, t in published(module).items() if "visual_encoder" in n}
    fortieth = {n.replace("blocks.1.", "blocks.2."): t for n, t in state.items() if "blocks.1." in n}
    torch.save(state | fortieth | {"norm.weight": torch.ones(16), "head.bias": torch.ones(3)}, tmp_path / "eva.pth")
    module.network.vision.weights = f"eva-clip:{tmp_path / 'eva.pth'}"
    module.load_pretrained()
    assert torch.equal(module.network.vision.model.pos_embed, state["pos_embed"])


def test_a_language_model_that_has_branches_already_is_refused() -> None:
    decoder = language()
    vision = eva()
    XComposer(vision, decoder, "nano", 28, sampler, rank=2)
    with pytest.raises(UserError, match="no linear layer without an adapter named"):
        XComposer(vision, decoder, "nano", 28, sampler, rank=2)
