"""λ⁺ = λ⁻ = 0: the stock models' numbers, with the stock models' weights."""

import pytest
import torch
from quick import first
from tiny import NEUTRAL, OURS, STOCK, TASKS, build, encoded, logits, model_input, pair, scramble, stepwise

BACKENDS = ("auto", "reference", "fused")
NEUTRAL_FIXED = [*NEUTRAL, "--gpam-lambda", "fixed"]
VARIANTS = {
    "translation": [
        [],
        ["--encoder-normalize-before", "--decoder-normalize-before"],
        ["--share-all-embeddings", "--layernorm-embedding"],
        ["--no-cross-attention"],
        ["--no-cross-attention", "--cross-self-attention"],
        ["--checkpoint-activations"],
        ["--encoder-learned-pos", "--decoder-learned-pos"],
    ],
    "language_modeling": [
        [],
        ["--share-decoder-input-output-embed"],
        ["--checkpoint-activations"],
        ["--adaptive-input", "--adaptive-input-cutoff", "8,16", "--adaptive-softmax-cutoff", "8,16"],
        ["--scale-attn", "--scale-fc", "--scale-heads", "--scale-resids"],
    ],
}
# The first number of every attention's W_Q⁻ after seed 3.
FIRST_DRAWS = {
    "translation": {
        "encoder.layers.0.self_attn": 0.22594424,
        "encoder.layers.1.self_attn": 0.06414670,
        "decoder.layers.0.self_attn": 0.52818859,
        "decoder.layers.0.encoder_attn": -0.07593583,
        "decoder.layers.1.self_attn": 0.36606467,
        "decoder.layers.1.encoder_attn": 0.33964878,
    },
    "language_modeling": {
        "decoder.layers.0.self_attn": -0.46171623,
        "decoder.layers.1.self_attn": 0.33161449,
    },
}
CASES = [(task, variant) for task in TASKS for variant in VARIANTS[task]]


@pytest.mark.parametrize(("task", "variant"), CASES)
def test_logits_gradients_and_steps_are_stocks(task, variant):
    stock, ours = pair(task, *variant)
    inputs = model_input(task)
    for mode in (False, True):
        theirs, mine = logits(stock.train(mode), inputs), logits(ours.train(mode), inputs)
        assert (mine - theirs).abs().max() <= 1e-6 * max(1, theirs.abs().max())
    direction = torch.randn_like(theirs)
    (theirs * direction).mean().backward()
    (mine * direction).mean().backward()
    parameters = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameters[name].grad, parameter.grad, atol=1e-6), name
    encoder_out, tokens = encoded(stock.eval(), inputs)
    theirs, mine = (stepwise(model.eval(), encoder_out, tokens) for model in (stock, ours))
    assert torch.isfinite(mine).all()
    assert (mine - theirs).abs().max() <= 1e-6 * max(1, theirs.abs().max())


@pytest.mark.parametrize("backend", first(1, BACKENDS))
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("neutral", [NEUTRAL, NEUTRAL_FIXED, ["--gpam-mechanism", "softmax"]])
def test_every_way_to_be_neutral_and_every_backend_is_stock(task, neutral, backend):
    stock, ours = pair(task, ours=[*neutral, "--gpam-backend", backend])
    inputs = model_input(task)
    theirs, mine = logits(stock, inputs), logits(ours, inputs)
    assert (mine - theirs).abs().max() <= 1e-6 * max(1, theirs.abs().max())


@pytest.mark.parametrize("task", TASKS)
def test_not_neutral_is_not_stock(task):
    stock, ours = pair(task, ours=[])
    inputs = model_input(task)
    assert (logits(ours, inputs) - logits(stock, inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("task", TASKS)
def test_one_seed_gives_stocks_weights_and_the_projections_of_the_checkpoints_there_are(task):
    torch.manual_seed(3)
    stock = build(task, STOCK[task])
    torch.manual_seed(3)
    ours = build(task, OURS[task]).state_dict()
    for name, value in stock.state_dict().items():
        assert torch.equal(ours[name], value), name
    parameters = ("lambda_plus.theta", "lambda_minus.theta", "negative_projection.weight")
    added = [f"{attention}.mechanism.{parameter}" for attention in FIRST_DRAWS[task] for parameter in parameters]
    assert [name for name in ours if name not in stock.state_dict()] == added
    for attention, drawn in FIRST_DRAWS[task].items():
        projection = ours[f"{attention}.mechanism.negative_projection.weight"]
        torch.testing.assert_close(projection[0, :1], torch.tensor([drawn]), msg=attention)


@pytest.mark.parametrize("task", TASKS)
def test_a_stock_checkpoint_loads_and_what_it_lacks_keeps_its_initial_value(task):
    stock = scramble(build(task, STOCK[task]))
    ours = build(task, OURS[task], "--gpam-lambda-plus", "0.375")
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.load_state_dict(stock.state_dict(), strict=True)
    for name, value in ours.state_dict().items():
        expected = before[name] if ".mechanism." in name else stock.state_dict()[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_that_lacks_a_stock_weight_or_half_a_mechanism_is_refused(task):
    ours = build(task, OURS[task])
    state = ours.state_dict()
    for ending in ("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.mechanism.negative_projection.weight"):
        partial = {name: value for name, value in state.items() if not name.endswith(ending)}
        with pytest.raises(RuntimeError, match="Missing key"):
            ours.load_state_dict(partial, strict=True)
