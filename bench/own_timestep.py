"""`train/main.py` with one change: a reference's embedding is of its own timestep, not of its frames'.

    python bench/own_timestep.py --config sprites method.girl_alpha=0.01 …      as train/main.py, on one device

The method tells the network one timestep for all rows, so nothing but the place in time tells the clean reference from
noisy frames, though GIRL asks for another noise of it. Here the references' rows get the embedding of `t' = int(α·t)`
(arXiv 2412.19645, section 4.3). An experiment of `bench/ablation.py`; what it trains generates right only under
`give_own_timestep`.
"""

from __future__ import annotations

import sys
from inspect import signature
from typing import Any
from unittest.mock import patch

import torch
from diffusers import UNetMotionModel
from diffusers.models.resnet import ResnetBlock2D
from videomaker.train import trainer
from videomaker.train.main import main, parse_arguments
from videomaker.train.overrides import load_config
from videomaker.train.step import girl_timestep

from videomaker.attention import ReferenceLayout
from videomaker.pipeline import VideoMakerPipeline


def give_own_timestep(unet: UNetMotionModel, alpha: float) -> None:
    """From now on the resnets of `unet` see `girl_timestep(t, alpha)` in the references' rows; eager alone."""
    seen: dict[str, Any] = {}

    def remember(unet: UNetMotionModel, args: tuple, kwargs: dict[str, Any]) -> None:
        sample, timestep = args[0], torch.as_tensor(args[1], device=args[0].device)
        own = girl_timestep(timestep, alpha).reshape(-1).expand(sample.shape[0])
        seen["layout"] = kwargs["cross_attention_kwargs"]["reference_layout"]
        seen["embedding"] = unet.time_embedding(unet.time_proj(own).to(unet.dtype))

    def replace(block: ResnetBlock2D, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        layout: ReferenceLayout = seen["layout"]
        given = signature(block.forward).bind(*args, **kwargs)
        rows = given.arguments["temb"].unflatten(0, (-1, layout.rows_per_video))
        own = seen["embedding"][:, None].to(rows.dtype).expand(-1, layout.num_references, -1)
        given.arguments["temb"] = torch.cat([rows[:, : layout.num_frames], own], dim=1).flatten(0, 1)
        return given.args, given.kwargs

    unet.register_forward_pre_hook(remember, with_kwargs=True)
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.register_forward_pre_hook(replace, with_kwargs=True)


def run(arguments: list[str]) -> int:
    """Trains as `train/main.py` does, uncompiled: hooks are not traced."""
    arguments = [*arguments, "model.compile=false"]
    options = parse_arguments(arguments)
    alpha = load_config(options.config, options.overrides).method.girl_alpha
    load = trainer.load_pipeline

    def load_pipeline(*args: Any, **settings: Any) -> VideoMakerPipeline:
        pipe = load(*args, **settings)
        give_own_timestep(pipe.unet, alpha)
        return pipe

    with patch.object(trainer, "load_pipeline", load_pipeline):
        return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
