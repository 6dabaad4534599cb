"""LightningDataModules: one per corpus, and the nano world's."""

from datamodules.conversations import Conversations
from datamodules.nano import NanoDocuments
from datamodules.nano_prints import NanoPrints

__all__ = ["Conversations", "NanoDocuments", "NanoPrints"]
