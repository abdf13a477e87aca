"""Writes the pages generated from the registry: the mechanisms, with a drawing of each one's weights, and the flags."""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import card_pages
from fairseq_gpam import options
from fairseq_gpam.analysis import drawing, embed
from fairseq_gpam.attention import REGISTRY, SITES, AttentionInput, AttentionMask, Site, build_mechanism
from fairseq_gpam.attention.core.presets import PRESETS
from fairseq_gpam.info import LENGTH
from fairseq_gpam.lab.experiments import sections

SENTENCE = ["the", "cat", "that", "the", "dog", "saw", "sat", "on", "the", "mat"]
# The attention of the base transformer, for which the page counts parameters.
EMBED_DIM, NUM_HEADS = 512, 8
CELL = 14
PICTURES = "mechanisms"
CARDS = """## What they learn

![{words}](mechanisms/cards.svg)

{scores}

What fades, overwrites or masks the past (`forgetting`, `gated_deltanet`, `gated_linear`, `selective`, `stick_breaking`)
solves flip-flop in every seed and is below softmax in key lookup. `coda`, `fastmax`, `local`, `nap`, `non`, `rela`
and `threshold_differential` are below it in both and in bigrams. daGPAM is told apart from it in no test.
*Above*: each seed is above each of softmax's; with forty mechanisms in eight tests, two or three such gaps are chance.

{found}

The study `examples/studies/cards` has the plan, and what was expected and found. `python -m fairseq_gpam cards
--mechanism mine.py:NAME` makes the card of your own mechanism beside softmax's.
"""
COLUMNS = (
    *("name", "formula", "row sum", "at the start", "parameters", "multiply-adds", "decoding keeps", "where"),
    *("positions", "neutral", "paper", "weights"),
)

HEADER = """# Mechanisms

<!-- Made by `python scripts/upkeep/mechanisms.py`; do not edit it here. -->

Choose a mechanism with `--gpam-mechanism NAME`, or for one site with `--gpam-encoder-mechanism`,
`--gpam-decoder-mechanism` or `--gpam-cross-mechanism`. `NAME:4,OTHER:4` gives each group of heads its own mechanism;
the numbers must add up to the number of heads. `NAME@0-2,4;OTHER@3,5` gives each layer its own, layers counted from 0,
and `NAME*3,OTHER` cycles through three layers of one and one of the other. Layers may have groups of heads too, if they
are separated by `;`: `NAME:4,OTHER:4*2;NAME`.

{cards}## What they compute

Shapes: Q is T × D, K and V are S × D for each head (T queries, S keys); M is the mask; U is uniform over the n keys
visible to a row. A click on a column's head sorts the table.

- *Row sum at the start*: mean, least and greatest sum of a row of weights before training, before any norm or gate,
  measured on {length} random tokens.
- *Parameters* are those that one attention of {embed_dim} channels and {num_heads} heads adds to stock softmax
  attention, which has {stock:,}.
- *Multiply-adds*: those of this attention for one of {length} tokens, projections included, relative to softmax's
  {softmax:,}; counted in matrix products and convolutions of the plain formula, not elementwise work, not timed.
- *Decoding keeps*: numbers cached in one decoder layer. *Positions*: what `--gpam-position` may be beside `none`.
- *Neutral*: the flags with which it starts as softmax attention (see [Warm start](#warm-start)).

`python -m fairseq_gpam info --mechanism NAME --arch ARCH --length N` prints the same for another architecture.

The drawings show the weights of head 1 in the second of three layers, before any norm or gate, for one sentence:

> {sentence}

Rows are the words as queries, columns are the same words as keys. Red is positive, blue is negative, white is 0; the
deepest colour is the largest absolute weight, which is given next to the drawing. Queries and keys are random and the
same for all mechanisms; equal words have equal keys. A drawing shows what a formula can do, not what a model learns.
"""

WARM_START = """## Warm start

With `--gpam-warm-start` a model loaded from a stock checkpoint (`--finetune-from-model stock.pt`, or
`--restore-file stock.pt --reset-optimizer`) gives exactly the stock model's outputs before its first update: every
mechanism starts training at its neutral setting, the flags in the table's column. A mechanism without one is refused;
its section says why it has none.
"""

