"""fairseq's translation transformer with any attention mechanism."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.models import register_model
from fairseq.models.transformer import TransformerModel

from fairseq_gpam import options
from fairseq_gpam.models.twins import register_twins
from fairseq_gpam.modules.install import check_quantisation, install_attention


@register_model("transformer_gpam")
class TransformerGPAMModel(TransformerModel):
    """The `transformer` model whose attentions are chosen by the --gpam flags."""

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        super().add_args(parser)
        options.add_arguments(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> TransformerGPAMModel:
        settings = options.resolve(args)
        model = super().build_model(args, task)
        install_attention(model, settings)
        check_quantisation(model, args)
        return model


register_twins("transformer", "transformer_gpam")
