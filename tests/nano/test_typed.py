"""Pre-training of the language model on typed pages."""

from typing import Any

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.nano.cells import type_page
from lit_mm.nano.typed import SLOTS, WAYS, Cells, Templates, TypedPages, window_of
from lit_mm.nano.world import caption_document, question_document
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.plain import Plain
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling.plan import View
from tests.rows import loss_sum

PROMPT = XComposer2Prompt(turn_start="<|im_start|>", turn_end="<|im_end|>")


def stage(name: str, **inputs: Any) -> Stage:
    return Stage(name, {"language": Train(1e-3)}, max_steps=9, **inputs)


def tiny(**options: object) -> TypedPages:
    torch.manual_seed(0)
    language = Llama(width=32, layers=1, heads=2, kv_heads=1, ffn_width=32, vocab_size=512, tie_embeddings=True)
    return TypedPages(language, "nano", **{"prompt": PROMPT, **options})


@pytest.fixture
def model() -> TypedPages:
    return tiny()


def batch_of(model: TypedPages, documents: list):
    samples = [model.processor.sample(document) for document in documents]
    tokens = sum(sample.length.supervised for sample in samples)
    return collate(samples, model.processor, units={"tokens": tokens})


def test_a_page_takes_one_position_a_cell_and_no_pixel(model: TypedPages):
    document = question_document(0, split="text", seed=0, skill="story")
    batch = batch_of(model, [document])
    assert batch.views.tokens == 64 * len(document.pictures) == len(batch.visual)
    assert [tuple(group.shape) for group in batch.views.groups] == [(len(document.pictures), SLOTS, 8, 8)]
    assert not batch.views.groups[0].is_floating_point()


def test_a_cell_is_the_sum_of_its_slots_and_noise_comes_in_training_alone():
    cells = Cells(side=2, width=4, vocab_size=8)
    typed = torch.zeros(1, SLOTS, 2, 2, dtype=torch.long)
    typed[0, 0, 0, 1], typed[0, 1, 0, 1] = 5, 7
    features = cells(typed)
    assert features.shape == (1, 4, 4)
    empty = cells.table[:, 0].sum(dim=0)
    torch.testing.assert_close(features[0, 0], empty + cells.row[0, 0] + cells.column[0, 0])
    torch.testing.assert_close(features[0, 3], empty + cells.row[1, 0] + cells.column[0, 1])
    signs = empty - cells.table[0, 0] - cells.table[1, 0] + cells.table[0, 5] + cells.table[1, 7]
    torch.testing.assert_close(features[0, 1], signs + cells.row[0, 0] + cells.column[0, 1])
    cells.noise = 0.1
    assert not torch.equal(cells(typed), features)
    assert torch.equal(cells.eval()(typed), features)


def test_noise_belongs_to_the_stages_that_are_named(model: TypedPages):
    model.noise = {"blurred": 0.5}
    for name, noise in (("read", 0.0), ("blurred", 0.5), ("after", 0.0)):
        model.begin(Stage(name, {"language": Train(lr=1.0)}, max_steps=1), total_steps=1)
        assert model.network.vision.noise == noise


def test_its_parts_are_the_table_and_the_language_model(model: TypedPages):
    assert set(model.parts()) == set(model.modules_by_part()) == {"cells", "language"}


