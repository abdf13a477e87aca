"""The digest of the weights that a training starts from."""

import logging

import pytest
import sizes
import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.tasks.language_modeling import LanguageModelingTask

from fairseq_gpam.lab.recipes import logs

FLAGS = ["DATA", "--task", "language_modeling", "--tokens-per-sample", "8", *sizes.tiny_language_model(layers=2)]


def logged(caplog, flags, seed=1):
    words = Dictionary()
    words.add_symbol("a")
    arguments = options.parse_args_and_arch(options.get_training_parser(), [*FLAGS, "--arch", *flags.split()])
    torch.manual_seed(seed)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        LanguageModelingTask(arguments, words, words).build_model(arguments)
    (found,) = [record.message for record in caplog.records if record.message.startswith("initial weights")]
    return found


@pytest.mark.parametrize("mechanism", ["softmax", "dagpam", "differential_v2", "gated", "nap"])
def test_a_seed_gives_every_mechanism_the_weights_of_stock(caplog, mechanism):
    stock = logged(caplog, "transformer_lm")
    assert logged(caplog, f"transformer_lm_gpam --gpam-mechanism {mechanism}") == stock
    assert logged(caplog, "transformer_lm", seed=2) != stock
    assert logged(caplog, "transformer_lm --decoder-ffn-embed-dim 24") != stock


def test_the_digest_is_read_from_the_log_of_the_training():
    line = "2026-01-01 | INFO | fairseq_gpam.initial_weights | initial weights: 0123456789abcdef\n"
    valid = '2026-01-01 | INFO | valid | {"valid_loss": "1", "valid_num_updates": "1"}\n'
    assert logs.parse_training_log(line + valid)["initial_weights"] == "0123456789abcdef"
    assert "initial_weights" not in logs.parse_training_log(valid)
