"""Mini-Gemini: one view crosses and is seen twice; HD order; parts; templates; decoding; refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.patch_info_mining import PatchInfoMining
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.families import Llava15, MiniGemini
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import decode
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.stages.stage import Stage, Train, apply_stage
from lit_mm.vision.dual import DualEncoder
from lit_mm.vision.vit import ViT
from lit_mm.weights.source import MAPS
from tests.rows import loss_sum, states
from tests.tiny import Noise, document, language


def encoders(tiles: int = 1, overview: bool = False) -> DualEncoder:
    """A coarse encoder of 2 x 2 patches and a fine one of 8 x 8 cells."""
    torch.manual_seed(0)
    low = ViT(28, 14, 16, layers=2, heads=2, select_layer=-2)
    return DualEncoder(low, ViT(56, 7, 24, layers=1, heads=2), tiles=tiles, overview=overview)


def build(tiles: int = 1, overview: bool = False) -> MiniGemini:
    return MiniGemini(encoders(tiles, overview), language(), "nano")


@pytest.mark.parametrize(("tiles", "overview", "tokens"), [(1, False, 4), (2, True, 20), (2, False, 16)])
def test_only_the_fine_view_is_loaded_and_each_region_makes_its_tokens(tiles: int, overview: bool, tokens: int) -> None:
    module = build(tiles, overview)
    sample = module.processor.sample(document(1))
    batch = collate([sample], module.processor)
    assert [tuple(group.shape) for group in batch.views.groups] == [(1, 3, 56, 56)]
    assert batch.views.tokens == tokens == module.processor.visual_tokens(20, 30)
    assert module.network.bank(batch.views).shape == (tokens, 32)


def test_the_overview_comes_first_and_mines_the_whole_map() -> None:
    vision = encoders(2, True)
    pixels = torch.randn(1, 3, 56, 56)
    maps = vision(pixels)
    whole = torch.nn.functional.interpolate(pixels, size=(56, 56), mode="bilinear")
    tile = vision.low(whole[:, :, :28, 28:])
    torch.testing.assert_close(maps.low[:, 2], tile)
    cells = vision.high(pixels).unflatten(1, (8, 8))
    assert torch.equal(maps.high[:, 3], cells[:, 4:, :4])
    torch.testing.assert_close(maps.high[:, 0, 0, 0], cells[:, :2, :2].mean(dim=(1, 2)))


def test_the_parts_are_two_encoders_connector_and_language() -> None:
    module = build()
    parts = module.parts()
    assert set(parts) == {"vision", "second_vision", "connector", "language"}
    assert all(name.startswith("low.") for name in parts["vision"])
    train = {part: Train(1e-3) for part in ("connector", "language")}
    apply_stage(parts, Stage("finetune", train))
    loss_sum(module, collate([module.processor.sample(document(1))], module.processor)).backward()
    for part, parameters in parts.items():
        assert {parameter.grad is not None for parameter in parameters.values()} == {part in train}, part


def test_a_text_alone_gives_the_connector_gradients_of_zero_and_two_pictures_work() -> None:
    module = build(2, True)
    loss_sum(module, collate([module.processor.sample(document(0))], module.processor)).backward()
    for name, parameter in module.parts()["connector"].items():
        assert parameter.grad is not None and not parameter.grad.any(), name
    sample = module.processor.sample(document(2))
    assert (sample.index >= 0).sum() == 40


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    module = build(2, True).eval()
    documents = [document(1), document(0), document(2)]
    samples = [module.processor.sample(of) for of in documents]
    with torch.no_grad():
        together = states(module.network, collate(samples, module.processor))
        alone = torch.cat([states(module.network, collate([sample], module.processor)) for sample in samples])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        prompts = [module.processor.sample(of.without_answer()) for of in documents]
        ids = {
            beams: decode(
                module.network, collate(prompts, module.processor), stop_ids=(2,), decoding=Decoding(4, beams=beams)
            )
            for beams in (1, 2)
        }
    assert all(len(rows) == 3 for rows in ids.values())


def test_cached_decoding_equals_uncached() -> None:
    module = build().eval()
    asked = Document("asked", (Turn("user", (Noise(0), "what is it?")),))
    with torch.no_grad():
        batch = collate([module.processor.sample(asked)], module.processor)
        (cached,) = decode(module.network, batch, stop_ids=(), decoding=Decoding(5))
        embeds, language = module.network.embed(batch), module.network.language
        for expected in cached:
            hidden, _ = language.begin(embeds, lengthened(batch, embeds.shape[1]))
            assert int(language.logits(hidden).argmax()) == expected
            embeds = torch.cat([embeds, language.embed(torch.tensor([[expected]]))], dim=1)


def lengthened(batch: Batch, length: int) -> Batch:
    return replace(batch, lengths=(length,), positions=torch.arange(length)[None])


def test_each_encoder_loads_its_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, other = build(), build()
    torch.manual_seed(1)
    for name in ("low", "high"):
        encoder = other.network.vision.get_submodule(name)
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter)
        save_file(encoder.state_dict(), tmp_path / f"{name}.safetensors")
        module.network.vision.get_submodule(name).weights = f"plain:{tmp_path / name}.safetensors"
    monkeypatch.setitem(MAPS, "plain", lambda state, part: state)
    module.load_pretrained()
    expected = other.network.vision.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.network.vision.state_dict().items())
    assert set(module.origins.by_part) == {"vision", "second_vision"}


def test_gemma_tokens_are_scaled_by_the_root_of_the_width() -> None:
    torch.manual_seed(0)
    plain, scaled = PatchInfoMining(16, 24, 32), PatchInfoMining(16, 24, 32, scale_by_width=True)
    scaled.load_state_dict(plain.state_dict())
    maps = encoders()(torch.randn(2, 3, 56, 56))
    torch.testing.assert_close(scaled(maps), plain(maps) * 32**0.5)


def header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "gemma",
            "<start_of_turn>user\n<image>\nwhat?<end_of_turn>\n<start_of_turn>model\nred<end_of_turn>\n<eos>"
            "<start_of_turn>user\nwhy?<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "llama_3",
            f"{header('system')}You are a helpful language and vision assistant. You are able to understand the visual "
            "content that the user provides, and assist the user with a variety of tasks using natural language."
            "<|eot_id|>"
            f"{header('user')}<image>\nwhat?<|eot_id|>{header('system')}red<|eot_id|>{header('user')}why?<|eot_id|>"
            f"{header('system')}",
        ),
    ],
)
def test_templates_are_those_of_the_release(template: str, expected: str) -> None:
    turns = (Turn("user", ("what?", Noise(0))), Turn("assistant", ("red",)), Turn("user", ("why?",)))
    text, spans = ChatPrompt(template).text(Document("chat", turns))
    assert text == expected
    end = "<end_of_turn>\n<eos>" if template == "gemma" else "<|eot_id|>"
    assert [text[start:stop] for start, stop in spans] == [f"red{end}"]


def test_parts_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UserError, match="features at two resolutions, which MLPProjector does not read"):
        MiniGemini(encoders(), language(), "nano", connector=lambda low, high, width: MLPProjector(low, width))
    with pytest.raises(UserError, match="which ViT does not return"):
        mining = lambda vision, width: PatchInfoMining(vision, 24, width)  # noqa: E731
        Llava15(ViT(28, 14, 16, layers=1, heads=2), language(), "nano", image_size=28, connector=mining)
    with pytest.raises(UserError, match="do not divide the 8 x 8 cells"):
        encoders(3)
    with pytest.raises(UserError, match="at least 2 beside an `overview`"):
        encoders(1, True)


def test_generation_goes_on_where_training_learns_with_the_markers_of_gemma() -> None:
    special = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: n for n, w in enumerate(("?", *special))}, unk_token="?")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(list(special))
    tokenizer, prompt = Tokenizer(model, bos="<bos>", eos="<eos>"), ChatPrompt("gemma")
    turns = (Turn("user", ("what",)), Turn("assistant", ("red",)), Turn("user", ("why",)), Turn("assistant", ("so",)))
    runs = prompt.runs(Document("chat", turns), tokenizer)
    ids = [number for run in runs for number in run.ids]
    learnt = [
        tokenizer.decode([n], skip_special=False)
        for run in runs
        for n, of in zip(run.ids, run.learn, strict=True)
        if of
    ]
    assert learnt == ["?", "<end_of_turn>", "<eos>"] * 2
    asked = [number for run in prompt.runs(Document("chat", turns[:3]), tokenizer) for number in run.ids]
    assert ids[: len(asked)] == asked
    assert prompt.stop_ids(tokenizer) == {tokenizer.eos_id}
