"""What both models add to fairseq's: building the mechanisms chosen by flags, and loading stock checkpoints."""

import argparse
import logging
import re
from typing import Any

from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_gpam import options
from fairseq_gpam.attention import REGISTRY, SITES, AttentionMechanism, Settings
from fairseq_gpam.attention.core.base import describe_neutral
from fairseq_gpam.models.architectures import check_wrapping
from fairseq_gpam.modules.install import check_pruning, check_quantisation, install_attention
from fairseq_gpam.modules.listener import find_attentions
from fairseq_gpam.modules.spectrum_penalty import penalise_spectrum

logger = logging.getLogger(__name__)
ADDED = re.compile(r"\.(mechanism|layer_fusion|q_norm|k_norm)\.")


class WithMechanisms(BaseFairseqModel):
    """The first base class of our models, before fairseq's model."""

    settings = Settings()

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        # fairseq skips the fields of a dataclass whose flags already exist.
        options.add_arguments(parser)
        super().add_args(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> Any:
        check_wrapping()
        settings = options.resolve(args)
        if settings.position != "none":
            args.no_token_positional_embeddings = True
        model = super().build_model(args, task)
        install_attention(model, settings)
        options.refuse_unread(settings, (each for each in model.modules() if isinstance(each, AttentionMechanism)))
        check_quantisation(model, args)
        check_pruning(model, args, settings)
        # A model built only to count its parameters has no real fairseq task.
        if settings.spectrum_penalty and hasattr(task, "build_criterion"):
            penalise_spectrum(task, model, settings.spectrum_penalty)
        model.settings = settings
        return model

    def upgrade_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Completes a stock checkpoint so that it can be loaded, and warns if the model's outputs will differ."""
        self.compare_settings(getattr(state_dict, "trained_with", {}))
        known = set(state_dict)
        super().upgrade_state_dict(state_dict)
        added = sorted(name for name in set(state_dict) - known if ADDED.search(name))
        if added and not self.settings.warm_start:
            used = self.used_mechanisms()
            neutral = "; ".join(sorted(f"{mechanism.name}: {describe_neutral(mechanism)}" for mechanism in used))
            logger.warning(
                f"not in the checkpoint, left at their initial values: {len(added)} parameters of the mechanisms, "
                f"such as {added[0]}; a stock model's outputs are preserved only at the neutral setting, which "
                f"--gpam-warm-start chooses ({neutral})"
            )
        if added:
            logger.info(
                "the optimiser's state of a checkpoint without these parameters does not fit: load it with "
                "--restore-file and --reset-optimizer, or with --finetune-from-model"
            )

    def used_mechanisms(self) -> set[type[AttentionMechanism]]:
        return {type(each) for each in self.modules() if isinstance(each, AttentionMechanism) and each.name in REGISTRY}

    def compare_settings(self, trained_with: dict[str, Any]) -> None:
        """Warns, with both values, if a checkpoint was trained with other mechanisms or flags than this model has."""
        for site in SITES if trained_with else ():
            name = self.settings[f"{site}_mechanism"]
            trained = trained_with.get(f"gpam_{site}_mechanism") or trained_with.get("gpam_mechanism")
            if trained and trained != name and any(place.site == site for place in find_attentions(self)):
                logger.warning(
                    f"the checkpoint was trained with --gpam-{site}-mechanism {trained!r}, this model has {name!r}; "
                    "its parameters may not fit, and if they do, its outputs are others"
                )
        used = self.used_mechanisms()
        others = []
        for option in options.all_options():
            if option.dest not in trained_with or option.name in options.WITHOUT_EFFECT_ON_OUTPUTS:
                continue
            trained, here = trained_with[option.dest], self.settings[option.name]
            trained = option.default if trained is None else trained
            is_read = not options.users(option) or any(option in mechanism.options for mechanism in used)
            if trained != here and is_read:
                others.append(f"{option.flag} {trained} (here {here})")
        if others:
            logger.warning(
                f"the checkpoint was trained with {', '.join(others)}; the outputs are others than those of the "
                "trained model, unless such a flag only gives the initial value of something that was trained"
            )
