"""Keys of a config are checked against the signatures of the classes it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_mm.commands.config_text import COMMAND_LINE, Entry, config_of, overrides, read_config
from lit_mm.commands.signatures import check_entry, merged, resolve, signature_of
from lit_mm.errors import UserError
from tests.commands.bicycle import Bicycle, WideWheel

HERE = "tests.commands.bicycle"


def wheel(**arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{HERE}.Wheel", "init_args": arguments}


@pytest.mark.parametrize(
    "config",
    [
        {"name": "a", "wheels": [wheel(radius=1), wheel(radius=2, spokes=3)]},
        {"name": "a", "gears": {"first": {"teeth": 3}, "second": {"teeth": 4, "ratio": 2}}},
        {"name": "a", "main_gear": None, "bag": {"anything": {"at": ["all"]}}},
        {"name": "a", "wheel_maker": {"class_path": f"{HERE}.WideWheel", "init_args": {"tread": "x", "spokes": 3}}},
        {"name": "a", "wheel_maker": {"class_path": f"{HERE}.wheel_of", "init_args": {"colour": "red"}}},
        {"name": "a", "wheel_maker": f"{HERE}.WideWheel"},
        {"name": "a", "wheel_maker": {"init_args": {"tread": "x"}}},  # the class is the default
        {"name": "a", "wheels": [{"class_path": "Wheel", "init_args": {"radius": 1}}]},
        {"name": "a", "pair": [{"teeth": 3}, wheel(radius=1)]},
        {"name": "a", "lamp": "a.text.with.points"},
        {"name": 3, "wheels": "not a list"},  # types are left to the parser
    ],
)
def test_a_config_that_fits_its_signatures_is_accepted(config: dict[str, Any]) -> None:
    check_entry(config_of(config, "c"), Bicycle, ())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"nmae": "a"}, f"c: nmae: {HERE}.Bicycle has no key 'nmae'. Did you mean 'name'?"),
        ({}, f"c: : {HERE}.Bicycle needs `name`. Add it"),
        ({"name": "a", "wheels": [wheel(radius=1, spoke=3)]}, f"c: wheels.0.init_args.spoke: {HERE}.Wheel has no key"),
        ({"name": "a", "wheels": [wheel()]}, f"c: wheels.0: {HERE}.Wheel needs `radius`. Add it"),
        ({"name": "a", "gears": {"low": {"teth": 3}}}, f"c: gears.low.teth: {HERE}.Gear has no key 'teth'"),
        ({"name": "a", "gears": {"low": None}}, f"c: gears.low: {HERE}.Gear needs `teeth`. Add it"),
        ({"name": "a", "main_gear": {"ratio": 3}}, f"c: main_gear: {HERE}.Gear needs `teeth`"),
        ({"name": "a", "wheel_maker": {"init_args": {"thread": "x"}}}, "has no key 'thread'. Did you mean 'tread'?"),
        ({"name": "a", "wheel_maker": f"{HERE}.Wheell"}, f"there is no '{HERE}.Wheell'. Did you mean 'Wheel'?"),
        ({"name": "a", "wheels": [{"class_path": "Wheel", "init_args": {"radus": 1}}]}, "Did you mean 'radius'?"),
        (
            {"name": "a", "wheels": [{"class_path": f"{HERE}.Gear", "init_args": {"teeth": 1}}]},
            f"c: wheels.0.class_path: expected a subclass of {HERE}.Wheel, got {HERE}.Gear",
        ),
        (
            {"name": "a", "wheel_maker": {"class_path": f"{HERE}.Gear"}},
            f"c: wheel_maker.class_path: expected a subclass of {HERE}.Wheel, got {HERE}.Gear",
        ),
        ({"name": "a", "wheels": [{"clas_path": "x"}]}, "got 'clas_path'. Did you mean 'class_path'?"),
        ({"name": "a", "pair": [{"teeth": 3}, wheel(radious=1)]}, "c: pair.1.init_args.radious: "),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_the_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_entry(config_of(config, "c"), Bicycle, ())
    assert message in str(refusal.value)


def test_arguments_that_a_class_passes_to_its_base_belong_to_its_signature() -> None:
    signature = signature_of(WideWheel)
    assert list(signature.arguments) == ["tread", "radius", "spokes"]
    assert [name for name, argument in signature.arguments.items() if argument.required] == ["radius"]
    assert not signature.open


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.Thing", "there is no 'nowhere'"),
        ("lit_mm.vison.vit.ViT", "there is no 'lit_mm.vison'. Did you mean 'vision'?"),
        ("lit_mm.vision.vit.Vit.patch", "there is no 'lit_mm.vision.vit.Vit'. Did you mean 'ViT'?"),
    ],
)
def test_the_first_wrong_name_of_an_import_path_is_named(path: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        resolve(path)
    assert str(refusal.value) == message


def test_a_module_that_fails_to_import_is_told_from_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpora_of_mine").mkdir()
    (tmp_path / "corpora_of_mine/__init__.py").write_text("")
    (tmp_path / "corpora_of_mine/birds.py").write_text("import a_package_that_is_not_installed")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LIT_MM_ALLOW", "corpora_of_mine")
    with pytest.raises(UserError, match=r"'corpora_of_mine.birds' cannot be imported: No module named 'a_package"):
        resolve("corpora_of_mine.birds.Birds")


def test_a_later_config_replaces_values_and_keeps_common_arguments_of_another_class() -> None:
    base = config_of({"wheel": wheel(radius=1, spokes=2), "list": [1, 2]}, "base")
    later = {"wheel": {"class_path": f"{HERE}.wheel_of", "init_args": {"colour": "red"}}, "list": [3]}
    both = merged(base, config_of(later, "later"))
    arguments = both.keys["wheel"].keys["init_args"].keys
    assert {key: (entry.value, entry.place) for key, entry in arguments.items()} == {
        "radius": ("1", "base"),
        "colour": ("red", "later"),
    }
    assert [entry.value for _, entry in both.keys["list"].items] == ["3"]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["--a.b", "1", "--c=2"], [{"a": {"b": "1"}}, {"c": "2"}]),
        (["--a={b: [1, x]}"], [{"a": {"b": ["1", "x"]}}]),
        (["--a.b+", "1"], [{"a": {"b": ["1"]}}]),
        (["--config", "x.yaml", "--print_config", "--a", "-1", "word"], [{"a": "-1"}]),
        (["--a={b"], [{"a": "{b"}]),
    ],
)
def test_options_of_the_command_line_become_entries(words: list[str], keys: list[dict[str, Any]]) -> None:
    def plain(entry: Entry) -> Any:
        assert entry.place == COMMAND_LINE
        if isinstance(entry.value, list):
            return [plain(item) for item in entry.value]
        return {key: plain(inner) for key, inner in entry.keys.items()} if entry.keys else entry.value

    assert [plain(entry) for entry in overrides(words)] == keys


def test_entries_of_a_file_know_their_lines_through_anchors_and_merges(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: &a\n  x: 1\n  y: 2\nb:\n  <<: *a\n  y: 3\nc: [{name: q}, null]\n")
    root = read_config(str(file))
    places = {key: (entry.value, entry.place.rpartition(" ")[2]) for key, entry in root.keys["b"].keys.items()}
    assert places == {"x": ("1", "2"), "y": ("3", "6")}
    assert [(name, entry.value if not entry.keys else "") for name, entry in root.keys["c"].items] == [
        ("q", ""),
        ("1", None),
    ]
