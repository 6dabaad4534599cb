"""Reading tokenizers from their published files. Code beside the files is never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from lit_mm.errors import UserError, first_line
from lit_mm.prompts.vocabularies import (
    FastVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    read_qwen,
    read_tekken,
)
from lit_mm.weights.config_file import check_pointer

CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json", "chat_template.json")
SENTINELS, WORD_PIECES = "spiece.model", "vocab.txt"  # files of T5's and of BERT's tokenizer before tokenizer.json
# In order of preference
DATA = ("tokenizer.model", "tokenizer.json", "qwen.tiktoken", "tekken.json", SENTINELS, WORD_PIECES)
BYTE_PAIRS = ("vocab.json", "merges.txt")
TEMPLATE = "chat_template.jinja"
FILES = (*DATA, *BYTE_PAIRS, *CONFIGS, TEMPLATE)
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = ("bos", "eos", "unk", "pad")
# If no file names an end-of-sequence token, the first of these tokens in the vocabulary is used
USUAL = {
    "bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]"),
    "eos_token": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"),
    "pad_token": ("<pad>", "[PAD]"),
}


def read_files(path: Path) -> tuple[Vocabulary, dict[str, str | None]]:
    """Read a tokenizer from a folder or from one of its files.

    Args:
        path: folder with `tokenizer.model`, `tokenizer.json`, `qwen.tiktoken`, `tekken.json`, `spiece.model` (T5),
            `vocab.txt` (BERT), or `vocab.json` and `merges.txt`; or one such file under any name. Settings beside the
            file are read, too.
    Returns:
        The vocabulary, and `bos_token`, `eos_token`, `pad_token` and `chat_template`, each None if the files have none.
    Raises:
        UserError: there is no such file, it cannot be read, or there is no end-of-sequence token.
    """
    file = _data_file(path)
    check_pointer(file)
    settings = {name: _json(file.parent / name) for name in CONFIGS}
    vocabulary = _vocabulary(file, settings)
    names = {
        role: next((t for name in CONFIGS[:2] if (t := _text(settings[name].get(role)))), None)
        for role in ("bos_token", "eos_token", "pad_token")
    }
    if names["eos_token"] is None:
        for role, usual in USUAL.items():
            names[role] = names[role] or next((t for t in usual if t in vocabulary.special), None)
    if names["eos_token"] is None:
        raise UserError(
            f"tokenizer {str(file)!r} names no end-of-sequence token: write a tokenizer_config.json beside it with "
            '{"eos_token": "..."}'
        )
    return vocabulary, names | {"chat_template": _chat_template(file.parent, settings)}


def _chat_template(folder: Path, settings: dict[str, dict[str, Any]]) -> str | None:
    """Return the chat template beside a tokenizer; of several, the one with the name "default".

    `chat_template.jinja` comes before the keys `chat_template` of chat_template.json and of tokenizer_config.json.
    """
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    texts = (settings[name].get("chat_template") for name in ("chat_template.json", "tokenizer_config.json"))
    template = next((text for text in texts if text), None)
    if isinstance(template, list):  # entries with `name` and `template`
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _data_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"tokenizer file {str(path)!r} does not exist; give a folder, one of {', '.join(DATA)}, a published name, "
            "or 'nano'"
        )
    has_pairs = all((path / name).is_file() for name in BYTE_PAIRS)
    for name in DATA:
        if (path / name).is_file() and not (has_pairs and name in (SENTINELS, WORD_PIECES)):
            return path / name
    if has_pairs:
        return path / BYTE_PAIRS[0]
    names = sorted(file.name for file in path.iterdir())
    raise UserError(
        f"the tokenizer {str(path)!r} cannot be read: it has none of {', '.join(DATA)}; found "
        f"{names or 'no file'}. Code in the folder is never run. Copy one of these files from the "
        "published repository, or give its path"
    )


def _vocabulary(file: Path, settings: dict[str, dict[str, Any]]) -> Vocabulary:
    added = {str(token): int(number) for token, number in settings["added_tokens.json"].items()}
    ordinary: set[str] = set()
    for number, token in settings["tokenizer_config.json"].get("added_tokens_decoder", {}).items():
        if text := _text(token):
            added[text] = int(number)
            if isinstance(token, dict) and not token.get("special", True):
                ordinary.add(text)
    if file.suffix == ".tiktoken":
        config = settings["config.json"]
        return read_qwen(file, images=not config or "visual" in config)
    if file.name == WORD_PIECES:
        return FastVocabulary(_word_pieces(file, settings["tokenizer_config.json"]))
    if file.name == BYTE_PAIRS[0] and (file.parent / BYTE_PAIRS[1]).is_file():
        tokens = [_text(settings[name].get(f"{role}_token")) for name in CONFIGS[:2] for role in ROLES]
        return FastVocabulary(_byte_pairs(file, file.parent / BYTE_PAIRS[1], [*filter(None, tokens), *added]))
    if file.suffix == ".json":
        head = _json(file)
        if "config" in head and "model" not in head:
            return read_tekken(file)
        try:
            return FastVocabulary(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # tokenizers raises nothing more precise, whatever is wrong with a file
            raise UserError(f"tokenizer file {str(file)!r} cannot be read as a tokenizer.json ({error})") from error
    try:
        return SentencePieceVocabulary(
            file.read_bytes(),
            added,
            settings["tokenizer_config.json"].get("legacy", True),
            ordinary,
            _sentinels(file, settings),
        )
    except RuntimeError as error:
        raise UserError(
            f"tokenizer file {str(file)!r} is no sentencepiece model ({first_line(error)}); give one of "
            f"{', '.join(DATA)}"
        ) from error


def _sentinels(file: Path, settings: dict[str, dict[str, Any]]) -> int:
    """Return the number of sentinel tokens of a T5's tokenizer; 0 for others."""
    table = settings["tokenizer_config.json"]
    is_t5 = "T5" in table.get("tokenizer_class", "") or settings["config.json"].get("model_type") == "t5"
    return int(table.get("extra_ids", 100 if is_t5 else 0)) if file.name == SENTINELS else 0


