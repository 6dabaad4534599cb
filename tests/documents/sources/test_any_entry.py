"""Whatever an entry holds, a source gives a document or one `SampleError` that names its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_mm.documents.sources import FORMATS, SampleError, open_source
from lit_mm.documents.sources.check import check_source

KEYS = """id image images conversations messages prompt completion texts text_list image_info query response history
    system tools question answer caption text file_name video image_path from value role content type image_url url
    bytes path matched_text_index image_name image_base64 user assistant weight mask tool_calls"""
TEXTS = """user human assistant gpt system tool text image image_url wide.png absent.png <image> <ImageHere> <img>
    </img> <img>wide.png</img> <box> <box>(1,2),(3,4)</box> <video> s3://b/a.png http://[ ~ .. /
    data:image/png;base64,AAAA"""
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 3),
    st.floats(),
    st.sampled_from([*TEXTS.split(), "", " ", "\0", "\ud83d"]),
    st.text(max_size=8),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5)
    ),
    max_leaves=24,
)
turns = st.lists(
    st.one_of(
        values,
        st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system"]), "value": values}),
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": values}),
    ),
    max_size=4,
)
entries = st.one_of(
    values,
    st.fixed_dictionaries({"conversations": turns}, optional={"image": values, "images": values, "id": values}),
    st.fixed_dictionaries({"messages": turns}, optional={"images": values, "system": values}),
    st.fixed_dictionaries({"query": values, "response": values}, optional={"history": values, "images": values}),
    st.fixed_dictionaries({"texts": st.lists(values, max_size=3), "images": st.lists(values, max_size=3)}),
    st.fixed_dictionaries({"text_list": st.lists(values, max_size=3), "image_info": st.lists(values, max_size=3)}),
    st.fixed_dictionaries({"question": values, "answer": values}, optional={"image": values, "images": values}),
)


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "captions"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(entries, min_size=1, max_size=20))
def test_any_entry_is_a_document_or_a_sample_error(folder: Path, format: str, rows: list[Any]) -> None:
    path = folder / "metadata.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ({}, *rows)))  # a list would be the list of all entries
    source = open_source({"format": format, "path": str(folder if format == "folder" else path)})
    errors: list[SampleError] = []
    summary = check_source("any", source, errors.append)
    for error in errors:
        str(error).encode("utf-8")
        assert str(error).startswith("metadata.jsonl:") and len(str(error)) < 1000
    summary.lines()
    places = {error.where for error in errors}
    for number in range(len(source)):
        try:
            document = source[number]
        except SampleError as error:
            assert error.where in places
        else:
            assert source.where(number) not in places
            "".join(turn.text for turn in document.turns).encode("utf-8")
            document.id.encode("utf-8")
