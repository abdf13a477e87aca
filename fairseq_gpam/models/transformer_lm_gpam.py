"""fairseq's language-model transformer with any attention mechanism."""

from __future__ import annotations

import contextlib
from dataclasses import field, make_dataclass
from typing import Any, Optional

from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_DATACLASS_REGISTRY, register_model
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf, open_dict

from fairseq_gpam import options
from fairseq_gpam.attention import on_registration
from fairseq_gpam.models.architectures import register_architectures, with_gpam_defaults
from fairseq_gpam.models.with_mechanisms import WithMechanisms

MODEL = "transformer_lm_gpam"


def make_config() -> type[TransformerLanguageModelConfig]:
    """Returns fairseq's dataclass with a field for every --gpam option registered so far."""
    fields = [
        (each.dest, Optional[each.type], field(default=each.default, metadata={"help": options.help_text(each)}))
        for each in options.all_options()
    ]
    config = make_dataclass("TransformerLanguageModelGPAMConfig", fields, bases=(TransformerLanguageModelConfig,))
    config.__module__ = __name__
    return config


@register_model(MODEL, dataclass=make_config())
class TransformerLanguageModelGPAM(WithMechanisms, TransformerLanguageModel):
    """The `transformer_lm` model whose attentions are chosen by the --gpam flags."""

    @classmethod
    def build_model(cls, args: Any, task: Any) -> TransformerLanguageModelGPAM:
        # What fairseq's dataclass has and `args`, a namespace or a DictConfig, lacks.
        with open_dict(args) if OmegaConf.is_config(args) else contextlib.nullcontext():
            for name, value in vars(TransformerLanguageModelConfig()).items():
                if not name.startswith("_") and name not in args:
                    setattr(args, name, value)
        return super().build_model(args, task)


def publish_options() -> None:
    """Updates the settings that fairseq and hydra read, after another mechanism has been registered."""
    config = make_config()
    setattr(TransformerLanguageModelGPAM, "__dataclass", config)
    node = config()
    node._name = MODEL
    ConfigStore.instance().store(name=MODEL, group="model", node=node, provider="fairseq_gpam")


# If an architecture has the name of a model, fairseq merges its settings into the dataclass before any of our code
# runs, and would drop the flags of a mechanism that --gpam-import has yet to load. So this architecture is registered
# like all others, and `build_model` fills in what is missing.
MODEL_DATACLASS_REGISTRY.pop(MODEL, None)
ARCH_CONFIG_REGISTRY[MODEL] = with_gpam_defaults()
on_registration(publish_options)
register_architectures("transformer_lm", MODEL)
