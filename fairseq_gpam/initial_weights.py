"""Logs a digest of the weights that a training starts from, so that a comparison knows which runs share them."""

import hashlib
import logging
import re
from typing import Any

from torch import nn

OWN = re.compile(r"\.(self_attn|encoder_attn)\.(?!(?:k_proj|v_proj|out_proj)\.)")
"""In the names of parameters that depend on the mechanism; a second set of queries makes q_proj wider."""

logger = logging.getLogger(__name__)


def digest(model: nn.Module) -> str:
    """Returns 16 hexadecimal digits that depend on the values of all parameters that stock's model has as well."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not OWN.search(name):
            found.update(f"{name} {tuple(parameter.shape)}\n".encode())
            found.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def log_when_built() -> None:
    """Makes the engine log the digest of every model that it builds, stock's too, but for those of checkpoints."""
    from fairseq import models

    original = models.build_model
    if original.__module__ == __name__:
        return

    def build_model(cfg: Any, task: Any, from_checkpoint: bool = False) -> nn.Module:
        model: nn.Module = original(cfg, task, from_checkpoint)
        if not from_checkpoint:
            logger.info("initial weights: %s", digest(model))
        return model

    models.build_model = build_model
