"""Networks for tests."""

from __future__ import annotations

import torch
from torch import nn


def shaken(module: nn.Module) -> nn.Module:
    """Every parameter and statistic somewhere else than at its start, so that none can be left out unseen."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point():
                value.copy_(value + 0.1 * torch.rand_like(value))
    return module.eval()
