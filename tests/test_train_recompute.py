"""Checkpointing and offload: the same gradients to the bit, less memory."""

import pytest
import torch
from test_train_model import full_loss_gradients
from tiny import tiny_pipeline
from torch import nn
from videomaker.train.recompute import KeepOnHost, checkpointing_mode, enable_checkpointing, stays_on_device


@pytest.fixture(scope="module")
def kept():
    return full_loss_gradients("sdpa", checkpointing="none", dtype=torch.float32)


@pytest.mark.parametrize("mode", ["blocks", "all", True])
@pytest.mark.parametrize("offload", [False, True])
def test_gradients_are_the_same_to_the_bit(kept, mode, offload, monkeypatch):
    monkeypatch.setattr("videomaker.train.recompute._SMALLEST_OFFLOADED", 0)
    found = full_loss_gradients("sdpa", checkpointing=mode, dtype=torch.float32, offload_activations=offload)
    assert found.keys() == kept.keys()
    assert all(torch.equal(gradient, kept[name]) for name, gradient in found.items())


def test_true_and_false_are_names_of_modes():
    assert [checkpointing_mode(setting) for setting in (True, False, "all")] == ["blocks", "none", "all"]


def test_all_recomputes_the_motion_modules():
    """Counted by the passes through a layer of one: two with recomputation, one without."""
    counts = {}
    for mode in ("none", "blocks", "all"):
        unet = tiny_pipeline().unet
        enable_checkpointing(unet, mode)
        calls = []
        unet.down_blocks[0].motion_modules[0].proj_in.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        text = torch.zeros(2, 7, 16)
        unet(torch.randn(1, 4, 2, 8, 8), 5, encoder_hidden_states=text, return_dict=False)[0].sum().backward()
        counts[mode] = len(calls)
        with torch.no_grad():
            unet(torch.randn(1, 4, 2, 8, 8), 5, encoder_hidden_states=text)
        assert len(calls) == counts[mode] + 1
    assert counts == {"none": 1, "blocks": 1, "all": 2}


def test_weights_and_small_tensors_stay():
    layer = nn.Linear(600, 600)
    assert stays_on_device(layer.weight) and stays_on_device(layer.weight.t())
    assert not stays_on_device(torch.empty(600, 600))
    assert stays_on_device(torch.empty(10))


def test_activations_leave_the_device():
    """What is saved is another tensor: writing into the original does not reach the gradient."""
    x = torch.ones(600, 600, requires_grad=True)
    hidden = x * 2
    with KeepOnHost():
        out = hidden.square().sum()
    with torch.no_grad():
        hidden.data.zero_()
    out.backward()
    assert torch.equal(x.grad, torch.full_like(x, 8))
