"""The error of one sample."""

from __future__ import annotations

import pickle

import pytest
from torch._utils import ExceptionWrapper

from lit_mm.cli import message_of
from lit_mm.documents.sources import KINDS, SampleError

ERROR = SampleError("it is empty", where="a.jsonl:3", sample_id="x", kind="empty_answer", remedy="Write it")


def test_the_message_says_where_what_and_what_to_do():
    assert str(ERROR) == "a.jsonl:3: it is empty. Write it"
    assert str(SampleError("it is empty")) == "it is empty"
    assert SampleError("it is empty", where="a.jsonl:3").sample_id == "a.jsonl:3"


def test_it_travels_between_processes_whole():
    again = pickle.loads(pickle.dumps(ERROR))
    assert vars(again) == vars(ERROR)
    assert str(again) == str(ERROR)


def test_its_kind_is_one_of_the_list():
    assert ERROR.kind in KINDS
    with pytest.raises(AssertionError):
        SampleError("x", kind="odd")


def test_a_loader_s_worker_hands_it_over_and_the_command_line_says_it_alone():
    try:
        raise ERROR
    except SampleError:
        wrapped = ExceptionWrapper(where="in a worker")
    with pytest.raises(SampleError) as caught:
        wrapped.reraise()
    assert message_of(caught.value) == str(ERROR)
