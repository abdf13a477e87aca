"""--gpam-spectrum-penalty: the variance of the QK eigenspectrum in any criterion, however the batches are split."""

import pytest
import torch
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf
from tiny import BASE, OURS, TASKS, dictionary, model_config, model_input, scramble

from fairseq_gpam.analysis.metrics import qk_eigenspectrum
from fairseq_gpam.modules.spectrum_penalty import model_penalty, spectrum_penalty

HEADS, WIDTH, CHANNELS = 3, 4, 10
WEIGHT = 0.25
CRITERIA = {
    "cross_entropy": {"sentence_avg": False},
    "label_smoothed_cross_entropy": {"label_smoothing": 0.1, "sentence_avg": True},
    "adaptive_loss": {"sentence_avg": False, "ddp_backend": "legacy_ddp"},
}


def weights(symmetric=False):
    queries = torch.randn(HEADS * WIDTH, CHANNELS, dtype=torch.float64)
    keys = torch.randn(HEADS * WIDTH, CHANNELS, dtype=torch.float64)
    if symmetric:
        # W_K = S (W_Qᵀ)⁺ for each head, so that W_K W_Qᵀ = S.
        heads = []
        for query in queries.split(WIDTH):
            mixed = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
            heads.append((mixed + mixed.T) @ torch.linalg.pinv(query.T))
        keys = torch.cat(heads)
    return queries, keys


def test_it_is_the_variance_of_a_symmetric_product_and_an_upper_bound_otherwise():
    queries, keys = weights(symmetric=True)
    _, variance = qk_eigenspectrum(queries, keys, HEADS)
    torch.testing.assert_close(spectrum_penalty(queries, keys, HEADS), variance)
    queries, keys = weights()
    _, variance = qk_eigenspectrum(queries, keys, HEADS)
    assert (spectrum_penalty(queries, keys, HEADS) > variance).all()
    equal = torch.eye(WIDTH, CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(spectrum_penalty(equal, 3 * equal, 1), torch.zeros(1, dtype=torch.float64))


def test_its_gradient_agrees_with_finite_differences_and_half_precision_is_summed_in_fp32():
    queries, keys = (weight.requires_grad_() for weight in weights())
    assert torch.autograd.gradcheck(lambda q, k: spectrum_penalty(q, k, HEADS), (queries, keys))
    # A square of 300² · D would not fit into fp16.
    half = spectrum_penalty(torch.full((4, 8), 10.0).half(), torch.full((4, 8), 10.0).half(), 1)
    assert half.dtype == torch.float32 and half.isfinite().all() and half > 65504


class Task(FairseqTask):
    """fairseq's task without data."""

    def __init__(self):
        super().__init__(None)
        self.words = dictionary()

    @property
    def source_dictionary(self):
        return self.words

    target_dictionary = source_dictionary


class Optimiser:
    """The part of fairseq's optimiser that a step of the task uses."""

    def backward(self, loss):
        loss.backward()


def made(task_name, weight, criterion="cross_entropy"):
    config = model_config(task_name, OURS[task_name], *BASE[task_name])
    config.gpam_spectrum_penalty, config.gpam_mechanism = weight, "dagpam"
    if criterion == "adaptive_loss":
        config.adaptive_softmax_cutoff = "8,16"
    task = Task()
    torch.manual_seed(1)
    model = scramble(task.build_model(config)).double()
    return task, model, task.build_criterion(OmegaConf.create({"_name": criterion, **CRITERIA[criterion]}))


def samples(task_name, count):
    torch.manual_seed(2)
    made = []
    for _ in range(count):
        inputs = model_input(task_name)
        tokens = inputs.get("prev_output_tokens", inputs["src_tokens"])
        target = torch.where(tokens == 1, tokens, torch.randint_like(tokens, 4, 24))
        made.append({"net_input": inputs, "target": target, "ntokens": int(target.ne(1).sum())})
    return made


def gradients(task_name, weight, batches, criterion="cross_entropy", dummy=()):
    """An update's gradients as fairseq's trainer makes them: summed over the batches, over their sample sizes."""
    task, model, built = made(task_name, weight, criterion)
    total = 0
    with metrics.aggregate(new_root=True) as aggregate:
        for number, sample in enumerate(batches):
            given = {**sample, "net_input": {**sample["net_input"]}}
            ignored = number in dummy
            _, size, log = task.train_step(given, model, built, Optimiser(), 0, ignore_grad=ignored)
            total += 0 if ignored else size
    grads = {name: parameter.grad / total for name, parameter in model.named_parameters()}
    return grads, aggregate.get_smoothed_values(), model, log


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("task_name", TASKS)
def test_an_update_follows_the_mean_loss_plus_the_weighted_penalty(task_name, criterion):
    plain, unlogged, model, log = gradients(task_name, 0.0, samples(task_name, 3), criterion)
    assert "gpam_spectrum_penalty" not in unlogged
    penalty = model_penalty(model)
    own = dict(zip(plain, torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True), strict=True))
    assert sum(gradient is not None for gradient in own.values()) >= 4
    for batches, dummy in ((samples(task_name, 3), ()), ([*samples(task_name, 3), samples(task_name, 1)[0]], (3,))):
        found, logged, _, log_with = gradients(task_name, WEIGHT, batches, criterion, dummy)
        assert logged["gpam_spectrum_penalty"] == pytest.approx(penalty.item(), abs=1e-4)
        for name, gradient in found.items():
            expected = plain[name] + (0 if own[name] is None else WEIGHT * own[name])
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8, msg=name)
    assert log_with["loss"] == pytest.approx(float(log["loss"])) or len(batches) == 4


def test_the_validation_loss_has_no_penalty():
    (sample,) = samples("translation", 1)
    losses = []
    for weight in (0.0, WEIGHT):
        task, model, criterion = made("translation", weight)
        losses.append(float(task.valid_step(sample, model, criterion)[0]))
        assert bool(criterion._forward_hooks) == bool(weight)
    assert losses[0] == losses[1]


def test_autocast_leaves_it_as_it_is():
    queries, keys = (300 * weight.float() for weight in weights())
    expected = spectrum_penalty(queries, keys, HEADS)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(spectrum_penalty(queries, keys, HEADS), expected)