def _word_pieces(file: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """Build BERT's tokenizer from its word pieces, one a line.

    Raises:
        UserError: the tokenizer is of another class, or lacks one of BERT's special tokens.
    """
    missing = {"[UNK]", "[CLS]", "[SEP]"} - set(file.read_text(encoding="utf-8").splitlines())
    if missing:
        raise UserError(
            f"tokenizer {str(file)!r} has no {' and no '.join(sorted(missing))}; only BERT's {WORD_PIECES} is read"
        )
    kind = settings.get("tokenizer_class", "BertTokenizer")
    if kind not in ("BertTokenizer", "BertTokenizerFast"):
        raise UserError(
            f"tokenizer {str(file)!r} is a {kind}, whose code is not run; only BERT's {WORD_PIECES} is read"
        )
    lower = settings.get("do_lower_case", True)
    strip = settings.get("strip_accents")
    backend = tokenizers.BertWordPieceTokenizer(str(file), lowercase=lower, strip_accents=strip)._tokenizer
    backend.add_special_tokens([token for token in BERT_TOKENS if backend.token_to_id(token) is not None])
    return backend


def _byte_pairs(vocabulary: Path, merges: Path, special: list[str]) -> tokenizers.Tokenizer:
    """Build a tokenizer of byte pairs from the two files of GPT-2's form."""
    model = tokenizers.models.BPE.from_file(str(vocabulary), str(merges))
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    usual = [token for tokens in USUAL.values() for token in tokens]
    backend.add_special_tokens([t for t in (*special, *usual) if t in special or backend.token_to_id(t) is not None])
    return backend


def _json(file: Path) -> dict[str, Any]:
    """Read an object from a JSON file; return {} if there is no file or no object."""
    if not file.is_file():
        return {}
    try:
        table = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{str(file)!r} beside a tokenizer is not JSON ({error}); copy it again") from error
    return table if isinstance(table, dict) else {}


def _text(token: Any) -> str | None:
    """Return the text of a token, which files write as text or as an object with `content`."""
    return token.get("content") if isinstance(token, dict) else token
