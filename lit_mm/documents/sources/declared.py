"""Sources by declaration: `{format: llava, path: chat.json, images: pictures}`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from lit_mm.documents.sources.captions import CaptionShards
from lit_mm.documents.sources.conversations import LlavaConversations, QwenVLConversations, XComposerConversations
from lit_mm.documents.sources.folder import PictureFolder
from lit_mm.documents.sources.guess import guess_format
from lit_mm.documents.sources.messages import MessageConversations, QueryResponseConversations
from lit_mm.documents.sources.pages import Mmc4Pages, ObelicsPages
from lit_mm.documents.sources.source import Source
from lit_mm.errors import UserError, nearest

FORMATS: Mapping[str, type[Source]] = {
    "llava": LlavaConversations,
    "qwen_vl": QwenVLConversations,
    "xcomposer": XComposerConversations,
    "messages": MessageConversations,
    "query_response": QueryResponseConversations,
    "captions": CaptionShards,
    "obelics": ObelicsPages,
    "mmc4": Mmc4Pages,
    "folder": PictureFolder,
}


# Other name of a format -> format
SYNONYMS: Mapping[str, str] = {
    "sharegpt": "llava",
    "qwen": "qwen_vl",
    "internlm_xcomposer": "xcomposer",
    "openai": "messages",
    "chatml": "messages",
    "trl": "messages",
    "qwen2_vl": "messages",
    "swift": "query_response",
    "webdataset": "captions",
    "wds": "captions",
    "img2dataset": "captions",
    "imagefolder": "folder",
    "alpaca": "query_response",
    "vqa": "query_response",
    "cauldron": "messages",
    "finevision": "messages",
    "onevision": "llava",
    "llava_onevision": "llava",
    "coco": "folder",
    "coco_captions": "folder",
}


def open_source(declaration: Mapping[str, Any]) -> Source:
    """Open the source of a declaration, which has the key `format` and the arguments of that format's class.

    Raises:
        UserError: the format does not exist, a key is unknown, missing or of another type, or see `Source`.
    """
    if declaration.get("format") is None:
        raise undeclared(str(declaration.get("path", "")), FORMATS)
    kind = declaration["format"]
    if kind not in FORMATS:
        raise unknown_format(str(kind), FORMATS)
    reader = FORMATS[kind]
    arguments = {key: value for key, value in declaration.items() if key != "format"}
    parameters = inspect.signature(reader).parameters
    for key, value in arguments.items():
        if key not in parameters:
            raise UserError(
                f"a source of format {kind!r} has no {key!r}{nearest(key, parameters) or '.'} "
                f"It has {', '.join(parameters)}"
            )
        spelt = type_of(str(parameters[key].annotation))
        if not isinstance(value, spelt) or (isinstance(value, bool) and bool not in spelt):
            raise UserError(
                f"`{key}` of a source of format {kind!r} has the type {parameters[key].annotation}, got {value!r}"
            )
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and key not in arguments
    ]
    if missing:
        raise UserError(f"a source of format {kind!r} needs {missing}; got {dict(declaration)}")
    return reader(**arguments)


def undeclared(path: str, formats: Iterable[str]) -> UserError:
    """Return the error of a declaration without a format. It names the formats, and the one that the file looks like.

    Args:
        path: path of the source; "" for none.
        formats: names of the formats.
    """
    guess = guess_format(path) if path else None
    place = f" {path!r}" if path else ""
    hint = f". The file looks like {guess}" if guess is not None else ""
    return UserError(f"the source{place} has no `format`; expected one of {', '.join(formats)}{hint}")


def unknown_format(name: str, formats: Iterable[str]) -> UserError:
    """Return the error of a format that does not exist. It names the one that is meant, if the name is near to it.

    Args:
        formats: names of the formats that may be declared.
    """
    return UserError(f"there is no data format {name!r}{_near_format(name) or '.'} It is one of {', '.join(formats)}")


def type_of(annotation: str) -> tuple[type, ...]:
    """Return the types that an annotation of a source's argument allows: "str | None" -> (str, NoneType)."""
    types = {"str": str, "int": int, "bool": bool, "None": type(None)}
    return tuple({types.get(name.strip(), str) for name in annotation.split("|")})  # a Literal is text


def _near_format(name: str) -> str:
    synonym = SYNONYMS.get(name.lower().replace("-", "_"))
    return nearest(name, FORMATS) if synonym is None else f". Did you mean {synonym!r}?"
