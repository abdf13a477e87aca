"""Small models and batches, built by fairseq's own parsers and builders."""

import argparse
import copy
import functools
from types import SimpleNamespace

import sizes
import torch
from fairseq import models
from fairseq import options as fairseq_options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_gpam import options
from fairseq_gpam.attention import REGISTRY, Site, build_mechanism, on_registration, register_mechanism
from fairseq_gpam.modules import GPAMMultiheadAttention

TRANSLATION = [*sizes.tiny("encoder", "decoder", layers=2), "--dropout", "0"]
LANGUAGE_MODEL = [*sizes.tiny_language_model(layers=2), "--dropout", "0"]
BASE = {"translation": TRANSLATION, "language_modeling": LANGUAGE_MODEL}
STOCK = {"translation": "transformer", "language_modeling": "transformer_lm"}
OURS = {"translation": "transformer_gpam", "language_modeling": "transformer_lm_gpam"}
TASKS = ("translation", "language_modeling")
NEUTRAL = ["--gpam-lambda-plus", "0", "--gpam-lambda-minus", "0"]


def needed(mechanism):
    """The flags without which a model of two layers cannot have this mechanism."""
    return ["--gpam-cog-everywhere"] if mechanism == "cog" else []


def dictionary(words=20):
    vocabulary = Dictionary()
    for index in range(words):
        vocabulary.add_symbol(f"w{index}")
    return vocabulary


def parse(task, arch, *flags):
    parser = fairseq_options.get_training_parser(task)
    return fairseq_options.parse_args_and_arch(parser, ["nowhere", "--task", task, "--arch", arch, *flags])


@functools.cache
def _converted(task, arch, flags):
    return convert_namespace_to_omegaconf(parse(task, arch, *flags)).model


on_registration(_converted.cache_clear)


def model_config(task, arch, *flags):
    """The model's settings as fairseq-train hands them to the model: a Namespace or a DictConfig.

    The --gpam flags are parsed every time and set on a copy: converting all settings takes a third of a second.
    """
    others, is_ours = [], False
    for word in flags:
        is_ours = word.startswith("--gpam-") or (is_ours and not word.startswith("--"))
        if not is_ours:
            others.append(word)
    config = copy.deepcopy(_converted(task, arch, tuple(others)))
    for name, value in vars(parse(task, arch, *flags)).items():
        if name.startswith("gpam_"):
            setattr(config, name, value)
    return config


def build_from(config, words=20, made=None):
    """The model that fairseq builds for a task; `made` is the task, whose dictionaries are made here."""
    task = SimpleNamespace() if made is None else made
    task.source_dictionary = task.target_dictionary = dictionary(words)
    return models.build_model(config, task)


def build(task, arch, *flags, words=20, made=None):
    if task == "translation":  # fairseq hands its legacy models the parsed namespace
        return build_from(parse(task, arch, *BASE[task], *flags), words, made)
    return build_from(model_config(task, arch, *BASE[task], *flags), words, made)


def unlist(*names):
    """Takes mechanisms of a test out of the registry again, and their options out of the language model's dataclass."""
    for name in names:
        del REGISTRY[name]
    register_mechanism(REGISTRY["softmax"])


def scramble(model, scale=0.3):
    """Gives every parameter but the λ's random values of some size, so that no term of a formula is dormant."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("theta"):
                continue
            noise = torch.randn_like(parameter) * scale
            if "layer_norm.weight" in name:
                noise = noise + 1
            parameter.copy_(noise)
    return model


def model_of(task, *flags, scale=0.3):
    """Our model with random parameters."""
    return scramble(build(task, OURS[task], *flags), scale)


def pair(task, *flags, ours=NEUTRAL):
    """A stock model and ours with the same weights."""
    stock = scramble(build(task, STOCK[task], *flags))
    model = build(task, OURS[task], *flags, *ours)
    model.load_state_dict(stock.state_dict(), strict=True)
    return stock, model


def settings(**chosen):
    """The settings as the models get them; `chosen` are the names of --gpam flags without the prefix."""
    return options.resolve(argparse.Namespace(**{f"gpam_{name}": value for name, value in chosen.items()}))


def mechanism_of(spec, site="encoder", layer=0, layers=1, heads=2, width=3, shared=None, **chosen):
    """A mechanism without a model; `chosen` are the names of --gpam flags without the prefix."""
    place = Site(site, layer, layers, heads * width, heads, width, {} if shared is None else shared)
    return build_mechanism(spec, place, settings(**chosen))


def attention(site="encoder", embed_dim=8, heads=2, dropout=0.0, kwargs=None, layer=0, **chosen):
    """One attention layer with daGPAM, or with what `chosen` says: the names of --gpam flags without the prefix."""
    resolved = settings(**chosen)
    mechanism = build_mechanism(
        resolved[f"{site}_mechanism"], Site(site, layer, 2, embed_dim, heads, embed_dim // heads), resolved
    )
    role = {"encoder_decoder_attention": True} if site == "cross" else {"self_attention": True}
    module = GPAMMultiheadAttention(embed_dim, heads, mechanism, dropout=dropout, **role, **(kwargs or {}))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith("theta"):
                parameter.copy_(torch.randn_like(parameter) * 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def sentences(lengths, words=20, left=False):
    """Random sentences of the given lengths, eos (2) last, in one batch padded with 1."""
    width = max(lengths)
    batch = torch.full((len(lengths), width), 1)
    for row, length in enumerate(lengths):
        tokens = torch.cat([torch.randint(4, 4 + words, (length - 1,)), torch.tensor([2])])
        where = slice(width - length, None) if left else slice(0, length)
        batch[row, where] = tokens
    return batch


def shifted(target):
    """The decoder's input for right-padded targets: eos first, the last token dropped."""
    previous = target.roll(1, 1)
    previous[:, 0] = 2
    return previous.masked_fill(target == 1, 1)


def translation_input(source_lengths=(5, 3, 7), target_lengths=(4, 6, 2), left=True):
    source, lengths = sentences(source_lengths, left=left), torch.tensor(source_lengths)
    return {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": shifted(sentences(target_lengths))}


def model_input(task):
    if task == "translation":
        return translation_input()
    return {"src_tokens": sentences((7, 4, 1))}


def logits(model, inputs):
    return model(**inputs)[0]


def encoded(model, inputs):
    """What the encoder returns, None for a language model, and the decoder's tokens."""
    if "prev_output_tokens" in inputs:
        return model.encoder(inputs["src_tokens"], inputs["src_lengths"]), inputs["prev_output_tokens"]
    return None, inputs["src_tokens"]


def stepwise(model, encoder_out, tokens):
    """The logits of a decoder that is given one token more in each step."""
    state = {}
    steps = [
        model.decoder(tokens[:, :step], encoder_out=encoder_out, incremental_state=state)[0]
        for step in range(1, tokens.size(1) + 1)
    ]
    return torch.cat(steps, dim=1)
