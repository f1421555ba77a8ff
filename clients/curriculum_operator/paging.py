"""Walks the pages of a list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar


class Page(Protocol):
    """What every list response has."""

    @property
    def next_page_token(self) -> str: ...


_Page = TypeVar("_Page", bound=Page)


def pages(fetch: Callable[[str], _Page]) -> Iterator[_Page]:
    """Every page; `fetch` gets the token of each."""
    token = ""
    while True:
        page = fetch(token)
        yield page
        token = page.next_page_token
        if not token:
            return
