"""LightningDataModules: one per corpus, and the nano world's."""

from datamodules.nano import NanoDocuments

__all__ = ["NanoDocuments"]
