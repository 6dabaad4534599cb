"""The files and URLs that rows of a data set may name."""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from lit_mm.documents.printable import brief
from lit_mm.documents.sources.paths import expand_home, is_url
from lit_mm.errors import UserError

SCHEME = re.compile(r"[A-Za-z][\w+.-]*")
# Schemes whose host is a machine; the host of s3 and gs is a bucket
HOSTED = frozenset(("http", "https", "ftp", "ftps", "sftp", "ssh", "smb", "hdfs", "webhdfs", "webdav"))
# Endings of host names that only a local network resolves
PRIVATE = ("localhost", "local", "internal", "intranet", "lan", "home", "home.arpa", "corp")


@dataclass(frozen=True, slots=True)
class Boundary:
    """Rows may name what lies below the folder of their pictures, and the places that the recipe adds.

    Names are compared as texts after `..` is resolved; links are not followed. Host names are not looked up, and a
    server may redirect, so allow a scheme only for data that you trust.

    Attributes:
        folders: absolute paths of further folders.
        prefixes: beginnings of URLs.
        schemes: schemes of URLs, such as https. They do not cover the machine's own network.
    """

    folders: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    schemes: frozenset[str] = frozenset()

    @classmethod
    def of(cls, places: str | None) -> Boundary:
        """Parse the argument `places` of a source.

        Raises:
            UserError: an entry is neither a folder nor the beginning of a URL nor a scheme.
        """
        folders, prefixes, schemes = [], [], []
        for entry in filter(None, map(str.strip, (places or "").split(","))):
            path = expand_home(entry)
            if is_url(path) and _split(path) is not None:
                prefixes.append(path)
            elif ("/" in path and not is_url(path)) or path in (".", ".."):
                folders.append(os.path.abspath(path))
            elif SCHEME.fullmatch(entry) and entry.lower() != "file":
                schemes.append(entry.lower())
            else:
                raise UserError(
                    "`places` of a source lists folders (/data/images, ./images), beginnings of URLs "
                    f"(https://example.org/images) and schemes of URLs (https), with commas between them, got {entry!r}"
                )
        return cls(tuple(folders), tuple(prefixes), frozenset(schemes))

    def refusal(self, path: str, root: str) -> tuple[str, str] | None:
        """Return the reason for which a row may not name a path, and a remedy; None if it may.

        Args:
            path: path or URL of a picture.
            root: folder or URL of the pictures.
        """
        if not is_url(path):
            roots = self.folders if is_url(root) else (os.path.abspath(root), *self.folders)
            if any(_is_below(os.path.abspath(path), folder) for folder in roots):
                return None
            return (
                f"the image {brief(path)} lies outside of the folder of the pictures, {brief(root or '.')}",
                "Set `images` to a folder that holds it. If the data file is trusted, "
                f"`places: {brief(os.path.dirname(os.path.abspath(path)))}` allows that folder as well",
            )
        url = _split(path)
        if url is None:
            return f"the image {brief(path)} has a URL that cannot be read", "Correct it"
        prefixes = (root, *self.prefixes) if is_url(root) else self.prefixes
        if any(_is_below_url(url, _split(prefix)) for prefix in prefixes):
            return None
        if url.scheme not in self.schemes:
            return (
                f"the image {brief(path)} is at a URL, and the source allows none of {url.scheme}",
                f"If the data file is trusted, `places: {url.scheme}` allows them",
            )
        if url.scheme in HOSTED and is_private(url.hostname or ""):
            return (
                f"the image {brief(path)} is on this machine or in its network",
                f"If the data file is trusted, `places: {brief(f'{url.scheme}://{url.netloc}/')}` allows that host",
            )
        return None


def is_private(host: str) -> bool:
    """Return True for an address or a name of the machine itself or of its network.

    Every form that the resolver takes for an address counts: 127.1, 0x7f000001, 2130706433, ::ffff:127.0.0.1.
    """
    name = host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(name))
        except OSError:
            return "." not in name or any(name == ending or name.endswith(f".{ending}") for ending in PRIVATE)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return not address.is_global


def _split(url: str) -> SplitResult | None:
    """Split a URL, with `..` in its path resolved; None if it is malformed, or a chain of file systems (a::b)."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        return None
    if any("::" in text for text in (parts.path, parts.query, parts.fragment, parts.netloc.rpartition("@")[0])):
        return None
    path = posixpath.normpath("/" + unquote(parts.path).lstrip("/"))
    return parts._replace(path=path, netloc=parts.netloc.lower())


def _is_below_url(url: SplitResult, prefix: SplitResult | None) -> bool:
    if prefix is None or (url.scheme, url.netloc) != (prefix.scheme, prefix.netloc):
        return False
    return _is_below(url.path, prefix.path)


def _is_below(path: str, folder: str) -> bool:
    """Return True if a normalised absolute path is the folder or lies below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
