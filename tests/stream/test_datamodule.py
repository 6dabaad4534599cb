"""The base of all data modules: plan, state and errors."""

import multiprocessing
import os
import pickle
import select
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from lit_mm.documents.decode import PictureError
from lit_mm.documents.sources.errors import SampleError
from lit_mm.errors import UserError
from lit_mm.stages.stage import Stage, Train
from lit_mm.stream.order import MicroBatch
from lit_mm.stream.workers import end_with_parent
from tests.rows import loss_sum
from tests.tiny import Documents, Noise, document, xcomposer2

STAGE = Stage("a", {"language": Train(lr=1.0)}, max_steps=6)


def begun(stage=STAGE, seed=0, rank=0, world=1, **options):
    data = Documents(**options)
    data.begin(xcomposer2().processor, stage, seed=seed, rank=rank, world=world)
    return data


def ids(data):
    return [batch.sample_ids for batch in data.train_dataloader()]


def test_batches_carry_the_samples_of_the_plan_and_the_tokens_of_the_step():
    data = begun(micro_batch=2)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 12
    for micro, batch in zip(data.stream, batches, strict=True):
        assert batch.sample_ids == tuple(f"tiny/{i}" for row in micro.rows for i in row)
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert first.units["tokens"] == second.units["tokens"] == first.num_supervised + second.num_supervised


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stream_does_not_depend_on_the_workers(workers):
    for here, there in zip(begun().train_dataloader(), begun(num_workers=workers).train_dataloader(), strict=True):
        assert here.sample_ids == there.sample_ids
        assert torch.equal(here.ids, there.ids)
        assert all(torch.equal(a, b) for a, b in zip(here.views.groups, there.views.groups, strict=True))


def test_pixels_cross_from_the_workers_as_bytes():
    batches = [batch for batch in begun().train_dataloader() if batch.views.owners[0] >= 0]
    assert batches and all(group.dtype == torch.uint8 for batch in batches for group in batch.views.groups)


def test_the_order_depends_on_seed_and_stage():
    assert ids(begun()) == ids(begun())
    assert ids(begun(seed=1)) != ids(begun())
    assert ids(begun(Stage("b", STAGE.train, max_steps=6))) != ids(begun())


