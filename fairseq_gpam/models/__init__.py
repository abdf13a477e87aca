"""The models and architectures that this package registers with fairseq; registering twice is harmless."""

from fairseq_gpam.models.transformer_gpam import TransformerGPAMModel
from fairseq_gpam.models.transformer_lm_gpam import TransformerLanguageModelGPAM

__all__ = ["TransformerGPAMModel", "TransformerLanguageModelGPAM"]
