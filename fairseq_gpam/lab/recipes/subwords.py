"""Converts text to the tokens that are binarised: Moses tokenisation, BPE by subword-nmt, sentencepiece, bytes.

sacremoses and subword-nmt are installed by the extra `recipes`.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import Pool
from pathlib import Path
from typing import Any

from fairseq_gpam import errors

SPLITS = ("train", "valid", "test")

_HYPHEN = re.compile(r"(\S)-(\S)")
_worker: Callable[[str], str] | None = None


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text, split at line feeds only."""
    return (line.removesuffix("\n") for line in errors.read_lines(path))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes one item per line, in UTF-8 with Unix line ends."""
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(f"{line}\n" for line in lines)


def write_split(out: Path, split: str, lines: Sequence[str]) -> None:
    """Writes `out/SPLIT.txt` and prints its numbers of lines and words."""
    write_lines(out / f"{split}.txt", lines)
    print(f"{split}: {len(lines):,} lines, {sum(len(line.split()) for line in lines):,} words", flush=True)


def _set_worker(function: Callable[[str], str]) -> None:
    global _worker
    _worker = function


def _work(line: str) -> str:
    assert _worker is not None
    return _worker(line)


def map_lines(function: Callable[[str], str], lines: Iterable[str], workers: int = 1) -> Iterator[str]:
    """Applies a function that can be pickled to every line, in order, in `workers` processes."""
    if workers <= 1:
        yield from map(function, lines)
        return
    with Pool(workers, _set_worker, (function,)) as pool:
        yield from pool.imap(_work, lines, chunksize=1000)
        # Waits for the workers to end: leaving the block sends SIGTERM, on which a worker with a handler can hang.
        pool.close()
        pool.join()


class MosesTokenize:
    """Moses tokenisation of a line, with Moses's escapes (`&apos;`).

    `normalize` first makes punctuation uniform and replaces control characters by spaces;
    `dashes` splits words at hyphens (`a @-@ b`), as Moses's `-a` does.
    """

    def __init__(self, language: str, dashes: bool = False, normalize: bool = False) -> None:
        from sacremoses import MosesPunctNormalizer, MosesTokenizer

        self.tokenizer = MosesTokenizer(lang=language)
        self.normalizer = MosesPunctNormalizer(lang=language) if normalize else None
        self.dashes = dashes

    def __call__(self, line: str) -> str:
        """Returns the line's tokens, separated by single spaces."""
        if self.normalizer is not None:
            line = self.normalizer.normalize(line)
            if not line.isprintable():
                line = "".join(character if character.isprintable() else " " for character in line)
        return self.tokenizer.tokenize(line, aggressive_dash_splits=self.dashes, return_str=True)


def detokenize(lines: Iterable[str], language: str) -> list[str]:
    """Returns plain text: undoes `MosesTokenize`, as far as that is possible."""
    from sacremoses import MosesDetokenizer

    detokenizer = MosesDetokenizer(lang=language)
    return [detokenizer.detokenize(line.split()) for line in lines]


def split_compounds(line: str) -> str:
    """Splits each hyphenated word into three tokens, as the "compound splitting" of tokenised BLEU does."""
    return _HYPHEN.sub(r"\1 ##AT##-##AT## \2", line)


def keep_lengths(source: str, target: str, longest: int, ratio: float = 1.5) -> bool:
    """Returns whether both sides have 1 to `longest` tokens and neither has more than `ratio` times the other's."""
    lengths = len(source.split()), len(target.split())
    if not 1 <= min(lengths) <= max(lengths) <= longest:
        return False
    return max(lengths) <= ratio * min(lengths)


def learn_sentencepiece(texts: Sequence[Path], prefix: Path, vocabulary: int) -> None:
    """Learns a sentencepiece model on `texts` and writes `prefix.model` and `prefix.vocab`.

    `vocabulary` counts sentencepiece's own three symbols too. One thread, so that the same texts
    give the same model.
    """
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=",".join(map(str, texts)),
        model_prefix=str(prefix),
        vocab_size=vocabulary,
        model_type="bpe",
        character_coverage=1.0,
        num_threads=1,
        minloglevel=1,
    )


class SentencePieceEncode:
    """A line as space-separated sentencepiece pieces."""

    def __init__(self, model: Path) -> None:
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def __call__(self, line: str) -> str:
        """Returns the pieces."""
        return " ".join(self.processor.encode(line, out_type=str))


def learn_bpe(texts: Sequence[Path], codes: Path, merges: int) -> None:
    """Learns up to `merges` joint BPE merges on tokenised `texts`."""
    from subword_nmt.learn_bpe import learn_bpe

    with codes.open("w", encoding="utf-8", newline="\n") as out:
        learn_bpe((line + "\n" for text in texts for line in read_lines(text)), out, merges)


class BPEEncode:
    """A tokenised line as subword-nmt's subwords, with `@@` after each that does not end a word."""

    def __init__(self, codes: Path) -> None:
        from subword_nmt.apply_bpe import BPE

        with codes.open(encoding="utf-8") as lines:
            self.bpe = BPE(lines)

    def __call__(self, line: str) -> str:
        """Returns the subwords."""
        return self.bpe.process_line(line).strip()


def bytes_as_tokens(content: bytes) -> str:
    """Returns each byte as a decimal number, with a new line after each line feed."""
    lines = content.removesuffix(b"\n").split(b"\n")
    return "".join(" ".join(map(str, line)) + "\n" for line in lines)


def encode_splits(
    source: Path, target: Path, suffixes: Sequence[str], kind: str, vocabulary: int, workers: int = 1
) -> None:
    """Learns one model on the training files of `source` and writes all splits, encoded, to `target`.

    `kind` is `sentencepiece` (`vocabulary` pieces) or `subword-nmt` (`vocabulary` merges);
    an existing `target` folder is replaced.
    """
    if target.exists():
        shutil.rmtree(target)
    target.mkdir()
    print(f"learning {vocabulary:,} subwords and encoding with them", flush=True)
    texts = [source / f"train.{suffix}" for suffix in suffixes]
    encode: Any
    if kind == "sentencepiece":
        learn_sentencepiece(texts, target / "spm", vocabulary)
        encode = SentencePieceEncode(target / "spm.model")
    else:
        learn_bpe(texts, target / "codes", vocabulary)
        encode = BPEEncode(target / "codes")
    for split in SPLITS:
        for suffix in suffixes:
            name = f"{split}.{suffix}"
            write_lines(target / name, map_lines(encode, read_lines(source / name), workers))
