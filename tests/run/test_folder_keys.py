"""Some keys of a config may differ between the launches of a run, others may not."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.language.llama import Llama
from lit_mm.run.folder import _is_set, differences, with_new_arguments


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b"]),
        ({"stages": [{"name": "x"}]}, {"stages": [{"name": "x", "inputs": None, "inputs_from": {}}]}, []),
        (
            {"stages": [{"inputs_from": {}}]},
            {"stages": [{"inputs_from": {3: {"fill": [0, 0, 0]}}}]},
            ["stages.0.inputs_from.3"],
        ),
    ],
)
def test_keys_that_differ_are_listed_and_nothing_is_equal_to_an_empty_mapping(
    before: dict[str, Any], after: dict[str, Any], keys: list[str]
) -> None:
    assert differences(before, after) == keys


def test_a_value_is_set_in_a_config_if_it_is_neither_null_nor_empty() -> None:
    config = {"stages": [{"inputs": {"tiling": {"size": 1}, "layout": None}}]}
    assert _is_set("stages.0.inputs.tiling.size", config, config)
    assert not _is_set("stages.0.inputs.layout", config) and not _is_set("stages.0.inputs.prompt", config)


def test_arguments_that_a_class_has_got_since_a_config_was_written_count_as_their_defaults() -> None:
    path = f"{Llama.__module__}.Llama"
    before = {"model": {"init_args": {"language": {"class_path": path, "init_args": {"width": 8}}}}}
    language = before["model"]["init_args"]["language"]["init_args"]

    def keys_with(**arguments: Any) -> list[str]:
        complete = with_new_arguments(before)
        complete["model"]["init_args"]["language"]["init_args"] |= language | arguments
        return differences(with_new_arguments(before), complete)

    assert keys_with(attention="auto", compile=False) == []
    assert keys_with(attention="segments") == ["model.init_args.language.init_args.attention"]
    assert with_new_arguments({"class_path": "gone.Class", "init_args": {"a": 1}}) == {
        "class_path": "gone.Class",
        "init_args": {"a": 1},
    }
