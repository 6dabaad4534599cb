"""Every published layout is imported, asked, trained for a step, exported and imported again."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_mm.commands.conversions.conversion import conversion_of
from lit_mm.commands.published import Published
from lit_mm.commands.trained import open_model
from lit_mm.weights.files import TensorFiles, tensor_files
from lit_mm.weights.layouts.layout import Described, all_layouts, layout_named
from tests import hub
from tests.commands.test_import import command, conversation  # noqa: F401  # `command` is a fixture

LAYOUTS = {
    "instructblip/hf": hub.instructblip,
    "llava/authors": hub.llava,
    "llava_1_5/authors": hub.llava_1_5,
    "llava_1_5/hf": hub.hf_llava,
    "llava_next/authors": hub.llava_next,
    "llava_next/hf": hub.hf_next,
    "llava_uhd/authors": hub.llava_uhd,
    "vila/authors": hub.vila,
    "vila_1_5/authors": hub.vila_1_5,
    "qwen_vl/authors": hub.qwen_vl,
    "monkey/authors": hub.monkey,
    "xcomposer/authors": hub.xcomposer,
    "xcomposer2/authors": hub.xcomposer2,
    "xcomposer2_4khd/authors": hub.xcomposer2_4khd,
    "minigpt4/authors": hub.minigpt4,
    "fuyu/hf": hub.fuyu,
    "cogvlm/authors": hub.cogvlm,
    "cogagent/authors": hub.cogagent,
    "mini_gemini/authors": hub.mini_gemini,
    "blip2/hf": hub.hf_blip2,
    "blip2/authors": hub.lavis_blip2,
    "blip2_retrieval/hf": hub.hf_blip2_retrieval,
    "blip2_retrieval/authors": hub.lavis_blip2_retrieval,
    "instructblip/authors": hub.lavis_instructblip,
    "blip/hf": hub.hf_blip,
    "blip/authors": hub.blip,
    "blip_pretrain/authors": hub.blip_pretrain,
    "blip_retrieval/hf": hub.hf_blip_retrieval,
    "blip_retrieval/authors": hub.blip_retrieval,
}
DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"
PARTS = {  # layouts whose files hold some parts -> writers of the others
    "minigpt4/authors": {"vision": hub.eva_vit_g, "connector": hub.blip2_t5, "language": hub.vicuna},
    "cogvlm/authors": {"tokenizer": hub.tokenizer_alone},
    "cogagent/authors": {"tokenizer": hub.tokenizer_alone},
    "blip/authors": {"tokenizer": hub.bert},
    "blip_pretrain/authors": {"tokenizer": hub.bert},
    "blip_retrieval/authors": {"tokenizer": hub.bert},
    "mini_gemini/authors": {"vision": hub.clip, "second_vision": hub.convnext},
    "llava_1_5/authors": {"vision": hub.clip},
    "blip2/authors": {"vision": hub.eva_vit_g, "language": hub.opt},
    "blip2_retrieval/hf": {"language": hub.opt},
    "blip2_retrieval/authors": {"vision": hub.eva_vit_g, "language": hub.opt, "reading": hub.bert},
    "instructblip/authors": {"vision": hub.eva_vit_g, "language": hub.vicuna, "reading": hub.bert},
}
BESIDE = "; logits and pixels of transformers"
COMPARE = ("blip_retrieval/authors", "blip_retrieval/hf", "blip2_retrieval/authors", "blip2_retrieval/hf")
NAMED = ("vila/authors",)  # layouts whose files look like those of another one


def hints(output: str) -> list[list[str]]:
    """Return the words of the commands that an import prints at its end."""
    lines = [line.partition("python -m lit_mm ")[2] for line in output.splitlines()]
    return [shlex.split(line) for line in lines if line]


def tensors_of(place: Path) -> TensorFiles:
    """Tensors of a checkpoint by name."""
    return TensorFiles(tensor_files(place), place if place.is_dir() else None)


def words_of(layout: str, place: Path) -> tuple[str, ...]:
    """Options of `import` that a layout needs."""
    words = ("--layout", layout) if layout in NAMED else ()
    if layout in PARTS:
        parts = PARTS[layout]
        return tuple(word for part, write in parts.items() for word in ("--with", f"{part}={write(place / part)}"))
    return words


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_imported_layout_is_exported_as_it_was_published(command: Callable, tmp_path: Path, layout: str) -> None:  # noqa: F811
    folder = LAYOUTS[layout](tmp_path / "hub")
    code, output, error = command("import", folder, "--to", "run", *words_of(layout, tmp_path))
    assert code == 0 and f"{layout}, " in output and "proof: " in output, error
    if layout_named(layout).in_transformers:
        assert "; token ids equal (" in output and "token ids differ" not in output and "not compared" not in output
    assert [words[0] for words in hints(output)] == ["evaluate" if layout in COMPARE else "generate", "fit"]
    code, output, error = command("export", "run", "--to", "same", "--format", layout.partition("/")[2])
    assert code == 0, error
    assert ("logits differ by" in output and "pixels by" in output) is layout_named(layout).in_transformers
    published, exported = tensors_of(folder), tensors_of(Path("same"))
    assert published.keys() == exported.keys()
    assert all(tensor.dtype == exported[name].dtype for name, tensor in published.items())
    assert all(torch.equal(tensor, exported[name]) for name, tensor in published.items())


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_asked_trained_exported_and_imported_again(command: Callable, tmp_path: Path, layout: str) -> None:  # noqa: F811
    folder, data, words = LAYOUTS[layout](tmp_path / "hub"), conversation(tmp_path), words_of(layout, tmp_path)
    code, output, error = command("import", folder, "--to", "run", *words)
    assert code == 0, error
    first, second = hints(output)
    assert second[:5] == ["fit", "--config", "run/recipe.yaml", "--init_from", "run"]
    data.rename("my_data.json")
    Path("red.png").rename("page.png")
    Path("my_data.json").write_text(Path("my_data.json").read_text().replace("red.png", "page.png"))
    limits = ("--max_new_tokens", "2") if first[0] == "generate" else ()
    code, _, error = command(*first, *limits, "--accelerator", "cpu")
    assert code == 0, error
    options = ("--data.global_batch", "4", "--data.micro_batch", "4", "--track", "false")
    options += ("--trainer.accelerator", "cpu", "--run_dir", "tuned")
    code, _, error = command(*second, *options)
    assert code == 0, error
    code, _, error = command("export", "tuned", "--to", "out", "--format", layout.partition("/")[2])
    assert code == 0, error
    code, _, error = command("import", "out", "--to", "again", *words)
    assert code == 0, error
    tuned, again = (open_model(run, accelerator="cpu").state_dict() for run in ("tuned", "again"))
    tables = ("embed_tokens.weight", "wte.weight", "tok_embeddings.weight", "query_tokens", "word_embeddings.weight")
    published = tensors_of(folder)
    (dtype,) = {tensor.dtype for name, tensor in published.items() if name.endswith(tables) or len(published) == 2}
    (start,) = (known.start for known in all_layouts() if known.name == layout)
    stored = [name for name in tuned if start(name) is None]  # files of this layout hold no others
    for name in stored:  # a part from elsewhere is not in the files, so it is not rounded to their dtype
        rounded = tuned[name].to(dtype).to(again[name].dtype)
        assert torch.equal(again[name], rounded) or torch.equal(again[name], tuned[name]), name


CONVERTED = {  # layout of an import -> layout of transformers to which it is exported, and what that leaves out
    "blip/authors": ("blip/hf", "contrast, encoder, matching, momentum, queue"),
    "blip_retrieval/authors": ("blip_retrieval/hf", "contrast, decoder, momentum, queue"),
    "blip_pretrain/authors": ("blip/hf", "contrast, encoder, matching, momentum, queue"),
    "blip2/authors": ("blip2/hf", ""),
    "blip2_retrieval/authors": ("blip2_retrieval/hf", "contrast, projection, text_head"),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", CONVERTED)
def test_a_layout_of_the_authors_is_exported_for_transformers(command: Callable, tmp_path: Path, layout: str) -> None:  # noqa: F811
    target, left_out = CONVERTED[layout]
    code, _, error = command("import", LAYOUTS[layout](tmp_path / "hub"), "--to", "run", *words_of(layout, tmp_path))
    assert code == 0, error
    code, output, error = command("export", "run", "--to", "out", "--format", "hf")
    assert code == 0 and f"{target}: " in output, error
    lines = [line.rpartition(": ")[2] for line in output.splitlines() if line.startswith("left out, ")]
    assert lines == ([left_out] if left_out else [])
    assert "proof: " in output and "logits differ by" in output
    if target == "blip2_retrieval/hf":  # its language model is in no file
        code, output, error = command("import", "out", "--to", "again", "--with", f"language={tmp_path / 'language'}")
        assert code == 0 and "against transformers' Blip2ForImageTextRetrieval" in output, error


def test_fuyu_is_described_for_transformers_as_it_was_published(tmp_path: Path) -> None:
    folder = hub.fuyu(tmp_path / "hub", old=False)
    published = Published.open(str(folder), {})
    described = conversion_of("lit_mm.families.Fuyu", "hf", ()).files(published.module)
    assert {name: of.shape for name, of in described.tensors.items()} == {
        name: of.shape for name, of in published.plan.sources.items()
    }
    config = published.layout.model(Described(folder, described.config, described.tensors))
    assert config["init_args"]["language"] == published.recipe["model"]["init_args"]["language"]
    assert described.config["image_token_id"] == hub.IMAGE_ID


def table() -> str:
    """The table of docs/checkpoints.md. These tests do what it says of every layout."""
    rows = [
        (
            "layout",
            "example",
            "parts from elsewhere",
            "import, proved by",
            "generate",
            "fine-tune",
            "export, proved by",
        ),
        ("---",) * 7,
    ]
    for layout in all_layouts():
        proof = "logits and pixels of transformers" if layout.in_transformers else "every tensor placed once"
        parts = ", ".join(layout.separate) or "-"
        again = f"same bytes, read again{BESIDE if layout.in_transformers else ''}"
        rows.append((layout.name, layout.example, parts, proof, "yes", "yes", again))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_every_layout_is_in_these_tests_and_in_the_table_of_the_docs() -> None:
    assert {layout.name for layout in all_layouts()} == LAYOUTS.keys()
    assert table() in DOCS.read_text(), f"docs/checkpoints.md needs this table:\n{table()}"