def test_its_state_is_one_number_and_it_goes_on_from_there():
    data = begun(micro_batch=1)
    data.trainer = SimpleNamespace(global_step=4, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    state = data.state_dict()
    assert state["finished_steps"] == 4
    assert state["mark"] == list(begun(micro_batch=2).stream.plan.mark(15))  # follows from the step
    resumed = begun(micro_batch=2)
    resumed.load_state_dict(state)
    assert ids(resumed) == ids(begun(micro_batch=2))[8:]
    assert len(resumed.train_dataloader()) == 12


def test_another_stage_begins_at_its_own_first_step():
    data = begun()
    data.load_state_dict({"finished_steps": 3, "global_batch": 4})
    data.begin(xcomposer2().processor, STAGE, seed=0)
    assert ids(data) == ids(begun())


def test_another_global_batch_is_not_continued():
    with pytest.raises(UserError, match="has global_batch 8, but the config has 4"):
        begun().load_state_dict({"finished_steps": 3, "global_batch": 8})


def test_a_micro_batch_left_out_is_the_share_of_a_rank():
    assert begun(world=2).stream.micro_batch == 2
    with pytest.raises(UserError, match="global_batch must be a multiple of micro_batch x ranks, got 4 and 1 x 3"):
        begun(world=3)


def test_without_packing_a_row_is_one_sample():
    assert all(len(row) == 1 for micro in begun(row_tokens=None).stream for row in micro.rows)


def test_lengths_are_computed_once():
    data = begun()
    assert data.screen.examined == 0  # `max_steps` needs none
    list(data.stream)
    assert 0 < data.screen.examined <= 24
    data.screen.maker = None  # nobody is asked again
    assert data.screen(3) == xcomposer2().processor.sample(document(3)).length


@dataclass(frozen=True)
class Torn(Noise):
    """A picture with unreadable pixels."""

    def read(self):
        raise PictureError("the picture is torn")


class WithBad(Documents):
    """Documents, one of which has unreadable pictures."""

    def __init__(self, bad, **options):
        super().__init__(count=12, window=12, **options)
        self.bad = bad

    def source(self):
        documents = super().source()
        sound = documents[self.bad]
        documents[self.bad] = sound.with_pictures(Torn(p.seed) for p in sound.pictures)
        return documents


def lost_and_sound(**options):
    """A step with a lost sample, and the same step with all samples sound."""
    made = []
    for data in (WithBad(2, on_bad_sample="quarantine", **options), Documents(12, window=12, **options)):
        data.begin(xcomposer2().processor, STAGE, seed=0)
        step = next(micro for micro in data.stream if any(2 in row for row in micro.rows))
        assert len(next(row for row in step.rows if 2 in row)) > 1 or options.get("row_tokens", 1) is None
        made.append(data.rows[step])
    return made


@pytest.mark.parametrize("row_tokens", [192, None])
def test_a_sample_that_a_worker_loses_keeps_its_place_and_no_label(row_tokens):
    lost, sound = lost_and_sound(row_tokens=row_tokens)
    (fault,) = lost.lost
    assert (fault.number, fault.sample_id, fault.kind) == (2, "tiny/2", "unreadable_image")
    assert "the picture is torn" in fault.reason
    assert set(sound.sample_ids) - set(lost.sample_ids) == {"tiny/2"}
    assert sound.num_by_source[0] - lost.num_by_source[0] == 1
    for name in ("ids", "positions", "visual", "bank"):
        assert torch.equal(getattr(lost, name), getattr(sound, name))
    assert (lost.lengths, lost.units) == (sound.lengths, sound.units)
    assert [v.shape for v in lost.views.groups] == [v.shape for v in sound.views.groups]
    gone = xcomposer2().processor.sample(document(2)).length.supervised
    assert sound.num_supervised - lost.num_supervised == gone > 0


def test_the_others_learn_as_if_a_lost_sample_were_learnt_perfectly():
    """The gradients equal, bit for bit, those of the sound step with the labels of that sample hidden."""
    lost, sound = lost_and_sound()
    hidden = replace(sound, supervised=lost.supervised, labels=lost.labels)
    found = []
    for batch in (lost, hidden):
        module = xcomposer2(trained=True)
        loss = loss_sum(module, batch)
        (loss / batch.units["tokens"]).backward()
        found.append((loss.detach(), module.network.language.lm.lm_head.weight.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_a_torn_picture_stops_the_run_where_the_policy_is_fail():
    data = WithBad(2, on_bad_sample="fail")
    data.begin(xcomposer2().processor, STAGE, seed=0)
    with pytest.raises(SampleError, match="sample 'tiny/2': the picture is torn"):
        list(data.train_dataloader())


def test_a_step_of_which_a_worker_loses_everything_still_has_its_shape():
    data = WithBad(2, on_bad_sample="skip")
    data.begin(xcomposer2().processor, STAGE, seed=0)
    batch = data.rows[MicroBatch(((2,),), 5)]
    assert batch.sample_ids == ()
    assert batch.num_supervised == 0
    data.rows.maker.documents.sources[0][2] = document(2, pictures=0).without_answer()  # and now not even an entry
    batch = data.rows[MicroBatch(((2,), (2,)), 5)]
    assert (batch.lengths, batch.num_supervised) == ((1,), 0)
    assert batch.num_views == 1
    module = xcomposer2()
    (loss_sum(module, batch) / 5).backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.network.parameters())


@pytest.mark.parametrize("name", ["max_bad", "max_unsupervised"])
def test_shares_are_from_zero_to_one(name):
    with pytest.raises(UserError, match=rf"shares from 0 to 1, got {{'{name}': 1.5}}"):
        Documents(**{name: 1.5})


def test_the_rows_can_travel_to_a_worker():
    assert pickle.loads(pickle.dumps(document(2))) == document(2)


def start_worker(write):
    """Run a trainer that is killed while its worker starts."""

    def work():
        time.sleep(0.3)  # its trainer is gone by now
        end_with_parent(0)
        time.sleep(60)
        os.write(write, b"still here")

    multiprocessing.get_context("fork").Process(target=work).start()
    os._exit(0)


def test_a_worker_ends_with_its_trainer_even_when_that_is_killed_at_the_start():
    read, write = os.pipe()
    trainer = multiprocessing.get_context("fork").Process(target=start_worker, args=(write,))
    trainer.start()
    trainer.join()
    os.close(write)
    ended, _, _ = select.select([read], [], [], 20)  # the pipe closes when the last process that holds it ends
    assert ended
    assert os.read(read, 100) == b""
    os.close(read)


def test_a_data_module_without_a_stage_says_who_drives_it():
    with pytest.raises(UserError, match="in a recipe that has `stages:`"):
        Documents().train_dataloader()


@pytest.mark.parametrize(
    "options",
    [{"global_batch": 0}, {"micro_batch": 0}, {"row_tokens": 0}, {"row_views": -1}, {"window": 0}, {"num_workers": -1}],
)
def test_impossible_counts_are_refused(options):
    ((name, count),) = options.items()
    with pytest.raises(UserError, match=f"{name}.*{count}"):
        Documents(**options)
