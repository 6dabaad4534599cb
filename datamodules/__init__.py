"""The data modules: one per kind of corpus, and those of the nano world."""

from lit_mm.datamodules.conversations import Conversations
from lit_mm.datamodules.corpora import Corpora
from lit_mm.datamodules.mixture import Mixture
from lit_mm.datamodules.nano import NanoDocuments
from lit_mm.datamodules.nano_interleaved import NanoInterleaved
from lit_mm.datamodules.nano_prints import NanoPrints
from lit_mm.datamodules.nano_text_pairs import NanoTextPairs

__all__ = [
    "Conversations",
    "Corpora",
    "Mixture",
    "NanoDocuments",
    "NanoInterleaved",
    "NanoPrints",
    "NanoTextPairs",
]
