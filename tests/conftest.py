"""Settings of every test: no network, a fixed seed, and Triton's interpreter where there is no GPU."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
