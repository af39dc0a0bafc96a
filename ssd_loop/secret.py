"""Keys stay out of what is printed and written: those in the environment, and those inside addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "***"
NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
SHORTEST = 8  # characters; a shorter value would blank out ordinary words
ACCESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # https://user:key@host
QUERY = re.compile(r"(?<=[?&])(\w*(?:key|token|secret|password)\w*)=[^&\s'\";,)]+", re.IGNORECASE)


def has_secret(address: str) -> bool:
    """Whether an address carries a user, a password or a key, as URLs may."""
    return bool(ACCESS.search(address) or QUERY.search(address))


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """The text with stars where an address carries a key or a variable that holds one is repeated.

    Args:
        text: What is to be shown.
        environment: Variables whose names end in KEY, TOKEN, SECRET or PASSWORD hold keys.
    """
    for name, value in environment.items():
        if NAMES.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return QUERY.sub(rf"\1={HIDDEN}", ACCESS.sub(HIDDEN, text))
