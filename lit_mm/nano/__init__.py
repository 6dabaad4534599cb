"""The nano world: generated documents, a tokenizer and small backbones; every recipe runs offline in minutes."""

from pathlib import Path

NANO_WEIGHTS = Path(__file__).parent / "weights"
NANO_TOKENIZER = Path(__file__).parent / "tokenizer.json"
