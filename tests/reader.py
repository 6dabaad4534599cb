"""A reader of HTML for the tests of compositions."""

from __future__ import annotations

from html.parser import HTMLParser


class Reader(HTMLParser):
    """A parser that records tags with attributes, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
