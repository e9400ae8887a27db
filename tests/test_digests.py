"""Digests: the values that records, caches and seeds on disk were made with."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from videomaker import digests
from videomaker.data.cache import fingerprint
from videomaker.data.encode import generator


def test_values_are_those_of_the_hash(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, "abc"
    assert digests.sha256("abc") == digests.sha256(b"a", "bc") == digests.sha256_of_file(file) == expected
    assert digests.sha256(np.frombuffer(b"abc", np.uint8)) == expected
    assert digests.sha256_number("abc") == 0xBA7816BF8F01CFEA
    assert digests.blake2b_of_all([b"abc"]) == "cf4ab791c62b8d2b2109c90275287816"  # of 16 bytes


@pytest.mark.parametrize("key", [(0, "draw", 3), ("noise", 1)], ids=str)
def test_seeds_stay(key):
    seed = int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "big") >> 1
    assert generator(torch.device("cpu"), *key).initial_seed() == seed


def test_weights_have_one_fingerprint_in_fp32_and_bf16():
    module = torch.nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.copy_(module.weight.bfloat16())
        module.bias.copy_(module.bias.bfloat16())
    assert fingerprint(module) == fingerprint(module.bfloat16())
