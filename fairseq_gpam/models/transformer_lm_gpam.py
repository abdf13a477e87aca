"""fairseq's language-model transformer with any attention mechanism."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from fairseq.models import register_model
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig

from fairseq_gpam import options
from fairseq_gpam.models.twins import register_twins
from fairseq_gpam.modules.install import check_quantisation, install_attention

TransformerLanguageModelGPAMConfig = dataclasses.make_dataclass(
    "TransformerLanguageModelGPAMConfig", options.dataclass_fields(), bases=(TransformerLanguageModelConfig,)
)
TransformerLanguageModelGPAMConfig.__module__ = __name__


@register_model("transformer_lm_gpam", dataclass=TransformerLanguageModelGPAMConfig)
class TransformerLanguageModelGPAM(TransformerLanguageModel):
    """The `transformer_lm` model whose attentions are chosen by the --gpam flags."""

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        # fairseq skips the fields of the dataclass whose flags are there already.
        options.add_arguments(parser)
        super().add_args(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> TransformerLanguageModelGPAM:
        settings = options.resolve(args)
        model = super().build_model(args, task)
        install_attention(model, settings)
        check_quantisation(model, args)
        return model


register_twins("transformer_lm", "transformer_lm_gpam")
