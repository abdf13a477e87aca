"""Measures and draws attention in checkpoints of any fairseq transformer: rank collapse, gradients, maps.

Runs samples of a binarised data set through each checkpoint, without dropout, and writes report.html (one file, which
works offline), its pictures as SVG, and all numbers as JSON and CSV. Newly initialised models can be added to the
checkpoints or take their place: everything after --arch is read as flags of fairseq-train.
"""

import argparse
import logging
import re
import sys
import time
from pathlib import Path

from fairseq_gpam.analysis.definitions import SWITCHES
from fairseq_gpam.arguments import positive, seed, whole
from fairseq_gpam.errors import check_folder, require

logger = logging.getLogger("fairseq_gpam.analyze")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints", nargs="*", metavar="CHECKPOINT", help="checkpoints of this package or of stock fairseq"
    )
    parser.add_argument("--data", required=True, metavar="BIN", help="folder written by fairseq-preprocess")
    parser.add_argument("--subset", default="test", help="which split of the data (default: test)")
    parser.add_argument("--samples", type=positive, default=32, metavar="N", help="examples to measure (default: 32)")
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="examples in a batch (default: 4)")
    parser.add_argument("--out", type=Path, default=Path("analysis"), metavar="DIR", help="default: analysis")
    parser.add_argument(
        "--without",
        nargs="+",
        action="append",
        choices=SWITCHES,
        default=[],
        metavar="PART",
        help=f"also measure without any of {', '.join(SWITCHES)}; may be given several times",
    )
    parser.add_argument("--only-without", action="store_true", help="skip the measurement of the full model")
    parser.add_argument("--maps", type=whole, default=1, metavar="N", help="examples whose maps are drawn (default: 1)")
    parser.add_argument(
        "--operator",
        action="store_true",
        help="draw the whole model as one linear map between the tokens of the drawn examples, with a deletion test",
    )
    parser.add_argument(
        "--path-loss",
        action="store_true",
        help="measure the loss that remains when only paths through at most 0, 1, 2, … attentions are kept",
    )
    parser.add_argument(
        "--paths",
        type=whole,
        default=24,
        metavar="N",
        help="number of sampled paths for each length and drawn example (default: 24)",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="PyTorch threads; many small steps gain little from more than one (default: 1)",
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="names of the models in the report, in their order")
    parser.add_argument(
        "--seed", type=seed, default=1, help="random seed of fresh models and sampled paths (default: 1)"
    )
    parser.add_argument(
        "--arch",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="NAME FLAGS",
        help="a fresh model: architecture and flags of fairseq-train, last on the line; repeat --arch for more models",
    )


def fresh_models(remainder: list[str]) -> list[list[str]]:
    """Splits what follows --arch into the flags of each fresh model: [['--arch', NAME, …], …]."""
    models: list[list[str]] = []
    for word in ["--arch", *remainder] if remainder else []:
        if word == "--arch":
            models.append([])
        models[-1].append(word)
    return models


def run(arguments: argparse.Namespace) -> int:
    require("matplotlib", "jinja2", "pandas")
    import torch

    import fairseq_gpam
    from fairseq_gpam import engine
    from fairseq_gpam.analysis import loading, report
    from fairseq_gpam.analysis.attribution import describe_deletions
    from fairseq_gpam.analysis.collect import Measurement, collect

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    start = time.time()
    architectures = fresh_models(arguments.arch)
    models = [*arguments.checkpoints, *architectures]
    if not models:
        sys.exit("nothing to analyze: name a CHECKPOINT, or a fresh model with --arch")
    for path in arguments.checkpoints:
        if not Path(path).is_file():
            sys.exit(f"{path}: {'a folder, not a checkpoint' if Path(path).is_dir() else 'no such file'}")
    check_folder(arguments.out)
    if arguments.only_without and not arguments.without:
        sys.exit("--only-without is not allowed without --without")
    if arguments.names and len(arguments.names) != len(models):
        sys.exit(f"--names has {len(arguments.names)} names, but there are {len(models)} models")
    names = arguments.names or [*loading.short_names(arguments.checkpoints), *architecture_names(architectures)]

    variants: list[tuple[str, ...]] = [] if arguments.only_without else [()]
    variants += [tuple(part for part in SWITCHES if part in chosen) for chosen in arguments.without]
    frozen = [name for name in ("operator", "path-loss") if getattr(arguments, name.replace("-", "_"))]
    measurements: list[Measurement] = []
    for model, name in zip(models, names, strict=True):
        if isinstance(model, str):
            loaded = loading.from_checkpoint(model, arguments.data, name)
        else:
            loaded = loading.from_architecture(model, arguments.data, name, arguments.seed)
        samples = loading.choose_samples(loaded, arguments.subset, arguments.samples)
        near_16_tokens = sorted(samples.numbers, key=lambda sample: (abs(samples.length(sample) - 16), sample))
        with_maps = near_16_tokens[: arguments.maps]
        for variant in dict.fromkeys(variants):
            measurement = collect(
                loaded, samples, variant, arguments.batch_size, with_maps, arguments.paths, arguments.seed, frozen
            )
            measurements.append(measurement)
            logger.info(f"{name}, {measurement.variant}: loss {measurement.loss:.4g} ({time.time() - start:.0f} s)")
            if measurement.deletions:
                logger.info(f"{name}, {measurement.variant}: {describe_deletions(measurement.deletions)}")
            for option, reason in measurement.refusals.items():
                logger.warning(f"{name} has no {option}: {reason}")

    settings = {
        "data": Path(arguments.data).name,
        "subset": arguments.subset,
        "samples": measurements[0].num_samples,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "without": [list(variant) for variant in variants],
        "versions": {"fairseq_gpam": fairseq_gpam.__version__, **engine.versions()},
    }
    page = report.write_report(measurements, arguments.out, settings)
    logger.info(f"written to {page} ({page.stat().st_size / 1e6:.1f} MB, {time.time() - start:.0f} s)")
    full = [measurement for measurement in measurements if not measurement.without]
    none_made = [
        option for option in map("--{}".format, frozen) if full and all(option in each.refusals for each in full)
    ]
    if none_made:
        logger.error(f"{' and '.join(none_made)} could be made for none of the models")
    return 1 if none_made else 0


def architecture_names(architectures: list[list[str]]) -> list[str]:
    """Returns a short, distinct name for every fresh model: its architecture and the flags that distinguish it."""
    flags = [re.split(r" (?=--[a-z])", " ".join(words)) for words in architectures]
    names: list[str] = []
    for model_flags in flags:
        others = [other for other in flags if other is not model_flags and other[0] == model_flags[0]]
        apart = [flag for flag in model_flags[1:] if not all(flag in other for other in others)] if others else []
        name = " ".join([model_flags[0], *apart]).replace("--arch ", "").replace("--gpam-", "").replace("--", "")
        while name in names:
            name += "'"
        names.append(name)
    return names
