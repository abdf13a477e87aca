"""Multi30k task 1 (captions of photographs), English and German, tokenised and lower-cased or raw."""

from collections.abc import Sequence
from pathlib import Path

from fairseq_gpam.lab.recipes.archives import ArchiveError, read_lines
from fairseq_gpam.lab.recipes.standard_corpora import LANGUAGES, same_number
from fairseq_gpam.lab.recipes.subwords import SPLITS, MosesTokenize, detokenize, map_lines, write_lines

PUBLISHED_SPLITS = dict(zip(SPLITS, ("train", "val", "test_2016_flickr"), strict=True))


def prepare_multi30k(files: Sequence[Path], out: Path, workers: int = 1) -> None:
    """Writes the tokenised, lower-cased text to `out/input` and the raw references to `out`.

    The published tokenised files are used if all six are present; otherwise the raw ones are lower-cased, normalised
    and tokenised as in Multi30k's own script, by sacremoses. Without the raw test set, the references are the
    detokenised text. Raises ArchiveError if neither set of six is complete or the sides differ in length.
    """
    by_name = {path.name.removesuffix(".gz"): path for path in files}
    names = [(split, language) for split in SPLITS for language in LANGUAGES]
    tokenised = {
        name: path for name in names if (path := by_name.get(f"{PUBLISHED_SPLITS[name[0]]}.lc.norm.tok.{name[1]}"))
    }
    raw = {name: path for name in names if (path := by_name.get(f"{PUBLISHED_SPLITS[name[0]]}.{name[1]}"))}
    if len(names) not in (len(tokenised), len(raw)):
        raise ArchiveError(
            "Multi30k needs train, val and test_2016_flickr as .lc.norm.tok.de and .en, or as .de and .en; "
            f"found: {', '.join(sorted(by_name)) or 'none'}"
        )
    (out / "input").mkdir()
    counts: dict[tuple[str, str], int] = {}
    for split, language in names:
        if len(tokenised) == len(names):
            lines = read_lines(tokenised[split, language])
        else:
            lower_case = (line.lower() for line in read_lines(raw[split, language]))
            lines = list(map_lines(MosesTokenize(language, normalize=True), lower_case, workers))
        write_lines(out / f"input/{split}.{language}", lines)
        counts[split, language] = len(lines)
        if split == "test" and (split, language) in raw:
            write_lines(out / f"test.{language}", read_lines(raw[split, language]))
        elif split == "test":
            print(f"test.{language}: the raw text is missing; detokenising the tokenised text", flush=True)
            write_lines(out / f"test.{language}", detokenize(lines, language))
    for split in SPLITS:
        same_number(counts[split, "de"], counts[split, "en"], f"Multi30k {split}")
        print(f"{split}: {counts[split, 'de']:,} sentence pairs", flush=True)
