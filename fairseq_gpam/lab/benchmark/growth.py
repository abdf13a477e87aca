"""How the time and memory of one decoding step grow with the number of tokens already decoded."""

import argparse
import time
from typing import Any

import torch
from torch import nn

from fairseq_gpam import options
from fairseq_gpam.attention import FUTURE, Site, build_mechanism
from fairseq_gpam.lab.benchmark.cases import creating
from fairseq_gpam.lab.benchmark.timing import Step, paired
from fairseq_gpam.modules import GPAMMultiheadAttention

LENGTHS = (64, 512, 4096)
SPECS = ("softmax", "dagpam", "linear", "gated_linear", "linear*3,softmax")
LAYERS, WIDTH, HEADS = 4, 512, 8


def attentions(spec: str) -> list[nn.Module]:
    """Returns the self-attentions of a decoder of four layers with the mechanisms of `spec`."""
    settings = options.resolve(argparse.Namespace(gpam_mechanism=spec))
    sites = [Site("decoder", layer, LAYERS, WIDTH, HEADS, WIDTH // HEADS) for layer in range(LAYERS)]
    mechanisms = [build_mechanism(spec, site, settings) for site in sites]
    return [GPAMMultiheadAttention(WIDTH, HEADS, each, self_attention=True).eval() for each in mechanisms]


@torch.no_grad()
def step_after(layers: list[nn.Module], length: int) -> tuple[Step, int]:
    """Returns one decoding step of one sentence after `length` tokens, and the size of its cache in bytes."""
    state: dict[str, dict[str, Any]] = {}
    prefix, token = torch.randn(length, 1, WIDTH), torch.randn(1, 1, WIDTH)
    for layer in layers:
        layer(prefix, prefix, prefix, incremental_state=state, attn_mask=FUTURE, need_weights=False)

    @torch.no_grad()
    def step() -> None:
        # Each step works on a copy, so that the next one starts from the same tokens.
        state_copy = {name: dict(saved) for name, saved in state.items()}
        for layer in layers:
            layer(token, token, token, incremental_state=state_copy, need_weights=False)

    kept = (tensor for saved in state.values() for tensor in saved.values() if torch.is_tensor(tensor))
    return step, sum(tensor.numel() * tensor.element_size() for tensor in kept)


def measure_growth(pairs: int, device: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Prints and returns, for each mechanism, step times relative to the shortest length, and cache sizes in bytes.

    On the CPU, times are processor times, which depend less on other processes than wall-clock times do.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    print("\na decoding step after … tokens: time relative to the first, KiB kept", flush=True)
    rows = []
    for spec in SPECS:
        torch.manual_seed(1)
        with creating(device, dtype):
            layers = attentions(spec)
            steps = [step_after(layers, length) for length in LENGTHS]
        ratios = [paired(steps[0][0], step, pairs, clock=clock) for step, _ in steps[1:]]
        rows.append({"spec": spec, "lengths": list(LENGTHS), "bytes": [size for _, size in steps], "ratios": ratios})
        times = "".join(f"{ratio['median']:8.2f}" for ratio in ratios)
        print(f"{spec:20}{times}   " + "".join(f"{size / 1024:9.0f}" for _, size in steps), flush=True)
    return rows
