"""Tiny models with a mechanism: whether they learn, and whether their decoder's steps are its full forward."""

import torch
import torch.nn.functional as F
from tiny import BASE, OURS, build_from, model_config, sentences, translation_input

from fairseq_gpam.attention import REGISTRY


def build_model(task, name, **chosen):
    """A tiny model with the mechanism wherever it is allowed, softmax elsewhere; None if it is allowed nowhere."""
    sites = ("encoder", "decoder", "cross") if task == "translation" else ("decoder",)
    allowed = [site for site in sites if site in REGISTRY[name].sites]
    if not allowed:
        return None
    config = model_config(task, OURS[task], *BASE[task])
    wanted = {"mechanism": "softmax", **{f"{site}_mechanism": name for site in allowed}, **chosen}
    for option, value in wanted.items():
        setattr(config, f"gpam_{option}", value)
    return build_from(config, words=12)


def train(model, task, updates=50):
    """Trains on one batch that can be learnt (copying, or a repeated phrase); the mean of the first and last losses."""
    if task == "translation":
        source = torch.randint(4, 16, (8, 6))
        source[::2, 0] = 1
        lengths = torch.full((8,), 6)
        target = torch.where(source == 1, torch.full_like(source, 5), source)
        inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": target.roll(1, 1)}
    else:
        phrase = torch.randint(4, 16, (8, 3))
        tokens = phrase.repeat(1, 3)
        inputs, target = {"src_tokens": tokens[:, :-1]}, tokens[:, 1:]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    losses = []
    for _ in range(updates):
        logits = model(**inputs)[0]
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[:3]) / 3, sum(losses[-3:]) / 3


def check_stepwise(model, task):
    """The decoder's full forward equals its steps with cached keys."""
    model.double().eval()
    with torch.no_grad():
        if task == "translation":
            inputs = translation_input()
            previous = inputs["prev_output_tokens"]
            encoded = model.encoder(inputs["src_tokens"] % 16, inputs["src_lengths"])
        else:
            previous, encoded = sentences((7, 7, 7), words=12), None
        previous = torch.where(previous >= 4, previous % 12 + 4, torch.full_like(previous, 4))
        full = model.decoder(previous, encoder_out=encoded)[0]
        state = {}
        for i in range(previous.size(1)):
            step = model.decoder(previous[:, : i + 1], encoder_out=encoded, incremental_state=state)[0]
            torch.testing.assert_close(step[:, 0], full[:, i], rtol=1e-8, atol=1e-9)
