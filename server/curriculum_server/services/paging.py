"""Tokens of pages: where the next one begins, as text that callers have no need to read."""

from __future__ import annotations

import base64
import re

from curriculum_api.errors import InvalidRequestError

INDEX = re.compile(r"[0-9]{1,10}")


def encode_token(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def decode_token(token: str, pattern: re.Pattern[str]) -> str:
    """Back from `encode_token`; empty for the first page.

    Raises:
        InvalidRequestError: it is none of ours.
    """
    try:
        text = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except ValueError:
        text = ""
    if token and not pattern.fullmatch(text):
        raise InvalidRequestError("page_token: must come from the page before")
    return text
