"""The learner: gradients against the naive ones, what trains, one clip learnt by heart."""

from dataclasses import replace
from functools import partialmethod

import pytest
import torch
from diffusers import UNetMotionModel
from tiny import tiny_pipeline
from videomaker.train.config import MethodConfig, ModelConfig, TrainConfig
from videomaker.train.model import prepare_denoiser
from videomaker.train.step import draw

from videomaker.errors import InputError

ONE_LEVEL = {
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlockMotion",),
    "up_block_types": ("CrossAttnUpBlockMotion",),
}


def full_loss_gradients(
    backend, *, checkpointing, compiled=False, unet=None, dtype=torch.float64, offload_activations=False, **method
):
    """Gradients of the trained parameters of one micro-batch of two clips, by name."""
    pipeline = tiny_pipeline(**unet or {}).to(dtype=dtype)
    config = TrainConfig(
        method=MethodConfig(drop_image=0.0, **method),
        model=ModelConfig(
            attention_backend=backend,
            gradient_checkpointing=checkpointing,
            compile=compiled,
            offload_activations=offload_activations,
        ),
    )
    learner = prepare_denoiser(pipeline, config)
    learner.alphas_cumprod = learner.alphas_cumprod.to(dtype)
    source = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 3, 8, 8, generator=source, dtype=dtype)
    reference = torch.randn(2, 4, 1, 8, 8, generator=source, dtype=dtype)
    text = torch.randn(2, 77, 16, generator=source, dtype=dtype)
    draws = draw(
        config.method, latents.shape[1:], reference.shape[1:],
        keys=[(0, 0), (0, 1)], num_train_timesteps=1000, device=torch.device("cpu"),
    )  # fmt: skip
    draws = replace(draws, noise=draws.noise.to(dtype), reference_noise=draws.reference_noise.to(dtype))
    learner(latents, reference, text, draws)["loss"].backward()
    return {name: p.grad for name, p in learner.unet.named_parameters() if p.requires_grad}


def relative_difference(a, b):
    return max(((a[name] - b[name]).norm() / b[name].norm()).item() for name in b)


def test_fused_and_checkpointed_gradients_equal_the_naive_ones():
    naive = full_loss_gradients("naive", checkpointing=False)
    assert all(gradient is not None and gradient.any() for gradient in naive.values())
    assert relative_difference(full_loss_gradients("sdpa", checkpointing=False), naive) < 1e-6
    assert relative_difference(full_loss_gradients("naive", checkpointing=True), naive) < 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_gradients_equal_the_naive_ones(checkpointing, monkeypatch):
    if not checkpointing:  # traced and partitioned the same way; inductor compiles for minutes, and does so once here
        eagerly = partialmethod(UNetMotionModel.compile, backend="aot_eager")
        monkeypatch.setattr(UNetMotionModel, "compile", eagerly)
    naive = full_loss_gradients("naive", checkpointing=False, unet=ONE_LEVEL)
    compiled = full_loss_gradients("sdpa", checkpointing=checkpointing, compiled=True, unet=ONE_LEVEL)
    assert compiled.keys() == naive.keys()
    assert relative_difference(compiled, naive) < 1e-6


def test_what_trains_is_what_the_method_says():
    names = lambda **method: set(full_loss_gradients("naive", checkpointing=False, **method))
    everything, attention = names(), names(update_motion=False)
    assert attention < everything
    assert all(".attn1." in name and "motion_modules" not in name for name in attention)
    assert all("motion_modules" in name for name in everything - attention)


def test_a_prediction_that_training_does_not_know_is_refused():
    pipeline = tiny_pipeline()
    pipeline.scheduler.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(InputError, match=r"'flow_prediction': training knows epsilon, sample, v_prediction"):
        prepare_denoiser(pipeline, TrainConfig(model=ModelConfig(attention_backend="naive")))


class OneClip:
    """The method on one clip with every parameter trained, since a random base knows nothing worth freezing."""

    def __init__(self, girl_weight: float, steps: int):
        self.pipeline = tiny_pipeline(**ONE_LEVEL)
        self.pipeline.scheduler.register_to_config(prediction_type="v_prediction")
        self.method = MethodConfig(train_all=True, girl_weight=girl_weight, drop_image=0.0)
        model = ModelConfig(gradient_checkpointing=False, attention_backend="naive")
        self.learner = prepare_denoiser(self.pipeline, TrainConfig(method=self.method, model=model))
        source = torch.Generator().manual_seed(0)
        picture = torch.randn(1, 4, 2, 2, generator=source).repeat_interleave(4, 2).repeat_interleave(4, 3)
        self.clip = torch.stack([picture, picture.roll(2, dims=-1)], dim=2)  # [1, 4, 2, 8, 8]
        self.reference = picture.unsqueeze(2)
        self.text = torch.randn(1, 7, 16, generator=source)
        self.before = self.losses(0, batches=4)
        self._train(steps)
        self.after = self.losses(0, batches=4)

    def _train(self, steps: int) -> None:
        optimizer = torch.optim.AdamW(self.learner.unet.parameters(), fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
        for step in range(steps):
            optimizer.zero_grad()
            self._loss(step + 1)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(self.learner.unet.parameters(), 1.0)
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def losses(self, first: int, *, batches: int) -> dict[str, float]:
        """Means over draws that training never sees."""
        found = [self._loss(-first - i - 1) for i in range(batches)]
        return {name: sum(part[name].item() for part in found) / batches for name in found[0]}

    def _loss(self, number: int) -> dict[str, torch.Tensor]:
        clips = 8
        draws = draw(
            self.method, self.clip.shape[1:], self.reference.shape[1:], keys=[(number, i) for i in range(clips)],
            num_train_timesteps=1000, device=torch.device("cpu"),
        )  # fmt: skip
        return self.learner(*(x.repeat(clips, *(1,) * (x.ndim - 1)) for x in self.inputs), draws)

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        return self.clip, self.reference, self.text


def test_the_tiny_model_overfits_one_clip_and_generates_it():
    fit = OneClip(girl_weight=1.0, steps=200)
    assert fit.after["video"] < fit.before["video"] / 10
    assert fit.after["reference"] < fit.before["reference"] / 2
    made = fit.pipeline(
        prompt_embeds=fit.text, reference_image_embeds=fit.reference, num_frames=2, height=16, width=16,
        num_inference_steps=20, guidance_scale=1.0, generator=torch.Generator().manual_seed(0), output_type="latent",
    ).frames  # fmt: skip
    assert torch.corrcoef(torch.stack([made.flatten(), fit.clip.flatten()]))[0, 1] > 0.9


def test_without_girl_the_reference_loss_does_not_fall():
    fit = OneClip(girl_weight=0.0, steps=60)
    assert fit.after["video"] < fit.before["video"] / 2  # it does learn
    assert fit.after["reference"] > 0.9 * fit.before["reference"]
