"""Packaging: the folders kernels/ and train/ at the root are imported as videomaker.kernels and videomaker.train.

Exact versions of a known-good environment are in constraints.txt; the ranges here are what the code supports.
"""

from setuptools import find_packages, setup

CORE = [
    "torch>=2.11",
    "diffusers>=0.36",
    "transformers>=4.56",
    "accelerate>=1.0",
    "safetensors>=0.4",
    "numpy>=1.26",
    "pillow>=10.3",
    "pydantic>=2.9",
    "av>=14",
    "typer>=0.15",
    "rich>=13",
    "tqdm>=4.66",
]
EXTRAS = {
    "train": ["deepspeed>=0.18", "pydantic>=2", "pyyaml>=6", "tensorboard>=2.16", "webdataset>=1.0"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
    "eval": ["matplotlib>=3.8"],
    "flash": ["flash-attn>=2.7"],
    "dev": [
        "build>=1.2",
        "matplotlib>=3.8",
        "nvidia-ml-py>=12",
        "peft>=0.17",
        "pre-commit>=3.7",
        "pytest>=8",
        "pytest-benchmark>=5",
        "pytest-timeout>=2.3",
        "ruff>=0.9",
        # A CPU wheel of torch brings no Triton; the kernels' tests run in its interpreter.
        "triton>=3.6; platform_system == 'Linux'",
    ],
}

setup(
    package_dir={"": ".", "videomaker.kernels": "kernels", "videomaker.train": "train"},
    packages=[
        *find_packages(include=["videomaker", "videomaker.*"]),
        "videomaker.kernels",
        *(f"videomaker.kernels.{name}" for name in find_packages("kernels")),
        "videomaker.train",
        *(f"videomaker.train.{name}" for name in find_packages("train")),
    ],
    install_requires=CORE,
    extras_require=EXTRAS,
)
