"""Small synthetic archives with the layout, file names and markup of the published ones."""

import gzip
import hashlib
import io
import random
import re
import tarfile
import zipfile

CONSONANTS, VOWELS = "bdfgklmnprstvw", "aeiou"
TESTS = {
    "IWSLT14.TED.dev2010": 9,
    "IWSLT14.TEDX.dev2012": 8,
    "IWSLT14.TED.tst2010": 8,
    "IWSLT14.TED.tst2011": 8,
    "IWSLT14.TED.tst2012": 8,
}
"""41 sentences: not a multiple of 8, at which fairseq would drop some."""


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def made_words(generator, count):
    syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    return ["".join(generator.choices(syllables, k=generator.randint(1, 3))) for _ in range(count)]


def made_pairs(generator, words, count):
    """Sentences with what Moses's tokenisation meets: capitals, commas, quotes, hyphens, entities."""
    pairs = []
    for _ in range(count):
        english = generator.choices(words, k=generator.randint(3, 9))
        german = [word[::-1].capitalize() if number % 3 == 0 else word[::-1] for number, word in enumerate(english)]
        english[0] = english[0].capitalize()
        english[1] += generator.choice(["", ",", "'s", "-" + english[1]])
        pairs.append((" ".join(german) + " „x“.", " ".join(english) + ' "x".'))
    return pairs