def test_the_loss_reaches_every_parameter_and_falls(model: TypedPages):
    batch = batch_of(
        model,
        [question_document(0, split="text", seed=0, skill="form"), caption_document(1, split="text", seed=0)],
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = loss_sum(model, batch) / batch.units["tokens"]
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_templates_are_drawn_by_document_and_a_question_is_never_given_to_one_of_captions():
    tokenizer = load_tokenizer("nano")
    chat, plain = ChatPrompt(), Plain()
    templates = Templates(chats=[chat], captions=[chat, plain])
    question = question_document(0, split="text", seed=0)
    assert templates.runs(question, tokenizer) == chat.runs(question, tokenizer)
    captions = [caption_document(index, split="text", seed=0) for index in range(20)]
    drawn = [templates.runs(caption, tokenizer) == plain.runs(caption, tokenizer) for caption in captions]
    assert drawn == [templates.runs(caption, tokenizer) != chat.runs(caption, tokenizer) for caption in captions]
    assert set(drawn) == {True, False}
    assert templates.stop_ids(tokenizer) == chat.stop_ids(tokenizer)


def test_a_stage_may_have_its_own_prompt():
    own = ChatPrompt()
    model = tiny()
    assert model.processor_of(stage("settle", inputs=Inputs(prompt=own))).prompt is own
    assert model.processor_of(stage("read")).prompt is PROMPT


def test_a_view_shows_its_part_of_the_image_and_padding_lies_outside():
    tile = View(resize=(100, 200), canvas=(200, 200), offset=(50, 0), box=(100, 100, 100, 100), size=(112, 112))
    assert window_of(tile) == (0.5, 0.5, 1.0, 1.5)


@pytest.mark.parametrize("way", WAYS)
def test_a_page_in_views_holds_every_sign_of_the_page(way: str):
    processor = tiny(views={"settle": [way]}).processor_of(stage("settle"))
    tokenizer, pad = processor.tokenizer, processor.tokenizer.pad_id
    for skill in ("read_small", "form", "chart"):
        document = caption_document(3, split="text", seed=0, skill=skill)
        sample = processor.sample(document)
        plan = sample.plans[0]
        views = processor.views(sample)
        assert [view[0].numel() for view in views] == list(sample.tokens_per_view)
        tiles = [views[number] for number in plan.tiles] or views
        page = type_page(document.pictures[0], tokenizer, 32, 32, SLOTS)
        shown = torch.cat([view[view != pad] for view in tiles])
        assert sorted(shown.tolist()) == sorted(page[page != pad].tolist())


def test_each_document_draws_its_way_and_questions_are_asked_of_whole_pages():
    model = tiny(views={"settle": ["whole", "anyres", "hd", "slices", "windows"]})
    settle = model.processor_of(stage("settle"))
    documents = [caption_document(index, split="text", seed=0) for index in range(40)]
    assert len({len(settle.sample(document).tokens_per_view) for document in documents}) > 2
    assert all(
        len(model.processor.sample(document).tokens_per_view) == len(document.pictures) for document in documents
    )
    samples = [settle.sample(document) for document in documents[:8]]
    batch = collate(samples, settle)
    assert torch.isfinite(loss_sum(model, batch))


def test_a_larger_cell_tells_the_mean_of_the_places_that_it_covers():
    cells = Cells(side=4, width=4, vocab_size=8)
    features = cells(torch.zeros(1, SLOTS, 2, 2, dtype=torch.long)).unflatten(1, (2, 2))
    place = features - cells.table[:, 0].sum(dim=0)
    torch.testing.assert_close(place[0, 1, 0], cells.row[2:, 0].mean(dim=0) + cells.column[0, :2].mean(dim=0))


@pytest.mark.parametrize("ways", [["tiles"], []])
def test_unknown_ways_are_refused_with_those_that_there_are(ways: list[str]):
    with pytest.raises(UserError, match="takes at least one of whole, anyres, hd, slices, windows, got"):
        tiny(views={"settle": ways})


def test_every_stage_that_is_named_is_known_to_the_check_of_the_recipe():
    assert tiny(noise={"a": 0.1}, views={"c": ["whole"]}).stage_names == {"a", "c"}


def test_a_stage_that_draws_ways_may_change_its_prompt_at_a_step():
    plain, chat = Plain(), ChatPrompt()
    changing = stage("settle", inputs=Inputs(prompt=plain), inputs_from={3: Inputs(prompt=chat)})
    processors = tiny(views={"settle": ["whole", "hd"]}).processors_of(changing)
    assert {step: [way.prompt for way in one.ways] for step, one in processors.items()} == {
        0: [plain] * 2,
        3: [chat] * 2,
    }