CONTROLS = """## Controls with as many parameters

<!-- run by the tests: as it stands -->
```bash
python -m fairseq_gpam info --arch transformer_gpam_iwslt_de_en --gpam-mechanism dagpam --match
```

prints the exact number of parameters, the overhead over stock, and the flags of three controls with matched parameters:
a stock model with wider FFNs, a stock model with wider FFNs and more heads, and the mechanism's model with narrower
FFNs. The remaining differences are printed too. `--vocabulary N` sets the size of the dictionary.
"""


FLAGS_HEADER = """# Flags

<!-- Made by `python scripts/upkeep/mechanisms.py`; do not edit it here. -->

The flags are the same for `transformer_gpam`, `transformer_lm_gpam` and all architectures derived from them. A flag on
the command line overrides the architecture's preset, and the preset overrides the default given here. A checkpoint
stores its flags; `--model-overrides "{'gpam_backend': 'reference'}"` changes them at generation. A mechanism's flag
with a value other than its default is refused if no mechanism of the model reads it. `fairseq-gpam flags dagpam` prints
those of a mechanism in the terminal.

## The five that matter

- `--gpam-mechanism NAME`: the [mechanism](mechanisms.md) of every attention, `dagpam` if the flag is absent.
- `--gpam-lambda-plus X` and `--gpam-lambda-minus X`: the values from which daGPAM's λ⁺ and λ⁻ start, 0.5 if absent.
- `--gpam-lambda fixed`: they keep these values, and are not trained.
- `--gpam-warm-start`: the model starts with exactly the outputs of a stock checkpoint.

"""


def write(output: Path) -> None:
    """Writes mechanisms.md, flags.md and the drawings."""
    pictures = output / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    for name in sorted({*REGISTRY, *PRESETS}):
        figure = drawing.small_map(example_weights(name).numpy(), SENTENCE, CELL)
        embed.write(figure, pictures / f"{name}.svg")
    for name, text in (("mechanisms.md", page_text()), ("flags.md", flags_page())):
        (output / name).write_text(text, encoding="utf-8")
    for name, section in card_pages.kept_cards().items():
        if section.picture:
            embed.write(section.picture.draw(), pictures / f"{name}.svg")


def overview_text() -> str:
    """Returns what heads the page: the map of all cards, if runs are kept."""
    section = card_pages.kept_cards().get("cards")
    if section is None or section.picture is None:
        return ""
    return CARDS.format(words=section.picture.words, scores=section.note, found=card_pages.separations()) + "\n"


def card_lines(name: str) -> list[str]:
    """Returns the card of a mechanism as Markdown, nothing if no run of it is kept."""
    section = card_pages.kept_cards().get(f"{name}.card")
    if section is None or section.picture is None:
        return []
    picture = f"![{section.picture.words}]({PICTURES}/{name}.card.svg)"
    return [picture, "", sections.markdown_table(section.head, section.rows), "", section.note, ""]


def flags_page() -> str:
    """Returns the page of all flags: the general ones, then those of each mechanism, each flag once."""
    sections = ((f"`{name}`" if name else "All mechanisms", group) for name, group in options.grouped().items())
    return FLAGS_HEADER + "\n".join(f"## {title}\n\n{flags_table(group)}\n" for title, group in sections)


def flags_table(group: tuple[options.Option, ...]) -> str:
    """Returns a group of options as a Markdown table."""
    rows = []
    for option in group:
        value = {bool: "(switch)", float: "number", int: "whole number", str: "text"}[option.type]
        if option.choices:
            value = ", ".join(f"`{choice}`" for choice in option.choices)
        elif option.name.endswith("mechanism"):
            value = "[mechanism](mechanisms.md)"
        default = "off" if option.type is bool else "" if option.default is None else f"`{option.default}`"
        meaning = option.help
        if option.allowed and not option.name.endswith("mechanism"):
            meaning += f"; {option.allowed}"
        others = [name for name in options.users(option) if name != "dagpam"]
        if "dagpam" in options.users(option) and others:
            meaning += "; also read by " + ", ".join(f"`{name}`" for name in others)
        rows.append([f"`{option.flag}`", value, default, meaning])
    return sections.markdown_table(("flag", "value", "default", "meaning"), rows)


