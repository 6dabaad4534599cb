"""Exact match of short answers."""


def exact_match(answer: str, truth: str) -> bool:
    """Return True if the texts are equal up to case, white space and a final full stop."""
    return _plain(answer) == _plain(truth)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".").strip()
