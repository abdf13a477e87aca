"""fairseq's translation transformer with any attention mechanism."""

from fairseq.models import register_model
from fairseq.models.transformer import TransformerModel

from fairseq_gpam.models.architectures import register_architectures
from fairseq_gpam.models.with_mechanisms import WithMechanisms


@register_model("transformer_gpam")
class TransformerGPAMModel(WithMechanisms, TransformerModel):
    """The `transformer` model whose attentions are chosen by the --gpam flags."""


register_architectures("transformer", "transformer_gpam")
