"""Planning leaves out bad samples with a reason, and a run stops if there are too many."""

import pytest

from lit_mm.documents.decode import PictureError
from lit_mm.documents.document import Document, Turn
from lit_mm.documents.sources import SampleError
from lit_mm.errors import UserError
from lit_mm.samples.fault import Fault
from lit_mm.samples.length import Length
from lit_mm.stream.ledger import entries_of, quarantined, summarise
from lit_mm.stream.maker import SampleMaker
from lit_mm.stream.mixture import Joined
from lit_mm.stream.order import StepSamples
from lit_mm.stream.screen import Screen
from tests.tiny import Noise, document, xcomposer2

PROCESSOR = xcomposer2().processor
LONG = Document("long", (Turn("user", ("what",)), Turn("assistant", ("page " * 100,))))
SILENT = Document("silent", (Turn("user", (Noise(0), "what is this?")),))


class Source(list):
    """A source of documents; it raises entries that are exceptions."""

    def __getitem__(self, number):
        found = super().__getitem__(number)
        if isinstance(found, Exception):
            raise found
        return found


BROKEN = SampleError("no JSON", where="x.jsonl:3", sample_id="", kind="malformed_json")


def screen(documents, *, too_long="refuse", max_bad=1.0, max_unsupervised=1.0, row_tokens=64, row_views=None, **policy):
    joined = Joined([Source(documents), Source([document(1)])], ["a", "b"])
    maker = SampleMaker(joined, PROCESSOR, too_long=too_long, row_tokens=row_tokens, row_views=row_views)
    return Screen(maker, max_bad=max_bad, max_unsupervised=max_unsupervised, **policy)


def test_sound_samples_have_the_length_that_the_processor_counts():
    seen = screen([document(2)], on_bad_sample="skip", row_tokens=None)
    assert seen(0) == PROCESSOR.sample(document(2)).length
    assert isinstance(seen(0), Length)
    assert not seen.faults


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (BROKEN, "malformed_json", "no JSON"),
        (UserError("odd"), "bad_entry", "odd"),
        (PictureError("torn"), "unreadable_image", "torn"),
        (SILENT, "no_supervision", "nothing of its"),
        (LONG, "too_long", "a row holds 64 tokens and any number of views"),
    ],
)
def test_a_bad_sample_fails_the_run_or_is_left_out_with_its_reason(bad, kind, words):
    with pytest.raises(UserError, match=words):
        screen([bad], on_bad_sample="fail")(0)
    seen = screen([bad], on_bad_sample="skip")
    assert seen(0) is None
    assert seen.faults[0].kind == kind
    assert words in seen.faults[0].reason
    assert seen(1) is not None


def test_a_long_sample_is_cut_and_remembered_as_cut():
    seen = screen([LONG], on_bad_sample="fail", too_long="truncate")
    assert seen(0).tokens == 64
    assert seen.was_cut(0)
    assert not screen([document(0)], on_bad_sample="fail", too_long="truncate").was_cut(0)


def test_a_sample_beyond_the_model_is_refused_with_both_numbers():
    short = xcomposer2(max_length=40).processor
    with pytest.raises(
        SampleError, match=r"sample 'long' has \d+ tokens .*, but the limit of the model is 40\. .*`too_long: truncate`"
    ):
        SampleMaker(Joined([[LONG]], ["a"]), short)(0)
    sample, cut = SampleMaker(Joined([[LONG]], ["a"]), short, too_long="truncate")(0)
    assert cut
    assert len(sample) == 40


def test_too_many_views_are_refused_or_cut_before_the_picture_that_is_too_many():
    shown = Document("two", (Turn("user", (Noise(0), "what?")), Turn("assistant", ("page",)),
                             Turn("user", (Noise(1), "and this?")), Turn("assistant", ("page",))))  # fmt: skip
    with pytest.raises(SampleError, match="and 2 views, but a row holds 192 tokens and 1 views"):
        SampleMaker(Joined([[shown]], ["a"]), PROCESSOR, row_tokens=192, row_views=1)(0)
    sample, cut = SampleMaker(Joined([[shown]], ["a"]), PROCESSOR, too_long="truncate", row_tokens=192, row_views=1)(0)
    assert cut
    assert sample.length.views == 1


def test_more_bad_samples_than_the_share_stop_the_run_and_the_last_is_told():
    seen = screen([document(0)] * 4 + [BROKEN] * 5, on_bad_sample="skip", max_bad=0.2)  # 2 of 10
    assert [seen(n) for n in (4, 5)] == [None, None]
    with pytest.raises(
        UserError, match=r"3 of the first 3 samples are bad, more than `max_bad: 0.2`.*x.jsonl:3: no JSON"
    ):
        seen(6)


def test_samples_without_supervision_have_a_share_of_their_own():
    seen = screen([SILENT] * 3 + [document(0)] * 6, on_bad_sample="skip", max_bad=0.0, max_unsupervised=0.2)
    assert [seen(0), seen(1)] == [None, None]
    with pytest.raises(
        UserError, match=r"3 of the first 3 samples have nothing to learn, more than `max_unsupervised: 0.2"
    ):
        seen(2)


def test_a_sample_is_looked_at_once():
    seen = screen([BROKEN, document(2)], on_bad_sample="skip")
    assert [seen(0), seen(1)] == [seen(0), seen(1)]
    assert seen.examined == 2


def test_every_sample_of_a_step_has_one_entry_and_a_lost_one_is_not_trained():
    seen = screen([document(0), LONG, BROKEN], on_bad_sample="quarantine", too_long="truncate")
    assert [seen(n) is None for n in range(4)] == [False, False, True, False]
    lost = [Fault(0, "tiny/0", "", "unreadable_image", "torn")]
    entries = entries_of(StepSamples([0, 1, 3, 0], [2]), lost, seen)
    assert {(e.source, e.outcome, e.kind): e.count for e in entries} == {
        ("a", "trained", ""): 1,
        ("a", "truncated", "too_long"): 1,
        ("b", "trained", ""): 1,
        ("a", "quarantined", "malformed_json"): 1,
        ("a", "quarantined", "unreadable_image"): 1,
    }
    with pytest.raises(AssertionError, match="does not hold"):
        entries_of(StepSamples([1, 3], []), lost, seen)


def test_a_stage_is_reconciled_to_the_sizes_of_its_sources():
    counts = {"trained": 4, "truncated": 1, "skipped": 2, "quarantined": 0}
    rows = [{"source": "a", **counts}, {"source": "a", **counts}, {"source": "b", **counts}]
    told = [{"source": "a", "kind": "missing_file", "count": 4, "outcome": "skipped"}]
    account = summarise("s", ["a", "b"], [10, 7], rows, told)
    assert account["sources"][0] == {
        "source": "a", "size": 10, "drawn": 14, "trained": 8, "truncated": 2, "skipped": 4, "quarantined": 0,
        "passes": 2, "not_reached": 6, "reasons": {"missing_file": 4},
    }  # fmt: skip
    assert (account["sources"][1]["passes"], account["sources"][1]["not_reached"]) == (1, 0)


def test_a_quarantined_sample_is_listed_once_however_often_it_came():
    line = {
        "source": "a",
        "id": "7",
        "where": "f:1",
        "kind": "missing_file",
        "reason": "gone",
        "outcome": "quarantined",
    }
    assert quarantined([line, line, line | {"id": "8"}, line | {"outcome": "skipped"}]) == [
        {key: value for key, value in one.items() if key != "outcome"} for one in (line, line | {"id": "8"})
    ]
