"""Samples in a flat row do not see each other, and batches without images train like others."""

import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.objectives.next_token import NextToken
from lit_mm.prompts.text_to_text import TextToText
from lit_mm.samples.batch import IGNORE
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.target import split_answer
from lit_mm.stream.maker import unlearnt
from tests.tiny import Noise, decoder, document, xcomposer2

RTOL = 1e-5  # fp32, sums in another order


def gradients(module, batches):
    """Sum of the losses over the batches, and its gradients."""
    module.zero_grad(set_to_none=True)
    loss = sum(NextToken()(module.network, batch) for batch in batches)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in module.named_parameters()}


def assert_same(found, expected):
    loss, grads = found
    torch.testing.assert_close(loss, expected[0], rtol=RTOL, atol=0)
    for name, grad in expected[1].items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(
            grads[name], grad, rtol=0, atol=RTOL * scale + 1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_flat_row_gives_the_loss_and_gradients_of_single_samples():
    module = xcomposer2(trained=True)
    processor = module.processor
    samples = [processor.sample(document(number)) for number in range(7)]  # with 0, 1 and 2 pictures
    single = gradients(module, [collate([sample], processor) for sample in samples])
    for name in (
        "vision.patches",
        "connector.mlp.0",
        "language.lm.model.layers.0.self_attn.lora_a",
        "language.lm.lm_head",
    ):
        assert single[1][f"network.{name}.weight"].any()
    assert_same(gradients(module, [collate(samples[:3], processor), collate(samples[3:], processor)]), single)
    assert_same(gradients(module, [collate(samples, processor)]), single)


def test_samples_of_one_picture_have_one_number_whatever_its_file() -> None:
    processor = xcomposer2().processor
    numbered = processor.with_inputs(Inputs(image_ids=True))

    @dataclass(frozen=True)
    class Copy:  # of the pixels, in another place
        original: Noise
        height: int = 20
        width: int = 30

        def read(self) -> Image.Image:
            return self.original.read()

    pictures = [Noise(1), Noise(2), Copy(Noise(1)), Noise(3)]
    documents = [
        Document(f"d{n}", (Turn("user", (of, "what?")), Turn("assistant", ("red",)))) for n, of in enumerate(pictures)
    ]
    samples = [numbered.sample(of) for of in documents]
    samples[3] = replace(samples[3], lost=True)
    images = collate(samples, numbered).images.tolist()
    assert images[0] == images[2] != images[1] and min(images[:3]) >= 0 and images[3] == -1
    assert collate([], numbered).images.tolist() == [-1]
    assert collate(samples, processor).images is None


def test_what_stands_beside_a_sample_in_its_row_does_not_reach_it():
    module = xcomposer2(trained=True).eval()
    processor = module.processor
    target, *neighbours = (processor.sample(document(number)) for number in (2, 1, 4, 5))
    expected = module.network(collate([target], processor)).hidden
    for before, after in ((0, 1), (1, 0), (2, 1)):
        row = [*neighbours[:before], target, *neighbours[before : before + after]]
        batch = collate(row, processor)
        start = sum(batch.lengths[:before])
        inside = (batch.supervised >= start) & (batch.supervised < start + batch.lengths[before])
        torch.testing.assert_close(module.network(batch).hidden[inside], expected, rtol=0, atol=1e-5)


def test_a_row_holds_its_samples_one_after_the_other_without_padding():
    processor = xcomposer2().processor
    samples = [processor.sample(document(number)) for number in range(3)]
    batch = collate(samples, processor, units={"tokens": 77}, sources=[0, 2, 1])
    assert batch.lengths == tuple(len(sample) for sample in samples)
    assert batch.ids.shape == batch.positions.shape == (1, sum(batch.lengths))
    assert batch.ids[0].tolist() == [token for sample in samples for token in sample.input_ids.tolist()]
    assert batch.positions[0].tolist() == [n for sample in samples for n in range(len(sample))]
    assert batch.sample_ids == ("tiny/0", "tiny/1", "tiny/2")
    assert batch.units == {"tokens": 77}
    assert batch.num_tokens == sum(len(sample) for sample in samples)
    assert batch.num_supervised == sum(sample.length.supervised for sample in samples)
    labels = [label for sample in samples for label in [*sample.labels[1:].tolist(), IGNORE]]  # of the token behind
    assert [label for label in labels if label != IGNORE] == batch.labels.tolist()
    assert [n for n, label in enumerate(labels) if label != IGNORE] == batch.supervised.tolist()
    assert batch.sources.tolist() == [
        s for s, sample in zip((0, 2, 1), samples, strict=True) for _ in range(sample.length.supervised)
    ]


def test_views_know_the_sample_that_shows_them():
    processor = xcomposer2().processor
    samples = [processor.sample(document(number)) for number in range(6)]  # with 0, 1, 2, 0, 1 and 2 pictures
    views = collate(samples, processor).views
    assert views.owners.tolist() == [1, 2, 2, 4, 5, 5]
    assert len(views) == 6
    assert views.tokens == 6 * 4


def test_a_batch_moves_with_all_its_tensors():
    processor = xcomposer2().processor
    batch = collate([processor.sample(document(2))], processor, sources=[0])
    moved = batch.to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    tensors += [*moved.views.groups, moved.views.owners, moved.views.tiles]
    assert len(tensors) == 10
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.lengths == batch.lengths
    assert pickle.loads(pickle.dumps(batch)).lengths == batch.lengths


def test_a_batch_without_images_gives_zero_and_not_missing_gradients_to_what_sees():
    module = xcomposer2(trained=True)
    sample = module.processor.sample(document(0))
    assert not sample.plans
    batch = collate([sample], module.processor)
    assert [tuple(group.shape) for group in batch.views.groups] == [(1, 3, 28, 28)]
    assert (batch.views.tokens, batch.views.owners.tolist(), len(batch.visual)) == (4, [-1], 0)
    _, grads = gradients(module, [batch])
    for name, grad in grads.items():
        seeing = name.startswith(("network.vision", "network.connector")) or "lora_" in name
        assert grad is not None, name
        assert bool(grad.any()) is not seeing, name


def test_the_first_token_of_a_sample_is_never_learnt_from_its_neighbour():
    module = xcomposer2(trained=True)
    one, two = (module.processor.sample(document(number)) for number in (0, 3))
    eager = replace(two, labels=two.input_ids)  # a label rule that would learn the first token, too
    assert eager.length.supervised == len(two) - 1
    single = gradients(module, [collate([sample], module.processor) for sample in (one, eager)])
    packed = collate([one, eager], module.processor)
    assert packed.num_supervised == one.length.supervised + eager.length.supervised
    assert_same(gradients(module, [packed]), single)


def test_a_lost_sample_keeps_its_positions_and_nothing_of_it_is_learnt():
    processor = xcomposer2().processor
    sound, damaged = (processor.sample(document(number)) for number in (1, 2))
    lost, blank = unlearnt(damaged)
    batch = collate([sound, lost], processor, views=[processor.views(sound), blank])
    assert batch.lengths == (len(sound), len(damaged))
    assert batch.num_supervised == sound.length.supervised
    assert not batch.views.groups[0][1:].any()


def test_a_micro_batch_whose_samples_are_all_gone_holds_one_token_that_is_not_learnt():
    for module in (xcomposer2(), decoder()):
        batch = collate([], module.processor, units={"tokens": 5})
        assert (batch.lengths, batch.num_supervised, batch.sample_ids) == ((1,), 0, ())
        assert NextToken()(module.network, batch) == 0


def test_positions_and_routing_of_a_row_come_from_the_layout():
    class OnePosition(type(xcomposer2().processor.layout)):
        def positions(self, index):
            return (index < 0).cumsum() - 1

        def routed(self, index):
            return (index >= 0).nonzero()[0][:1]

    processor = replace(xcomposer2().processor, layout=OnePosition())
    samples = [processor.sample(document(number)) for number in (1, 4)]
    batch = collate(samples, processor)
    first, second = (int((sample.index >= 0).argmax()) for sample in samples)
    assert batch.routed.tolist() == [first, len(samples[0]) + second]
    assert batch.positions[0, first : first + 4].tolist() == [first - 1] * 4


def pair(processor, number):
    return processor.sample(replace(document(number, pictures=0), turns=document(number, pictures=0).turns[:2]))


def test_the_answers_of_an_encoder_decoder_are_a_row_of_their_own():
    processor = replace(decoder().processor, prompt=TextToText(), writes_target=True)
    samples = [pair(processor, number) for number in (0, 1)]
    batch = collate(samples, processor)
    starts = [split_answer(sample) for sample in samples]
    assert batch.lengths == tuple(starts)
    assert batch.target.lengths == tuple(len(s) - n for s, n in zip(samples, starts, strict=True))
    assert batch.target.ids[0].tolist() == batch.labels.tolist()
    assert batch.supervised.tolist() == list(range(len(batch.labels)))
    assert batch.num_tokens == sum(map(len, samples))
    lost, _ = unlearnt(samples[0])
    batch = collate([lost, samples[1]], processor)
    assert batch.supervised.tolist() == list(range(len(samples[0]) - starts[0], batch.target.ids.shape[1]))


@pytest.mark.parametrize("turns", [slice(1), slice(4)])
def test_a_sample_that_does_not_end_in_its_one_answer_is_refused(turns):
    processor = decoder().processor
    whole = next(d for n in range(20) if len((d := document(n, pictures=0)).turns) >= 4)
    sample = processor.sample(replace(whole, turns=whole.turns[turns]))
    with pytest.raises(UserError, match=r"^sample 'tiny/\d+': an encoder-decoder needs a source and then one answer"):
        split_answer(sample)


def test_views_that_cross_as_bytes_become_the_pixels_that_are_normalised_at_once():
    module = xcomposer2()
    processor = module.processor
    samples = [processor.sample(document(number)) for number in (1, 2)]
    crops = [processor.crops(sample) for sample in samples]
    batch = collate(samples, processor, views=crops)
    assert all(group.dtype == torch.uint8 for group in batch.views.groups)
    expected = collate(samples, processor)
    assert expected.views.scaling is None
    pairs = zip(pickle.loads(pickle.dumps(batch)).views.normalised(), expected.views.groups, strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert torch.equal(module.network(batch).hidden, module.network(expected).hidden)
    lost, blank = unlearnt(samples[1])
    mixed = collate([samples[0], lost], processor, views=[crops[0], blank]).views
    assert torch.equal(mixed.groups[0][:1], expected.views.groups[0][:1]) and not mixed.groups[0][1:].any()
    assert torch.equal(mixed.normalised()[0], mixed.groups[0])
