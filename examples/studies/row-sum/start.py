"""Measures post-norm language models at their start, in float64: residual ratio, cosine and query gradient by row sum.

`python examples/studies/row-sum/start.py` writes results.jsonl beside this file; a line is one arm, depth and seed.
"""

import argparse
import shlex
from pathlib import Path

import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.tasks.language_modeling import LanguageModelingTask

from fairseq_gpam.analysis import metrics
from fairseq_gpam.attention.core import measures
from fairseq_gpam.lab.experiments import grid
from fairseq_gpam.lab.experiments.synthetic_studies import write_results

HERE = Path(__file__).parent
WORDS, LENGTH, LINES, WIDTH = 8, 48, 8, 64


def model_of(flags, layers, seed):
    """Returns a freshly initialised language model, and its dictionary, for a grid's flags of an arm."""
    words = Dictionary()
    for word in range(WORDS):
        words.add_symbol(f"t{word}")
    shape = (
        f"DATA --task language_modeling --arch transformer_lm_gpam --decoder-layers {layers} "
        f"--decoder-embed-dim {WIDTH} "
        f"--decoder-input-dim {WIDTH} --decoder-output-dim {WIDTH} --decoder-ffn-embed-dim {2 * WIDTH} "
        "--decoder-attention-heads 2 --share-decoder-input-output-embed --dropout 0 --tokens-per-sample 49"
    )
    arguments = options.parse_args_and_arch(options.get_training_parser(), [*shlex.split(shape), *flags])
    torch.manual_seed(seed)
    model = LanguageModelingTask(arguments, words, words).build_model(arguments)
    return model.double().eval(), words


def measured(mechanism, flags, layers, seed):
    """Returns the measures of one model on random lines; the gradient is that of the loss per token in W_Q."""
    model, words = model_of(["--gpam-mechanism", mechanism, *flags], layers, seed)
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randint(words.nspecial, len(words), (LINES, LENGTH), generator=draws)
    logits, extra = model(tokens[:, :-1])
    states = extra["inner_states"][-1].transpose(0, 1)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = [layer.self_attn.q_proj.weight.grad.norm().item() for layer in model.decoder.layers]
    return {
        "residual_ratio": measures.residual_ratio(states).mean().item(),
        "mean_cosine": metrics.mean_cosine(states).mean().item(),
        "query_gradient_last": gradients[-1],
        "query_gradient_first": gradients[0],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    # The rates' grid has every arm; those with another depth or norm are for training only.
    runs = grid.load(HERE / "rates.toml").runs()
    arms = [run for run in runs if run.seed == 101 and run.name.endswith("_lr0.001")]
    arms = [run for run in arms if not run.arm.endswith(("-12", "-6", "-pre"))]
    write_results(
        HERE,
        (
            {"arm": run.arm, "layers": layers, "seed": seed} | measured(run.mechanism, run.extra, layers, seed)
            for layers in (6, 12, 24)
            for run in arms
            for seed in range(1, seeds + 1)
        ),
    )


if __name__ == "__main__":
    main()
