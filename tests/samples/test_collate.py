"""Rows: samples side by side are blind to each other, and a batch without images is no special case for training."""

from dataclasses import replace

import pytest
import torch

from lit_mm.samples.batch import IGNORE
from lit_mm.samples.collate import collate
from tests.tiny import document, xcomposer2

RTOL = 1e-5  # fp32, sums in another order


def gradients(module, batches):
    """Loss sum and gradients of the sum over the batches."""
    module.zero_grad(set_to_none=True)
    loss = sum(module.network.loss_sum(batch) for batch in batches)
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


def test_packed_rows_give_the_loss_and_gradients_of_single_samples():
    module = xcomposer2(trained=True)
    processor = module.processor
    samples = [processor.sample(document(number)) for number in range(7)]  # with 0, 1 and 2 pictures
    single = gradients(module, [collate([[sample]], processor) for sample in samples])
    for name in (
        "vision.patches",
        "connector.mlp.0",
        "language.lm.model.layers.0.self_attn.lora_a",
        "language.lm.lm_head",
    ):
        assert single[1][f"network.{name}.weight"].any()
    assert_same(gradients(module, [collate([samples[:3], samples[3:4], samples[4:]], processor)]), single)
    assert_same(gradients(module, [collate([samples], processor)]), single)
    assert_same(gradients(module, [collate([[sample] for sample in samples], processor, left_pad=True)]), single)


def test_what_stands_beside_a_sample_in_its_row_does_not_reach_it():
    module = xcomposer2(trained=True).eval()
    processor = module.processor
    target, *neighbours = (processor.sample(document(number)) for number in (2, 1, 4, 5))
    alone = collate([[target]], processor)
    expected = module.network.hidden(alone)[0, : len(target)]
    for before, after in ((0, 1), (1, 0), (2, 1)):
        row = [*neighbours[:before], target, *neighbours[before : before + after]]
        batch = collate([row], processor)
        found = module.network.hidden(batch)[batch.segment_ids == before + 1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("left_pad", [False, True])
def test_rows_hold_their_samples_segments_and_positions(left_pad):
    processor = xcomposer2().processor
    samples = [processor.sample(document(number)) for number in range(3)]
    batch = collate([samples[:2], samples[2:]], processor, step_tokens=77, left_pad=left_pad)
    assert batch.input_ids.shape[1] % 8 == 0
    for row, members in enumerate((samples[:2], samples[2:])):
        used = batch.segment_ids[row] > 0
        assert used.tolist() == sorted(used.tolist(), reverse=not left_pad)
        for number, sample in enumerate(members, start=1):
            own = batch.segment_ids[row] == number
            assert batch.input_ids[row][own].tolist() == sample.input_ids.tolist()
            assert batch.position_ids[row][own].tolist() == list(range(len(sample)))
        assert (batch.labels[row][~used] == IGNORE).all()
        assert not batch.visual_mask[row][~used].any()
    assert batch.sample_ids == ("tiny/0", "tiny/1", "tiny/2")
    assert batch.step_tokens == 77
    assert batch.num_tokens == sum(len(sample) for sample in samples)
    assert batch.num_supervised == sum(sample.length.supervised for sample in samples)


def test_left_padding_puts_the_last_token_of_every_sample_last():
    processor = xcomposer2().processor
    samples = [processor.sample(document(number).without_answer()) for number in range(4)]
    batch = collate([[sample] for sample in samples], processor, left_pad=True)
    assert batch.input_ids[:, -1].tolist() == [sample.input_ids[-1] for sample in samples]
    assert (batch.segment_ids[:, -1] == 1).all()
    assert batch.position_ids[:, -1].tolist() == [len(sample) - 1 for sample in samples]


def test_a_batch_without_images_gives_zero_and_not_missing_gradients_to_what_sees():
    module = xcomposer2(trained=True)
    sample = module.processor.sample(document(0))
    assert not sample.plans
    batch = collate([[sample]], module.processor)
    assert [tuple(group.shape) for group in batch.views] == [(1, 3, 28, 28)]
    assert batch.num_visual == 4
    assert not batch.visual_mask.any()
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
    single = gradients(module, [collate([[sample]], module.processor) for sample in (one, eager)])
    packed = collate([[one, eager]], module.processor)
    assert packed.num_supervised == one.length.supervised + eager.length.supervised
    assert_same(gradients(module, [packed]), single)


def test_padding_changes_nothing():
    module = xcomposer2(trained=True)
    samples = [module.processor.sample(document(number)) for number in range(3)]
    tight = gradients(module, [collate([samples], module.processor, multiple=1)])
    assert_same(gradients(module, [collate([samples], module.processor, multiple=256)]), tight)
