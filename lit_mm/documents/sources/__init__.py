"""Sources: data sets on disk or at a URL, one document by number; the format is declared, never guessed.

In a recipe a source is a class (`class_path: lit_mm.documents.sources.LlavaConversations`) or a declaration
(`{format: llava, path: chat.json, images: pictures}`), see `open_source`.
"""

from lit_mm.documents.sources.captions import CaptionShards
from lit_mm.documents.sources.conversations import LlavaConversations, QwenVLConversations, XComposerConversations
from lit_mm.documents.sources.declared import FORMATS, open_source, undeclared
from lit_mm.documents.sources.errors import KINDS, SampleError
from lit_mm.documents.sources.folder import PictureFolder
from lit_mm.documents.sources.messages import MessageConversations, QueryResponseConversations
from lit_mm.documents.sources.pages import Mmc4Pages, ObelicsPages
from lit_mm.documents.sources.picture import SourcePicture
from lit_mm.documents.sources.source import Source

__all__ = [
    "FORMATS",
    "KINDS",
    "CaptionShards",
    "LlavaConversations",
    "MessageConversations",
    "Mmc4Pages",
    "ObelicsPages",
    "PictureFolder",
    "QueryResponseConversations",
    "QwenVLConversations",
    "SampleError",
    "Source",
    "SourcePicture",
    "XComposerConversations",
    "open_source",
    "undeclared",
]
