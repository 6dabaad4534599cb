"""The data modules: one per kind of corpus, and those of the nano world."""

from datamodules.conversations import Conversations
from datamodules.mixture import Mixture
from datamodules.nano import NanoDocuments
from datamodules.nano_interleaved import NanoInterleaved
from datamodules.nano_prints import NanoPrints

__all__ = ["Conversations", "Mixture", "NanoDocuments", "NanoInterleaved", "NanoPrints"]
