"""Prints as a data module, without tokenizer and processor."""

from lit_mm.datamodules.nano_prints import NanoPrints
from lit_mm.stages.stage import Stage, Train

STAGE = Stage("see", {"vision": Train(lr=1.0)}, max_steps=2)


def test_a_row_is_one_page_and_batches_are_prints():
    data = NanoPrints(pages=10, size=28, global_batch=4, micro_batch=2, num_workers=0)
    assert data.begin(None, STAGE, seed=0) == 2
    batches = list(data.train_dataloader())
    assert [batch.prints.shape for batch in batches] == [(2, 3, 28, 28)] * 4
    assert {batch.units["pages"] for batch in batches} == {4}
    assert len({page for batch in batches for page in batch.sample_ids}) == 8
    assert data.heldout() == []


def test_an_epoch_takes_every_page():
    data = NanoPrints(pages=10, size=28, global_batch=4, num_workers=0)
    assert data.begin(None, Stage("see", STAGE.train, epochs=2), seed=0) == 5
    assert sorted(i for micro in data.stream for row in micro.rows for i in row) == sorted([*range(10)] * 2)
