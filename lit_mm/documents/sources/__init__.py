"""Sources, which read data sets on disk or at a URL and return documents by number. A recipe declares the format.

In a recipe a source is a class (`class_path: lit_mm.documents.sources.LlavaConversations`) or a declaration
(`{format: llava, path: chat.json, images: pictures}`), see `open_source`.

| format | an entry |
|---|---|
| llava | `conversations` of `from` and `value` (ShareGPT's too), `<image>` in the text, `image` or `images` |
| qwen_vl | the same, with `<img>path</img>` in the text |
| xcomposer | the same, with `<ImageHere>` in the text |
| messages | `messages` of `role` and `content`, a text or parts: chat clients, TRL, Qwen2-VL's tools, the Cauldron |
| query_response | `query`, `response`, `history`, `images`; `instruction`, `input`, `output`; `question`, `answer` |
| folder | `image` or `file_name` with `question` and `answer`, `caption` or `text`; image folders, COCO's captions |
| captions | key.jpg with key.txt or key.json in a tar: WebDataset |
| obelics, mmc4 | a page of texts and images |

All but captions are read from JSON, lines of JSON, csv, tsv, parquet and arrow files, packed or not (gz, bz2, xz, zst,
zip).
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
