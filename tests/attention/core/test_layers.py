"""A mechanism for each layer."""

import pytest
from contract import HEADS, WIDTH, settings
from tiny import BASE, OURS, TASKS, build_from, model_config

from fairseq_gpam.attention import Site, build_mechanism
from fairseq_gpam.attention.core.layers import spec_of_layer
from fairseq_gpam.modules import attention_modules


def site(layer=0, layers=6, heads=HEADS, name="encoder"):
    return Site(name, layer, layers, heads * WIDTH, heads, WIDTH)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("softmax", ["softmax"] * 6),
        ("sink:4,softmax:4", ["sink:4,softmax:4"] * 6),
        ("sink@0-2,4;softmax@3,5", ["sink", "sink", "sink", "softmax", "sink", "softmax"]),
        (" sink @ 0 - 2".replace(" - ", "-") + " ; softmax@3-5", ["sink"] * 3 + ["softmax"] * 3),
        ("sink*3,softmax", ["sink", "sink", "sink", "softmax", "sink", "sink"]),
        ("sink*1,softmax*2", ["sink", "softmax", "softmax"] * 2),
        ("sink:4,gated:4@0-4;softmax@5", ["sink:4,gated:4"] * 5 + ["softmax"]),
        ("sink:4,gated:4*2;softmax", ["sink:4,gated:4", "sink:4,gated:4", "softmax"] * 2),
        ("sink;softmax", ["sink", "softmax"] * 3),
    ],
)
def test_what_each_layer_uses(spec, expected):
    assert [spec_of_layer(spec, site(layer)) for layer in range(6)] == expected


REFUSED = [
    ("sink@0-2;softmax@4-5", "no mechanism for layer 3; allowed: each of the layers 0 to 5"),
    ("sink@0-3;softmax@3-5", "layer 3 has two mechanisms, sink and softmax; allowed: each of"),
    ("sink@0-5,5", "layer 5 has two mechanisms, sink and sink; allowed"),
    ("sink@0-6", "there is no layer 6; allowed: each of the layers 0 to 5 of encoder attention exactly once"),
    ("sink@2-0;softmax@3-5", "'2-0' in 'sink@2-0' goes backwards; allowed: 0-2"),
    ("sink@a", "'a' in 'sink@a' is not a layer; allowed: a number, or two as in 0-2"),
    ("sink@-1;softmax@0-5", "'-1' in 'sink@-1' is not a layer; allowed: a number"),
    ("sink@0-5;softmax", "'softmax' is not of the form mechanism@layers"),
    ("sink@;softmax@0-5", "'sink@' is not of the form mechanism@layers"),
    ("@0-5", "'@0-5' is not of the form mechanism@layers"),
    ("sink@0-5;", "'' is not of the form mechanism@layers"),
    ("sink*2@0-5", "mixes @ and \\*; allowed"),
    ("sink*0,softmax", r"'sink\*0' is not of the form mechanism\*layers"),
    ("sink*x,softmax", r"'sink\*x' is not of the form mechanism\*layers"),
    ("sink*٣,softmax", r"'sink\*٣' is not of the form mechanism\*layers"),
    (f"sink*{'9' * 15},softmax", f"its cycle has {10**15} layers, but encoder attention has 6; allowed: a cycle of"),
    (f"sink*{'9' * 5000},softmax", r"is not of the form mechanism\*layers"),
    ("sink@٠;softmax@1-5", "'٠' in 'sink@٠' is not a layer; allowed: a number"),
    (f"sink@0-{'9' * 5000}", "is not a layer; allowed: a number"),
    ("sink:٢", "'sink:٢' is not of the form mechanism:heads, as in"),
    ("sink*2,", r"'' is not of the form mechanism\*layers"),
    ("*2,sink", r"'\*2' is not of the form mechanism\*layers"),
    ("sink*6,softmax", "its cycle has 7 layers, but encoder attention has 6; allowed: a cycle of at most 6"),
    ("sotfmax@0-5", "'sotfmax' \\(in 'sotfmax@0-5'\\) is not allowed.*; allowed: .*softmax"),
    ("sink:1,softmax:2@0-5", r"1\+2 = 3 heads, but encoder attention has 2; the numbers must add up to 2"),
    ("neutreno@0-4;softmax@5", "'neutreno' must be used in every layer; allowed: neutreno"),
    ("neutreno:1,softmax:1@0-4;softmax@5", "must be used in every layer"),
]


@pytest.mark.parametrize(("spec", "why"), REFUSED)
def test_what_does_not_fit_is_refused_with_flag_and_value(spec, why):
    with pytest.raises(ValueError, match=why) as refusal:
        build_mechanism(spec, site(), settings())
    message = str(refusal.value)
    assert "--gpam-mechanism" in message and "allowed" in message
    assert spec in message or "heads" in message


@pytest.mark.parametrize("task", TASKS)
def test_the_flag_reaches_the_layers_of_both_models(task):
    flags = ["--gpam-mechanism", "sink@0;gated:1,softmax:1@1"]
    if task == "translation":
        flags += ["--gpam-cross-mechanism", "softmax*1,scaled_softmax"]
    model = build_from(model_config(task, OURS[task], *BASE[task], *flags))
    found = {}
    for one in (attention.mechanism for attention in attention_modules(model)):
        found[one.site.name, one.site.layer] = getattr(one, "spec", one.name)
    expected = {("decoder", 0): "sink", ("decoder", 1): "gated:1,softmax:1"}
    if task == "translation":
        expected |= {("encoder", 0): "sink", ("encoder", 1): "gated:1,softmax:1"}
        expected |= {("cross", 0): "softmax", ("cross", 1): "scaled_softmax"}
    assert found == expected
