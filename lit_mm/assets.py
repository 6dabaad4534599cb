"""Paths of files that are part of the package."""

from pathlib import Path

NANO_WEIGHTS = Path(__file__).parent / "nano" / "weights"
NANO_TOKENIZER = Path(__file__).parent / "nano" / "tokenizer.json"
