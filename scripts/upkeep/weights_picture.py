"""Draws what one head of two trained models does with the same sentence, one below the other: the README's picture.

`python scripts/upkeep/weights_picture.py STOCK.pt DAGPAM.pt --data BIN --sample 718 --layer 2 --head 2`
"""

import argparse
from pathlib import Path

import numpy as np

from fairseq_gpam.analysis import drawing, embed, loading
from fairseq_gpam.analysis.collect import Measurement, collect_maps
from fairseq_gpam.analysis.drawing import WeightMap


def weight_map(checkpoint: str, title: str, given: argparse.Namespace) -> WeightMap:
    """Returns the signed weights of the chosen head of a checkpoint, NaN where masked."""
    loaded = loading.from_checkpoint(checkpoint, given.data, title)
    loaded.task.load_dataset(given.subset)
    samples = loading.Samples(loaded.task.dataset(given.subset), [given.sample])
    maps = collect_maps(Measurement(loaded, ()), samples, given.sample)
    place = given.site, given.layer
    weights, visible = maps.maps[place][given.head].numpy(), maps.visible[place][given.head].numpy()
    title += f", after {loaded.updates} updates"
    return WeightMap(title, np.where(visible, weights, np.nan), *maps.axes(given.site))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("softmax", help="checkpoint of a model with softmax attention")
    parser.add_argument("dagpam", help="checkpoint of a model with daGPAM")
    parser.add_argument("--data", required=True, help="folder written by fairseq-preprocess")
    parser.add_argument("--subset", default="test")
    parser.add_argument("--site", choices=("encoder", "decoder", "cross"), default="decoder")
    for name in ("sample", "layer", "head"):
        parser.add_argument(f"--{name}", type=int, default=0, help="counted from 0")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/softmax-and-dagpam.svg"))
    given = parser.parse_args()
    shown = [weight_map(given.softmax, "softmax", given), weight_map(given.dagpam, "daGPAM", given)]
    bound = drawing.bound_of([part.weights for part in shown])
    words = ("word that is read", "word that is looked at")
    figure = drawing.maps(shown, 1, bound, side=2.0, axis_labels=words, scale="attention weight")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    embed.write(figure, given.out)
    for part in shown:
        print(f"{given.out}: {part.title}, {np.nanmin(part.weights):.3f} to {np.nanmax(part.weights):.3f}")


if __name__ == "__main__":
    main()
