"""SIGTERM and Ctrl-C: raised in the main thread, and remembered, for not every library lets them through.

Python raises an interrupt within whatever runs just then. PyTorch turns one that falls into the making of a
tensor into a ValueError, and in a finaliser Python itself prints it and goes on.
"""

from __future__ import annotations

import signal
from typing import NoReturn

_received = False


def listen() -> None:
    """Raise KeyboardInterrupt for either signal from here on."""
    global _received
    _received = False
    signal.signal(signal.SIGTERM, _raise)
    signal.signal(signal.SIGINT, _raise)  # also where a shell started us in the background, deaf to it


def heed() -> None:
    """End here what an interrupt should have ended before: at every item, and before anything is published.

    Raises:
        KeyboardInterrupt: A signal came since `listen`.
    """
    if _received:
        raise KeyboardInterrupt


def _raise(signum: int, frame: object) -> NoReturn:
    global _received
    _received = True
    raise KeyboardInterrupt
