"""The experiments about GIRL: what is said of two gradients, and a reference that gets its own timestep."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from tiny import TEXT_WIDTH, tiny_unet

from videomaker.attention import install_pisa
from videomaker.denoising import predict_noise


def test_moments_tell_what_stays_from_noise(monkeypatch):
    """Video: 0.1 everywhere and noise of variance 1; reference: noise of variance 4 and nothing else."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    girl = importlib.import_module("girl")
    size, batches, source = 1000, 400, torch.Generator().manual_seed(0)
    found = {name: girl.Moments(*torch.zeros(3, size).unbind()) for name in ("video", "reference")}
    for _ in range(batches):
        video = 0.1 + torch.randn(size, generator=source)
        found["video"].add(video, video)
        found["reference"].add(2 * torch.randn(size, generator=source), video)
    result = girl.summary(found)
    # Standard deviations: of a norm .1 %, of the video's signal 1.7 %, of a cosine .03, of a rate .002 (means of 400
    # batches over 1,000 numbers); each bound is five of them or more. The reference's signal is 0 give or take .67.
    assert result["norm"]["video"] == pytest.approx((size * 1.01) ** 0.5, rel=0.01)
    assert result["signal"]["video"] == pytest.approx((size * 0.01) ** 0.5, rel=0.1)
    assert result["signal"]["reference"] < 1.2  # the mean itself has a norm of 3.2, by chance
    assert abs(result["cosine of means"]) < 0.15
    assert result["rate left at β"]["1.0"] == pytest.approx((1.01 / 5.01) ** 0.5, abs=0.01)
    assert result["rate left at β"]["0.1"] == pytest.approx((1.01 / 1.05) ** 0.5, abs=0.01)


def test_a_reference_gets_its_own_timestep(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    own = importlib.import_module("own_timestep")

    @torch.no_grad()
    def predict(alpha: float | None, timesteps: list[int]) -> torch.Tensor:
        torch.manual_seed(0)
        unet = tiny_unet().eval()
        install_pisa(unet)
        if alpha is not None:
            own.give_own_timestep(unet, alpha)
        noisy, reference, text = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 4, 1, 8, 8), torch.randn(2, 7, TEXT_WIDTH)
        return torch.cat(predict_noise(unet, noisy, reference, torch.tensor(timesteps), text), dim=2)

    assert torch.equal(predict(1.0, [500, 300]), predict(None, [500, 300]))
    changed = predict(0.01, [500, 300])
    assert not torch.allclose(changed[0], predict(None, [500, 300])[0], atol=1e-4)
    assert torch.equal(changed[1], predict(0.01, [900, 300])[1])  # each video's own
