"""In which dtype products are computed."""

from __future__ import annotations

import torch


def products_dtype(like: torch.Tensor) -> torch.dtype:
    """That of autocast where it is on, else that of the tensor."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
