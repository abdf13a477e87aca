"""Made text, and the recipe and commands of docs/your-data.md, for the tests that follow that page."""

import random
import re
from pathlib import Path

import sizes

PAGE = Path(__file__).parents[1] / "docs/your-data.md"
TINY = " ".join(sizes.tiny("encoder", "decoder"))
SHORT = 'budget = "--max-update 4 --log-interval 2"\n'


def write_text(folder, languages=("de", "en"), train=200):
    """Invented words, and the same words from behind in capitals."""
    made = random.Random(1)
    for split, count in (("train", train), ("valid", 20), ("test", 20)):
        lines = [" ".join(f"{made.choice('bdgkl')}{made.choice('aeiou')}n" for _ in range(5)) for _ in range(count)]
        for language, text in zip(languages, (lines, [line[::-1].upper() for line in lines]), strict=True):
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in text))


def blocks(language):
    text = PAGE.read_text(encoding="utf-8")
    return [content for kind, content in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if kind == language]


def write_recipe(folder, more="", data=""):
    """The page's recipe, with a small vocabulary and model; `more` are further keys of it, `data` of its data."""
    recipe = blocks("toml")[0]
    name = re.match(r"# (\S+)\n", recipe)[1]
    recipe = recipe.replace("[text]", f'train_more = "{TINY}"\n{SHORT}{more}[text]')
    (folder / name).write_text(f"{recipe}[data]\nvocabulary = 100\n{data}")
    return folder / name
