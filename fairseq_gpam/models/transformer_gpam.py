"""fairseq's translation transformer with any attention mechanism."""

from __future__ import annotations

from fairseq.models import register_model
from fairseq.models.transformer import TransformerModel

from fairseq_gpam.models.twins import register_twins
from fairseq_gpam.models.with_mechanisms import WithMechanisms


@register_model("transformer_gpam")
class TransformerGPAMModel(WithMechanisms, TransformerModel):
    """The `transformer` model whose attentions are chosen by the --gpam flags."""


register_twins("transformer", "transformer_gpam")