def page_text() -> str:
    """Returns the whole page as Markdown."""
    from fairseq_gpam import costs  # needs fairseq, which the drawings do not

    stock = 4 * (EMBED_DIM * EMBED_DIM + EMBED_DIM)
    settings = options.resolve(argparse.Namespace())
    softmax = costs.measure("softmax", settings, EMBED_DIM, NUM_HEADS, LENGTH).multiply_adds
    sizes = {"embed_dim": EMBED_DIM, "num_heads": NUM_HEADS, "length": LENGTH, "stock": stock, "softmax": softmax}
    lines = [HEADER.format(**sizes, sentence=" ".join(SENTENCE), cards=overview_text())]
    rows = []
    for name in sorted({*REGISTRY, *PRESETS}):
        told, measured = costs.facts(name), costs.measure(name, settings, EMBED_DIM, NUM_HEADS, LENGTH)
        picture = f"![weights of {name}]({PICTURES}/{name}.svg) {example_weights(name).abs().max().item():.2f}"
        cells = [
            f"[{name}](#{name})",
            told.formula.replace("|", "\\|"),
            told.row_sum,
            measured.start(),
            measured.added(),
            f"{measured.multiply_adds / softmax:.2f}×",
            measured.state(),
            "everywhere" if told.sites == SITES else ", ".join(told.sites),
            ", ".join(told.positions) or "none",
            f"`{told.neutral}`" if told.neutral.startswith("--") else told.neutral.partition(":")[0],
            told.source,
            picture,
        ]
        rows.append(cells)
    lines += [sections.markdown_table(COLUMNS, rows), ""]
    for name, mechanism in sorted(REGISTRY.items()):
        lines += [f"## {name}", "", " ".join((mechanism.__doc__ or "").split()), ""]
        lines += [f"- {mechanism.formula}", f"- source: {mechanism.source}"]
        lines += [f"- work on T × S matrices: {mechanism.cost}"]
        if mechanism.neutral is None:
            lines.append(f"- no neutral setting: {mechanism.why_never_neutral}")
        lines += [f"- `{option.flag}`: {option_text(option)}" for option in mechanism.options]
        lines += ["", *card_lines(name)]
    for name, preset in sorted(PRESETS.items()):
        lines += [f"## {name}", "", f"A preset, a name for `{preset.flags()}`.", ""]
        lines += [f"- {preset.formula}", f"- source: {preset.source}", "", *card_lines(name)]
    lines += [WARM_START, CONTROLS]
    return "\n".join(lines)


def option_text(option: options.Option) -> str:
    words = [option.help]
    if option.choices:
        words.append("one of " + ", ".join(f"`{choice}`" for choice in option.choices))
    elif option.allowed:
        words.append(option.allowed)
    if option.default is not None and option.type is not bool:
        words.append(f"default {option.default}")
    return "; ".join(words)


def example_weights(name: str) -> Tensor:
    """Returns the weights of the first head on the example sentence, T × T, in the second of three layers."""
    numbers = random.Random(1)
    sites = REGISTRY[PRESETS[name].mechanism if name in PRESETS else name].sites
    heads, width, length = 2, 8, len(SENTENCE)

    def gauss(*shape: int) -> Tensor:
        values = [numbers.gauss(0, 1) for _ in range(torch.Size(shape).numel())]
        return torch.tensor(values, dtype=torch.float64).view(shape)

    vectors = {word: gauss(heads, width) for word in dict.fromkeys(SENTENCE)}
    k = torch.stack([vectors[word] for word in SENTENCE], dim=1)[None]
    # A query resembles the key of its own word, and depends on its position.
    q = 0.8 * k + gauss(1, heads, length, width)
    v, x = gauss(1, heads, length, width), gauss(1, length, heads * width)
    settings = options.resolve(argparse.Namespace())
    shared: dict[tuple[object, ...], object] = {}
    # Decoder-only mechanisms are drawn with a causal mask.
    mask = AttentionMask(causal=sites == ("decoder",))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for layer in (0, 1):
            site = Site(sites[0], layer, 3, heads * width, heads, width, shared)
            mechanism = build_mechanism(name, site, settings).double()
            weights = mechanism(AttentionInput(q, k, v, mask, x, 0.0, True))[1]
    assert weights is not None
    return weights[0, 0]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs"), metavar="FOLDER", help="default: docs")
    write(output := parser.parse_args(words).output)
    print(f"{output}: {len(REGISTRY)} mechanisms, {len(options.all_options())} flags")


if __name__ == "__main__":
    main()
