"""The data modules: one per kind of corpus, and those of the nano world."""

from datamodules.conversations import Conversations
from datamodules.corpora import Corpora
from datamodules.mixture import Mixture
from datamodules.nano import NanoDocuments
from datamodules.nano_interleaved import NanoInterleaved
from datamodules.nano_prints import NanoPrints
from datamodules.nano_text_pairs import NanoTextPairs

__all__ = [
    "Conversations",
    "Corpora",
    "Mixture",
    "NanoDocuments",
    "NanoInterleaved",
    "NanoPrints",
    "NanoTextPairs",
]
