"""Published tokenizers give the ids of sentencepiece and tiktoken, and code beside their files is not run."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tokenizers
from transformers import T5Tokenizer

from lit_mm.errors import UserError
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.tokenizer import Tokenizer
from tests.hub import bert
from tests.prompts.published import qwen_file, sentencepiece_file, tekken_file

FRAGMENTS = (
    *(
        "hello",
        "World",
        "a",
        "I'll",
        "DON'T",
        "naïve",
        "Ünïcödé",
        "e\u0301",
        "ﬁ",
        "½",
        "Ⅷ",
        "2019",
        "12.5%",
        "$5",
        "-7",
    ),
    *(
        "你好",
        "。",
        "日本語",
        "한국어",
        "مرحبا",
        "नमस्ते",
        "😀",
        "👩\u200d👩\u200d👧",
        "\u3000",
        "\u200b",
        "\u00a0",
        "\ufeff",
        "\x00",
    ),
    *(
        "x = [1,2,3];",
        "def f(x):\n    return x",
        "\tif (a >= b) {",
        "// TODO",
        "<b>",
        "\\n",
        "```",
        "SELECT *",
        "__init__",
    ),
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", ".", ",", ":", "?", "▁", "<0x0A>", "(", ")"),
)
SPECIAL = (
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "<box>",
    "[INST]",
    "[/INST]",
    "<|extra_7|>",
)


def texts(number: int = 1000) -> list[str]:
    draw = random.Random(0)
    whole = (*FRAGMENTS, *SPECIAL)
    return ["".join(draw.choices(whole, k=draw.randrange(0, 24))) for _ in range(number)]


def differences(tokenizer: Tokenizer, reference: Callable[[str], list[int]]) -> list[tuple[str, list[int], list[int]]]:
    pairs = ((text, tokenizer.encode(text), reference(text)) for text in texts())
    return [pair for pair in pairs if pair[1] != pair[2]]


def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    file = sentencepiece_file()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))

    def reference(text: str) -> list[int]:
        ids: list[int] = []
        for part in re.split("(</?s>)", text):
            ids += {"<s>": [1], "</s>": [2]}.get(part) or pieces.encode(part)
        return ids

    shutil.copy(file, tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(str(tmp_path))
    assert not differences(tokenizer, reference)[:3]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.size) == (1, 2, 32000)
    assert tokenizer.decode(tokenizer.encode("x\n    return  2019</s>")) == "x\n    return  2019"


def test_qwen_gives_the_ids_of_tiktoken_on_texts_in_nfc() -> None:
    file = qwen_file()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    ranks = {base64.b64decode(token): int(n) for token, n in map(str.split, file.read_text().splitlines())}
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205))]
    specials += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
    table = {token: 151643 + n for n, token in enumerate(specials)}
    encoding = tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens=table)
    tokenizer = load_tokenizer(str(file))
    assert not differences(
        tokenizer, lambda text: encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")
    )[:3]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.id_of("<img>"), tokenizer.size) == (
        None,
        151643,
        151857,
        151860,
    )


def test_tekken_gives_the_ids_of_tiktoken_behind_its_special_tokens() -> None:
    file = tekken_file()
    table = json.loads(file.read_text())
    ranks = {base64.b64decode(row["token_bytes"]): row["rank"] for row in table["vocab"][: 131072 - 1000]}
    encoding = tiktoken.Encoding("t", pat_str=table["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    specials = {"<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4}

    def reference(text: str) -> list[int]:
        ids: list[int] = []
        for part in re.split(r"(</?s>|\[/?INST\])", text):
            ids += [specials[part]] if part in specials else [1000 + n for n in encoding.encode_ordinary(part)]
        return ids

    tokenizer = load_tokenizer(str(file))
    assert not differences(tokenizer, reference)[:3]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.size) == (1, 2, 11, 131072)


@pytest.mark.parametrize("file", [sentencepiece_file, tekken_file, qwen_file])
def test_workers_get_the_same_real_tokenizer(file: Callable[[], Path]) -> None:
    source = file()
    tokenizer = Tokenizer.from_pretrained(source)
    tokenizer.encode("used before it is sent")
    again = pickle.loads(pickle.dumps(tokenizer))
    text = "USER: 2019 你好</s>\n\n x"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def folder_with_code(path: Path) -> None:
    """A tokenizer folder with code that leaves a trace if it is run."""
    (path / "evil_tok.py").write_text(f"open({str(path / 'TRACE')!r}, 'w').write('x')\nclass E: pass\nclass C: pass\n")
    (path / "config.json").write_text('{"auto_map": {"AutoConfig": "evil_tok.C"}, "model_type": "evil"}')
    table = {"auto_map": {"AutoTokenizer": ["evil_tok.E", None]}, "tokenizer_class": "E"}
    (path / "tokenizer_config.json").write_text(json.dumps(table))


def test_code_beside_a_tokenizer_is_not_run_and_the_missing_file_is_named(tmp_path: Path) -> None:
    folder_with_code(tmp_path)
    with pytest.raises(UserError, match=r"has none of tokenizer\.model, .* found \['config\.json', 'evil_tok\.py'"):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "TRACE").exists()


def test_a_folder_with_code_is_read_by_its_data_files(tmp_path: Path, backend_json: str) -> None:
    folder_with_code(tmp_path)
    (tmp_path / "tokenizer.json").write_text(backend_json)
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == ("<s>", "</s>", "<pad>")
    assert not (tmp_path / "TRACE").exists()


def test_special_tokens_come_from_the_files_beside_a_vocabulary(tmp_path: Path, backend_json: str) -> None:
    (tmp_path / "tokenizer.json").write_text(backend_json)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</turn>"}, "bos_token": null}')
    for reference in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = load_tokenizer(str(reference))
        assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (None, "</turn>", "</turn>")


def test_added_tokens_and_the_space_rule_of_a_sentencepiece_model_come_from_its_settings(tmp_path: Path) -> None:
    shutil.copy(sentencepiece_file(), tmp_path / "tokenizer.model")
    table = {"32000": {"content": "<img>", "special": True}, "32001": {"content": "<code>", "special": False}}
    settings = {"added_tokens_decoder": table, "eos_token": "</s>", "bos_token": "<s>", "pad_token": "<unk>"}
    ids = {}
    for legacy in (True, False):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "legacy": legacy}))
        tokenizer = load_tokenizer(str(tmp_path))
        assert (tokenizer.id_of("<img>"), tokenizer.size, tokenizer.pad_id) == (32000, 32002, 0)
        assert tokenizer.decode(tokenizer.encode("<img><code> x")).replace(" ", "") == "<code>x"
        assert "<code>" not in tokenizer.special_tokens
        ids[legacy] = tokenizer.encode("a</s>USER")
    pieces = tokenizer.vocabulary.pieces
    assert ids[True] == [*pieces.encode("a"), 2, *pieces.encode("USER")]
    assert [pieces.id_to_piece(number) for number in ids[False]] == ["▁a", "</s>", "USER"]


T5_FILES = [  # tokenizer_config.json, config.json, number of sentinels
    ({"eos_token": "</s>", "pad_token": "<pad>", "tokenizer_class": "T5Tokenizer", "extra_ids": 100}, {}, 100),
    ({"eos_token": "</s>", "pad_token": "<pad>"}, {"model_type": "t5"}, 100),
    ({"eos_token": "</s>", "extra_ids": 0}, {"model_type": "mt5"}, 0),
]


@pytest.mark.parametrize(("settings", "config", "sentinels"), T5_FILES)
def test_a_t5_without_a_tokenizer_json_gives_the_ids_of_transformers(
    settings: dict[str, Any], config: dict[str, Any], sentinels: int, tmp_path: Path
) -> None:
    lines = ["the red bird sings", "a blue bird sits on the old tree", "what colour is it? two red birds and 3 trees"]
    model = io.BytesIO()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 9), model_writer=model, vocab_size=34, minloglevel=2, num_threads=1, **ids
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.eos, tokenizer.size) == ("</s>", tokenizer.vocabulary.pieces.vocab_size() + sentinels)
    if sentinels:
        reference = T5Tokenizer.from_pretrained(tmp_path, extra_ids=sentinels)
        for text in ("two red birds", "what <extra_id_0> is it?", "<extra_id_99> tree", "3 trees"):
            assert tokenizer.encode(text) == reference(text, add_special_tokens=False)["input_ids"], text


def test_a_bert_without_a_tokenizer_json_gives_the_same_ids(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    bert(tmp_path / "whole")
    expected = load_tokenizer(str(tmp_path / "whole"))
    pieces = json.loads((tmp_path / "whole" / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(pieces, key=pieces.__getitem__)) + "\n")
    tokenizer = load_tokenizer(str(tmp_path))
    for text in ("A red bird, 3 pictures!", "[CLS] a picture [SEP]", "naïve ÜBER"):
        assert tokenizer.encode(text) == expected.encode(text), text
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == ("[CLS]", "[SEP]", "[PAD]")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(UserError, match=r"is a BertJapaneseTokenizer, whose code is not run; only BERT's vocab\.txt"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.txt").write_text("a\nb\n[UNK]\n</s>\n")
    with pytest.raises(UserError, match=r"vocab\.txt' has no \[CLS\] and no \[SEP\]; only BERT's vocab\.txt is read"):
        load_tokenizer(str(tmp_path))


def test_qwen_without_pictures_has_208_special_tokens(tmp_path: Path) -> None:
    shutil.copy(qwen_file(), tmp_path / "qwen.tiktoken")
    (tmp_path / "config.json").write_text('{"model_type": "qwen"}')
    assert load_tokenizer(str(tmp_path)).size == 151643 + 208
    (tmp_path / "config.json").write_text('{"model_type": "qwen", "visual": {}}')
    assert load_tokenizer(str(tmp_path)).size == 151643 + 217


def test_a_home_folder_and_the_files_of_gpt2s_form_are_read(
    tmp_path: Path, backend_json: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    backend = tokenizers.Tokenizer.from_str(backend_json)
    backend.model.save(str(tmp_path))
    tokenizer = load_tokenizer("~")
    text = "What is in  the picture?\nA red dog.</s>"
    assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", "no model", "is no sentencepiece model"),
        ("tokenizer.json", "{}", "cannot be read as a tokenizer.json"),
        ("qwen.tiktoken", "", "is empty"),
        ("qwen.tiktoken", "IQ== x", "is no list of base64 tokens and ids"),
        ("tekken.json", '{"config": {}}', "neither a tokenizer.json nor a tekken json"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(str(tmp_path / name))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_no_published_name() -> None:
    with pytest.raises(UserError, match=r"'missing/tokenizer\.model' does not exist; give a folder"):
        load_tokenizer("missing/tokenizer.model")
