"""The numbers of a training step: draws, targets, weights, losses."""

import pytest
import torch
from videomaker.train.config import MethodConfig
from videomaker.train.step import add_noise, draw, girl_timestep, losses, min_snr_weight, target

from videomaker.denoising import PREDICTION_TYPES, clean_sample

ALPHAS = torch.linspace(0.999, 0.005, 1000)


def draws_of(method, *, clips=1000, device="cpu"):
    return draw(
        method, (4, 2, 2, 2), (4, 1, 2, 2),
        keys=[(0, i) for i in range(clips)], num_train_timesteps=1000, device=torch.device(device),
    )  # fmt: skip


def test_girl_keeps_the_reference_nearly_clean():
    timesteps = torch.arange(1000)
    assert girl_timestep(timesteps, 0.01).tolist() == [int(0.01 * t) for t in range(1000)]


def test_drop_rates_are_the_configured_ones():
    draws = draws_of(MethodConfig(drop_text=0.2, drop_image=0.3, drop_both=0.1))
    both = draws.drop_text & draws.drop_image
    # Binomial over 1000 clips: a standard deviation is at most 1.6 %, the band is four of them.
    assert abs(both.float().mean() - 0.1) < 0.064
    assert abs((draws.drop_text & ~both).float().mean() - 0.2) < 0.064
    assert abs((draws.drop_image & ~both).float().mean() - 0.3) < 0.064


def test_a_clips_draws_do_not_depend_on_the_batch_it_is_in():
    method = MethodConfig()
    together, alone = draws_of(method, clips=3), draws_of(method, clips=1)
    for name, value in vars(alone).items():
        assert torch.equal(value[0], getattr(together, name)[0])


def test_reference_noise_can_be_the_frames_mean():
    draws = draws_of(MethodConfig(reference_noise="mean"), clips=2)
    assert torch.equal(draws.reference_noise, draws.noise.mean(dim=2, keepdim=True))


def test_velocity_and_noise_are_the_same_prediction():
    clean, noise = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 4, 5, 5)
    timestep = torch.tensor([10, 900])
    signal = ALPHAS[timestep].view(-1, 1, 1, 1, 1)
    noised = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    velocity = target("v_prediction", clean, noise, timestep, ALPHAS)
    torch.testing.assert_close(signal.sqrt() * velocity + (1 - signal).sqrt() * noised, noise)
    assert target("epsilon", clean, noise, timestep, ALPHAS) is noise


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_what_is_wanted_leads_back_to_the_clean_sample(prediction_type):
    clean, noise, timestep = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 4, 5, 5), torch.tensor([10, 900])
    noised, signal = add_noise(clean, noise, timestep, ALPHAS), ALPHAS[timestep].view(-1, 1, 1, 1, 1)
    wanted = target(prediction_type, clean, noise, timestep, ALPHAS)
    # fp32, divided by the least share of the clean sample in a noised one
    torch.testing.assert_close(clean_sample(prediction_type, noised, wanted, signal), clean, rtol=0, atol=1e-4)


def test_min_snr_weights_agree_between_prediction_types():
    timestep = torch.arange(1000)
    epsilon = min_snr_weight("epsilon", timestep, 5.0, ALPHAS)
    velocity = min_snr_weight("v_prediction", timestep, 5.0, ALPHAS)
    snr = ALPHAS / (1 - ALPHAS)
    # An error e of the clean sample is an error e·sqrt(SNR) of the noise and e·sqrt(SNR + 1) of the velocity.
    torch.testing.assert_close(epsilon * snr, snr.clamp(max=5.0))
    torch.testing.assert_close(velocity * (snr + 1), snr.clamp(max=5.0))
    torch.testing.assert_close(min_snr_weight("sample", timestep, 5.0, ALPHAS), snr.clamp(max=5.0))
    assert torch.equal(min_snr_weight("epsilon", timestep, 0.0, ALPHAS), torch.ones(1000))


def test_a_dropped_reference_has_no_loss_of_its_own():
    video = (torch.zeros(2, 1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1))
    reference = (torch.zeros(2, 1, 1, 1, 1), torch.tensor([2.0, 4.0]).view(2, 1, 1, 1, 1))
    found = losses(
        MethodConfig(girl_weight=0.1), video=video, reference=reference,
        weight=torch.ones(2), drop_image=torch.tensor([False, True]),
    )  # fmt: skip
    assert found["video"] == 1
    assert found["reference"] == 2  # (2² + 0) / 2
    torch.testing.assert_close(found["loss"], torch.tensor(1.2))


@pytest.mark.parametrize(("kind", "mean"), [("uniform", 500), ("early", 250), ("late", 750), ("logit_normal", 500)])
def test_timesteps_are_drawn_where_asked(kind, mean):
    timesteps = draws_of(MethodConfig(timesteps=kind)).timestep.double()
    assert timesteps.min() >= 0 and timesteps.max() < 1000
    # The widest of the four has a deviation of 289; the band is four of the mean of 1000 draws.
    assert abs(timesteps.mean() - mean) < 37
    if kind == "logit_normal":
        assert timesteps.std() < 250


def test_offset_noise_is_alike_in_all_pixels_and_frames():
    plain, offset = draws_of(MethodConfig(), clips=3), draws_of(MethodConfig(offset_noise=0.1), clips=3)
    difference = offset.noise - plain.noise  # [3, C, F, H, W]
    assert torch.equal(offset.timestep, plain.timestep) and torch.equal(offset.drop_image, plain.drop_image)
    torch.testing.assert_close(difference, difference[:, :, :1, :1, :1].expand_as(difference), rtol=0, atol=1e-6)
    assert difference.flatten(2)[..., 0].unique().numel() == 12
