"""Every scheduler that diffusers exports: it makes what the model predicts, or is refused in words."""

import inspect

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from PIL import Image
from tiny import tiny_pipeline

from videomaker import InputError
from videomaker.pipeline import checks

STEPS = 20
CONFIG = DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1).config
# The families that the manual names.
NAMED = (
    "DDIM", "DDPM", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "EulerDiscrete", "HeunDiscrete",
    "EulerAncestralDiscrete", "KDPM2Discrete", "DEISMultistep", "SASolver", "PNDM", "LCM", "TCD",
)  # fmt: skip
REFUSED = (
    "FlowMatchEulerDiscrete", "RePaint", "KarrasVe", "ScoreSdeVe", "EDMEuler", "IPNDM", "CMStochasticIterative",
    "DPMSolverMultistepInverse", "DDIMInverse", "CogVideoXDPM",
)  # fmt: skip


def exported() -> list[type[SchedulerMixin]]:
    kinds = (getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler"))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, SchedulerMixin)]


def made(kind: type[SchedulerMixin]) -> SchedulerMixin:
    try:
        return kind.from_config(CONFIG)
    except (TypeError, ValueError) as error:  # it has no defaults, or other ones: of another kind of model
        pytest.skip(str(error))


def accepted(scheduler: SchedulerMixin) -> bool:
    try:
        checks.check_scheduler(scheduler)
        checks.check_timesteps(scheduler, STEPS)
    except InputError as error:
        assert type(scheduler).__name__ in str(error) and "\n" not in str(error)
        return False
    return True


def denoise(scheduler: SchedulerMixin, clean: torch.Tensor) -> torch.Tensor:
    """The loop with a model that knows the truth."""
    source = torch.Generator().manual_seed(1)
    latents = torch.randn(clean.shape, generator=source) * scheduler.init_noise_sigma
    random = {"generator": source} if "generator" in inspect.signature(scheduler.step).parameters else {}
    logs = scheduler.alphas_cumprod.double().log()
    for t in scheduler.timesteps:
        low, part = int(t), float(t) % 1  # some schedulers step between the noise levels
        alpha = torch.lerp(logs[low], logs[min(low + 1, len(logs) - 1)], part).exp().float()
        noise = (scheduler.scale_model_input(latents, t) - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        latents = scheduler.step(noise, t, latents, **random).prev_sample
    return latents


@pytest.mark.parametrize("kind", exported(), ids=lambda kind: kind.__name__)
def test_an_exported_scheduler_finds_the_truth_or_is_refused(kind):
    scheduler, name = made(kind), kind.__name__.removesuffix("Scheduler")
    takes = accepted(scheduler)
    assert takes or name not in NAMED
    assert not (takes and name in REFUSED)
    if takes:
        clean = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        assert (denoise(scheduler, clean) - clean).abs().max() < 0.2


def test_the_pipeline_refuses_before_the_first_step():
    pipe = tiny_pipeline()
    pipe.unet.forward = None
    flow = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="epsilon")
    for scheduler in (FlowMatchEulerDiscreteScheduler(), flow):
        pipe.scheduler = scheduler
        with pytest.raises(InputError, match="is not for this model: give one with discrete betas"):
            pipe("a fox", Image.new("RGB", (16, 16)), num_frames=2, height=16, width=16)