def add_member(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def add(archive, name, lines):
    add_member(archive, name, "".join(f"{line}\n" for line in lines).encode())


def tar(path, files):
    """Writes an archive of these texts or bytes by name, and returns its path."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            add_member(archive, name, content if isinstance(content, bytes) else content.encode())
    return path


def iwslt14(folder):
    generator = random.Random(1)
    words = made_words(generator, 300)
    pairs = made_pairs(generator, words, 460)
    path = folder / "de-en.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for side, language in enumerate(("de", "en")):
            lines = []
            for start in range(0, len(pairs), 115):
                lines += [
                    f"<url>http://talks.example/{start}</url>",
                    "<keywords>talks, made</keywords>",
                    "<speaker>Nobody Inparticular</speaker>",
                    f"<talkid>{start}</talkid>",
                    f"<title>{words[side]} {words[side + 2]}</title>",
                    f"<description>{words[side]} {words[side + 3]} {words[side + 4]}</description>",
                    *(f" {pair[side]} " for pair in pairs[start : start + 115]),
                ]
            lines += [" ".join(words[:20]) if language == "de" else words[0], " ".join(words * 2)]
            add(archive, f"de-en/train.tags.de-en.{language}", lines)
        for name, count in TESTS.items():
            tests = made_pairs(generator, words, count)
            for side, language in enumerate(("de", "en")):
                segments = [f'<seg id="{n}"> {pair[side]} </seg>' for n, pair in enumerate(tests, start=1)]
                kind = "srcset" if language == "de" else "refset"
                add(
                    archive,
                    f"de-en/{name}.de-en.{language}.xml",
                    [
                        '<?xml version="1.0" encoding="UTF-8"?>',
                        f'<mteval>\n<{kind} setid="made" srclang="german" trglang="english">',
                        f'<doc docid="1" genre="lectures">\n<title>{words[0]}</title>',
                        *segments,
                        f"</doc>\n</{kind}>\n</mteval>",
                    ],
                )
    return {"IWSLT14_URL": path.as_uri(), "IWSLT14_SHA256": checksum(path)}


def wmt14(folder):
    generator = random.Random(2)
    words = made_words(generator, 300)
    environment = {}
    layout = {
        "EUROPARL": ("training-parallel-europarl-v7.tgz", "training/europarl-v7.de-en"),
        "COMMONCRAWL": ("training-parallel-commoncrawl.tgz", "commoncrawl.de-en"),
        "NEWS": ("training-parallel-nc-v9.tgz", "training/news-commentary-v9.de-en"),
    }
    for variable, (file, name) in layout.items():
        pairs = made_pairs(generator, words, 250)
        with tarfile.open(folder / file, "w:gz") as archive:
            for side, language in enumerate(("de", "en")):
                add(archive, f"{name}.{language}", [pair[side] for pair in pairs])
                add(archive, name.replace("de-en", "fr-en") + f".{language}", ["not to be read"])
        environment[f"WMT14_{variable}_URL"] = (folder / file).as_uri()
        environment[f"WMT14_{variable}_SUM"] = checksum(folder / file)
    tests = made_pairs(generator, words, 41)
    path = folder / "test-full.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for side, (kind, language) in enumerate((("ref", "de"), ("src", "en"))):
            segments = [f'<seg id="{n}">{pair[side]}</seg>' for n, pair in enumerate(tests, start=1)]
            add(
                archive,
                f"test-full/newstest2014-deen-{kind}.{language}.sgm",
                [f'<{kind}set setid="newstest2014" srclang="any">', '<doc docid="1">', *segments, "</doc>"],
            )
    with tarfile.open(folder / "wmt16_en_de.tar.gz", "w:gz") as archive:
        splits = {
            "train.tok.clean": made_pairs(generator, words, 400),
            "newstest2013.tok": pairs,
            "newstest2014.tok": tests,
        }
        for name, chosen in splits.items():
            for side, language in enumerate(("de", "en")):
                lines = [re.sub(r"(\w\w)(\w\w)\b", r"\1@@ \2", pair[side]) for pair in chosen]
                add(archive, f"{name}.bpe.32000.{language}", lines)
    environment["WMT14_TEST_URL"] = path.as_uri()
    environment["WMT14_TEST_SUM"] = "md5:" + hashlib.md5(path.read_bytes()).hexdigest()
    return environment


def multi30k(folder):
    generator = random.Random(3)
    words = made_words(generator, 300)
    base = folder / "multi30k/made/data/task1"
    environment = {"MULTI30K_URL": (folder / "multi30k").as_uri(), "MULTI30K_COMMIT": "made"}
    for split, count in (("train", 400), ("val", 30), ("test_2016_flickr", 41)):
        pairs = made_pairs(generator, words, count)
        for side, language in enumerate(("de", "en")):
            lines = "".join(f"{pair[side]}\n" for pair in pairs)
            for path, text in (
                (f"tok/{split}.lc.norm.tok.{language}", lines.lower().replace(",", " ,").replace(".", " .")),
                (f"raw/{split}.{language}.gz", lines),
            ):
                (base / path).parent.mkdir(parents=True, exist_ok=True)
                content = text.encode()
                (base / path).write_bytes(gzip.compress(content) if path.endswith(".gz") else content)
                kind = path.split("/")[0]
                environment[f"MULTI30K_{kind}_{split.split('_')[0]}_{language}_SUM".upper()] = checksum(base / path)
    return environment


def word_lines(seed, count):
    generator = random.Random(seed)
    words = [*made_words(generator, 200), "<unk>", "N"]
    return [" ".join(generator.choices(words, k=generator.randint(4, 12))) for _ in range(count)]


def ptb(folder):
    environment = {"PTB_URL": folder.as_uri()}
    for seed, (split, count) in enumerate((("train", 400), ("valid", 30), ("test", 41))):
        path = folder / f"ptb.{split}.txt"
        path.write_text("".join(f" {line} \n" for line in word_lines(seed, count)))
        environment[f"PTB_{split.upper()}_SUM"] = "md5:" + hashlib.md5(path.read_bytes()).hexdigest()
    return environment


def ngrams(folder):
    return {"NGRAM_LENGTH": "31", "NGRAM_TRAIN": "400", "NGRAM_HELD_OUT": "41"}


def wikitext_103(folder):
    path = folder / "wikitext-103-v1.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for seed, (split, count) in enumerate((("train", 400), ("valid", 30), ("test", 41))):
            lines = [" ", " = Made = ", " ", *(f" {line} @-@ . " for line in word_lines(seed, count)), " "]
            archive.writestr(f"wikitext-103/wiki.{split}.tokens", "".join(f"{line}\n" for line in lines))
    return {"WIKITEXT103_URL": path.as_uri(), "WIKITEXT103_SHA256": checksum(path)}


def enwik8(folder):
    path = folder / "enwik8.zip"
    lines = ["<mediawiki>", *(f"  <page>{line}é</page>" for line in word_lines(1, 400)), "</mediawiki>"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("enwik8", "\n".join(lines).encode())
    return {"ENWIK8_URL": path.as_uri(), "ENWIK8_SHA256": checksum(path), "ENWIK8_HELD_OUT": "1500"}
