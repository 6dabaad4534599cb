"""Tokenisation of captions: Stanford's PTB tokenizer through Java, or nltk's Treebank rules in its place."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lit_mm.errors import UserError

# Source: pycocoevalcap tokenizer/ptbtokenizer.py
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
BRACKETS = {"(": "-LRB-", ")": "-RRB-", "{": "-LCB-", "}": "-RCB-"}
INNER_STOP = re.compile(r"(?<=[a-z]{2})\.(?=\s)")  # nltk splits off only the full stop at the end


Tokeniser = Callable[[Sequence[str]], list[str]]


def tokenise(captions: Sequence[str]) -> tuple[list[str], str]:
    """Tokenise captions into lower-case tokens without punctuation.

    Returns the tokens of each caption joined by spaces, and the name of the tokenizer.

    Raises:
        UserError: no tokenizer is installed, or Java fails.
    """
    tokenizer, name = find_tokenizer()
    return tokenizer(captions), name


def find_tokenizer() -> tuple[Tokeniser, str]:
    """Return the tokenizer of this machine and its name.

    The Java tokenizer of pycocoevalcap is used if both Java and pycocoevalcap are installed, else nltk, which needs no
    download.

    Raises:
        UserError: neither is installed.
    """
    jar = _jar()
    if jar and shutil.which("java"):
        return partial(tokenise_java, jar=jar), "PTBTokenizer (Stanford CoreNLP 3.4.1, Java)"
    if importlib.util.find_spec("nltk"):
        return tokenise_nltk, "nltk TreebankWordTokenizer (an approximation of PTBTokenizer)"
    raise UserError(
        "captions cannot be tokenised: neither pycocoevalcap with Java nor nltk is installed. "
        "Install the extra: pip install 'lit_mm[captions]'"
    )


def tokenise_java(captions: Sequence[str], jar: Path) -> list[str]:
    """Tokenise with Stanford's PTBTokenizer, called as in pycocoevalcap. Line breaks of a caption become spaces."""
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = "\n".join(" ".join(caption.split()) for caption in captions)
    process = subprocess.run(command, input=lines, capture_output=True, encoding="utf-8", check=False)
    tokens = process.stdout.split("\n")[: len(captions)]
    if process.returncode or len(tokens) != len(captions):
        raise UserError(
            f"Java's tokenizer returned {len(tokens)} lines for {len(captions)} captions: {process.stderr[-500:]}"
        )
    return [_join(line.split()) for line in tokens]


def tokenise_nltk(captions: Sequence[str]) -> list[str]:
    """Tokenise with nltk's TreebankWordTokenizer; full stops inside a caption are split off too."""
    tokenizer = importlib.import_module("nltk.tokenize.treebank").TreebankWordTokenizer()
    texts = (INNER_STOP.sub(" . ", caption.lower()) for caption in captions)
    return [_join([BRACKETS.get(token, token) for token in tokenizer.tokenize(text)]) for text in texts]


def _join(tokens: list[str]) -> str:
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def _jar() -> Path | None:
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = spec.submodule_search_locations if spec else None
    return next(
        (jar for folder in folders or () for jar in Path(folder).glob("tokenizer/stanford-corenlp-*.jar")), None
    )
