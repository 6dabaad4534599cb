"""BLIP trains its three objectives, writes captions, and finds images and texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.evaluation.examiners import examine
from lit_mm.families import Blip
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer
from lit_mm.objectives.pairs import MomentumContrast, draw_negatives, matching_loss, negative_weights, positives_of
from lit_mm.objectives.queue import FeatureQueue
from lit_mm.objectives.retrieval_pairs import RetrievalMatching, candidate_loss, retrieval_weights
from lit_mm.prompts.caption import Caption
from lit_mm.samples.batch import IGNORE, PAIRS, TOKENS, Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Train
from lit_mm.weights.blip import NO_IMAGE
from tests.tiny import run_recipe
from tests.tiny_blip import PARTS, Pages, blip, page, stages


def batch_of(module: Blip, count: int = 4) -> Batch:
    samples = [module.processor.sample(page(number)) for number in range(count)]
    tokens = sum(sample.length.supervised for sample in samples)
    return collate(samples, module.processor, units={TOKENS: tokens, PAIRS: count})


def test_parts_are_those_that_stages_train_and_every_one_gets_a_gradient() -> None:
    module = blip()
    assert set(module.parts()) == set(PARTS)
    batch = batch_of(module)
    loss = sum(objective(module.network, batch) for objective in module.objectives.values())
    loss.backward()
    for part, parameters in module.parts().items():
        assert all(parameter.grad is not None for parameter in parameters.values()), part
    assert not list(module.network.momentum.parameters()) and not list(module.network.queue.parameters())


def test_objective_gives_gradients_to_the_parts_that_it_declares_alone() -> None:
    for name in ("itc", "itc_finetune", "itm", "itm_finetune", "lm"):
        module = blip()
        objective = module.objectives[name]
        objective(module.network, batch_of(module)).backward()
        parts = {p for p, tensors in module.parts().items() if any(t.grad is not None for t in tensors.values())}
        assert parts == objective.parts - ({"contrast"} if name.startswith("itm") else set()), name


def test_all_stages_train_and_branches_start_from_the_pretraining(tmp_path: Path) -> None:
    module = blip()
    run_recipe(module, stages(), tmp_path, data_class=Pages)
    assert module.network.momentum.updates.item() == 6  # pre-training and retrieval; the captioner compares nothing
    assert module.network.queue.pointer.item() == (6 * 4) % 8
    assert 0.001 <= module.network.contrast.temperature.item() <= 0.5
    assert (module.network.queue.images >= 0).all()  # the retrieval model numbers images
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 9


def test_accumulation_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a step has 2 micro-batches per rank"):
        run_recipe(blip(), stages()[:1], tmp_path, data_class=Pages, micro_batch=2)


def test_texts_are_found_and_captions_written() -> None:
    module = blip()
    documents = [page(number) for number in range(6)]
    examination = examine(module, documents, batch_size=4)
    assert (
        list(examination.figures.skills)
        == list(module.examiner.skills)
        == [
            "image to text",
            "image to text, by contrast",
            "text to image",
            "text to image, by contrast",
        ]
    )
    assert examination.figures.count == 4 * len(documents)
    for decoding in (Decoding(4, beams=3), Decoding(4, sample=True, top_p=0.9, repetition_penalty=1.1), Decoding(4)):
        texts = answer(module, documents, decoding=decoding, batch_size=4)
        assert texts == answer(module, documents, decoding=decoding, batch_size=4)
        assert len(texts) == 6


def test_retrieval_is_right_where_the_features_agree() -> None:
    module = blip(candidates=0)
    documents = [page(number) for number in range(6)]
    vectors = torch.eye(8)[:6]
    images, texts = module.network.encode_images, module.network.encode_texts

    def vectors_of(batch: Batch) -> torch.Tensor:  # images and texts of one document get the same vector
        return torch.stack([vectors[int(name.split("/")[1])] for name in batch.sample_ids])

    module.network.encode_images = lambda batch: (images(batch)[0], vectors_of(batch))
    module.network.encode_texts = lambda batch: (texts(batch)[0], vectors_of(batch))
    assert examine(module, documents, batch_size=4).figures.overall == 1
    assert examine(module, documents, blind=True, batch_size=4).figures.count == 12


def test_beam_search_equals_steps_without_a_cache() -> None:
    module = blip()
    document = page(1)
    (text,) = answer(module, [document], decoding=Decoding(5))
    ids = [513]
    sample = module.processor.sample(document.without_answer())
    batch = collate([sample], module.processor)
    assert batch.ids.tolist() == [[513]]
    with torch.no_grad(), module.inference():
        features = module.network.images(batch)
        for _ in range(5):
            hidden = module.network.text.decode(torch.tensor([ids]), [len(ids)], features)
            ids.append(int(module.network.text.logits(hidden[-1]).argmax()))
            if ids[-1] == module.processor.tokenizer.eos_id:
                break
    assert module.processor.tokenizer.decode(ids[1:]).strip() == text


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (5, 0.2), (10, 0.4), (11, 0.4), (99, 0.4)], ids=lambda value: str(value)
)
def test_alpha_rises_linearly_over_the_first_epochs(step: int, expected: float) -> None:
    objective = MomentumContrast(alpha=0.4, ramp=0.1)
    objective.step, objective.total_steps = step, 100
    assert objective.current_alpha() == pytest.approx(expected)


@pytest.mark.parametrize("sizes", [(4, 4), (3, 3, 3), (5, 2, 7), (11,), (3, 20)])
def test_queue_holds_the_last_features_in_a_ring(sizes: tuple[int, ...]) -> None:
    queue = FeatureQueue(8, 3)
    expected, pointer = queue.image.clone(), 0
    for size in sizes:
        image = torch.randn(size, 3)
        queue.push(image, image)
        for row in image:  # one after the other, as a loop over a ring
            expected[pointer % 8] = row
            pointer += 1
    assert torch.equal(queue.image, expected) and torch.equal(queue.text, expected)
    assert queue.pointer.item() == pointer % 8


def test_texts_of_one_image_share_the_target_with_those_in_the_queue() -> None:
    images, queue = torch.tensor([7, 9, 7]), torch.tensor([9, NO_IMAGE, 7])
    shared = positives_of(3, queue, images)
    third = 1 / 3
    expected = [[third, 0, third, 0, 0, third], [0, 0.5, 0, 0.5, 0, 0], [third, 0, third, 0, 0, third]]
    torch.testing.assert_close(shared, torch.tensor(expected))
    assert torch.equal(positives_of(3, queue, None), torch.eye(3, 6))


def retrieval_batch(module: Blip) -> Batch:
    """Four pairs of three images: the last shows the first again."""
    processor = module.processor.with_inputs(Inputs(image_ids=True))
    first = page(0)
    again = Document("again", (Turn("user", (first.pictures[0],)), Turn("assistant", ("another text",))))
    samples = [processor.sample(document) for document in (first, page(1), page(2), again)]
    return collate(samples, processor, units={PAIRS: 4})


@torch.no_grad()
def test_contrast_of_the_retrieval_model_is_the_released_one() -> None:
    module = blip()
    model, batch = module.network.eval(), retrieval_batch(module)
    model.queue.images[:2] = batch.images[1]
    encoded, targets, temperature = model.encode(batch), model.targets(batch), model.contrast.temperature
    same = batch.images[:, None] == torch.cat([batch.images, model.queue.images])
    labels = same / same.sum(dim=1, keepdim=True)
    losses = []
    for anchor, follower, others, queue in (
        (encoded.image, targets.image, targets.text, model.queue.text),
        (encoded.text, targets.text, targets.image, model.queue.image),
    ):
        table = torch.cat([others, queue]).T
        soft = 0.4 * (follower @ table / temperature).softmax(dim=1) + 0.6 * labels
        losses.append(-((anchor @ table / temperature).log_softmax(dim=1) * soft).sum(dim=1).sum())
    objective = MomentumContrast(ramp=0)
    assert objective(model, batch).item() == pytest.approx(sum(losses).item() / 2, rel=1e-5)
    model.train()
    objective(model, batch)
    assert torch.equal(model.queue.images[:4], batch.images)


@torch.no_grad()
@pytest.mark.parametrize("all_ranks", [True, False])
def test_negatives_of_the_retrieval_model_show_other_images(all_ranks: bool) -> None:
    module = blip()
    model, batch, objective = module.network.eval(), retrieval_batch(module), RetrievalMatching(all_ranks)
    encoded = model.encode(batch)
    candidates, images = objective.candidates(encoded, batch.images)
    of_texts, of_images = retrieval_weights(model, encoded, candidates, images)
    same = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]).bool()
    similarity = encoded.image @ encoded.text.T / model.contrast.temperature
    torch.testing.assert_close(of_images, similarity.softmax(dim=1).masked_fill(same, 0))
    torch.testing.assert_close(of_texts, similarity.T.softmax(dim=1).masked_fill(same, 0))
    negatives = (torch.tensor([1, 2, 3, 2]), torch.tensor([2, 0, 1, 1]))
    loss = candidate_loss(model, encoded, candidates, *negatives)
    assert loss.item() == pytest.approx(matching_loss(model, encoded, *negatives).item(), rel=1e-5)
    assert objective(model, batch).isfinite()


@torch.no_grad()
def test_a_batch_of_one_image_still_has_negatives() -> None:
    module = blip()
    model, batch = module.network.eval(), retrieval_batch(module)
    encoded, objective = model.encode(batch), RetrievalMatching()
    candidates, images = objective.candidates(encoded, torch.zeros(4, dtype=torch.long))
    assert all((weights > 0).all() for weights in retrieval_weights(model, encoded, candidates, images))


def test_a_pair_is_never_its_own_negative_and_lost_pairs_are_none() -> None:
    valid = torch.tensor([True, True, False, True])
    weights = negative_weights(torch.randn(4, 4).masked_fill(~valid, -torch.inf), valid)
    assert (weights.diagonal() == 0).all() and (weights[:, 2] == 0).all()
    alone = negative_weights(torch.randn(3, 3), torch.tensor([True, False, False]))
    assert (alone[0] > 0).tolist() == [False, True, True]
    assert (draw_negatives(weights) != torch.arange(4)).all()


def test_a_lost_pair_changes_no_loss_of_the_others() -> None:
    module = blip().eval()
    samples = [module.processor.sample(page(number)) for number in range(4)]
    lost = [*samples[:3], replace(samples[3], lost=True)]
    losses = [
        module.objectives["itc"](module.network, collate(members, module.processor)).item()
        for members in (samples[:3], lost)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_matching_of_one_pair_is_refused() -> None:
    module = blip()
    with pytest.raises(UserError, match="at least 2 pairs per rank"):
        module.objectives["itm"](module.network, batch_of(module, 1))


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        (Caption(513, max_words=3), 'A "Red" cat (on)  it.', "a red cat"),
        (Caption(513, clean=False), "A Red cat.", "A Red cat."),
        (Caption(513), "x:y;z~", "x y z"),
    ],
)
def test_captions_are_cleaned_as_published(prompt: Caption, text: str, expected: str) -> None:
    assert prompt.normalise(text) == expected


def test_lead_is_not_learnt_and_a_long_caption_keeps_its_end() -> None:
    module = blip(prompt=Caption(513, lead="the image ", max_tokens=6, clean=False))
    sample = module.processor.sample(page(4))
    lead = module.processor.tokenizer.encode("the image ")
    assert sample.input_ids[: 1 + len(lead)].tolist() == [513, *lead]
    assert (sample.labels[: 1 + len(lead)] == IGNORE).all() and (sample.labels[1 + len(lead) :] != IGNORE).all()
    assert len(sample) <= 6 and sample.input_ids[-1] == module.processor.tokenizer.eos_id


def test_temperature_stays_in_its_bounds_after_every_step(tmp_path: Path) -> None:
    module = blip()
    with torch.no_grad():
        module.network.contrast.temperature.fill_(0.49)
    recipe = stages()[:1]
    recipe[0].train["contrast"] = Train(lr=5.0)
    run_recipe(module, recipe, tmp_path, data_class=Pages)
    assert module.network.contrast.temperature.item() in (pytest.approx(0.001), 0.5)
