"""diffusers' own tests for AnimateDiff and UNetMotionModel, run against ours with a reference added.

    python bench/diffusers_cases.py DIFFUSERS          # a checkout of diffusers at about the installed version
    python bench/diffusers_cases.py DIFFUSERS --plain  # against diffusers' own classes: what cannot run here at all

Nothing is fetched: the tokenizer and the base that the tests take from the hub are tiny ones made here. Expected
pixels of AnimateDiff itself are left out, since a reference changes them. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel, UNetMotionModel
from tiny import tiny_scheduler, tiny_text_encoder, tiny_tokenizer, tiny_vae
from transformers import CLIPTokenizer

from videomaker import VideoMakerPipeline, install_pisa
from videomaker.attention import ReferenceLayout

PIPELINE = "tests/pipelines/animatediff/test_animatediff.py"
UNET = "tests/models/unets/test_models_unet_motion.py"
OF_FREE_NOISE = "free_noise"


class ReferenceUNet(UNetMotionModel):
    """UNetMotionModel with PISA, whose last frame is the reference."""

    @functools.wraps(UNetMotionModel.__init__)  # its arguments are read from the signature when it is loaded
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        install_pisa(self)

    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As its base's, with the layout of the rows."""
        layout = ReferenceLayout(sample.shape[2] - 1, 1)
        kwargs["cross_attention_kwargs"] = {**(kwargs.get("cross_attention_kwargs") or {}), **layout.as_kwargs()}
        return super().forward(sample, *args, **kwargs)


class Plugin:
    """Puts our classes into the tests' modules, and counts."""

    def __init__(self, plain: bool):
        self.plain = plain
        self.found: dict[str, str] = {}

    def pytest_pycollect_makeitem(self, collector: Any, obj: Any) -> None:
        """Adapts every class of the tests' modules, before its tests are found."""
        if not self.plain and isinstance(obj, type) and obj.__module__ == collector.module.__name__:
            self._adapt(obj)

    def _adapt(self, kind: type) -> None:
        module = sys.modules[kind.__module__]
        if "Pipeline" in kind.__name__:
            module.AnimateDiffPipeline = VideoMakerPipeline
            diffusers.pipelines.VideoMakerPipeline = VideoMakerPipeline  # where the tests look a class up by name
            kind.pipeline_class = VideoMakerPipeline
            inputs = kind.__dict__.get("get_dummy_inputs")
            if inputs is not None:
                kind.get_dummy_inputs = _with_reference(inputs)
            for name in ("test_ip_adapter", "test_dict_tuple_outputs_equivalent"):
                if name in kind.__dict__:
                    delattr(kind, name)  # the mixin's own, without expected pixels
        else:
            module.UNetMotionModel = ReferenceUNet

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keeps what became of each."""
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.split("::", 1)[1]
            reason = _reason(str(report.longrepr)) if report.failed else ""
            self.found[name] = report.outcome
            if reason:
                print(f"\n{name}: {reason}", flush=True)


def _reason(traceback: str) -> str:
    errors = [line[1:].strip() for line in traceback.splitlines() if line.startswith("E  ")]
    return (errors or [traceback.strip()[-200:]])[0][:300]


def _with_reference(inputs: Any) -> Any:
    def with_reference(self: Any, device: Any, seed: int = 0) -> dict[str, Any]:
        picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
        return {**inputs(self, device, seed), "reference_image": picture}

    return with_reference


def _base(*_: Any, **__: Any) -> StableDiffusionPipeline:
    """A base that the tests' motion adapter fits."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=2,
    )
    return StableDiffusionPipeline(
        tiny_vae(), tiny_text_encoder(), tiny_tokenizer(), unet, tiny_scheduler(), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def main() -> int:
    """Runs the cases; exit code 1 when one fails that is not FreeNoise's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of diffusers, with its tests")
    parser.add_argument("--plain", action="store_true", help="diffusers' own classes")
    parser.add_argument("-k", default="", help="which tests, as for pytest")
    options = parser.parse_args()
    os.chdir(options.checkout)
    original = CLIPTokenizer.from_pretrained
    CLIPTokenizer.from_pretrained = lambda name, *args, **kwargs: (
        tiny_tokenizer() if str(name).startswith("hf-internal") else original(name, *args, **kwargs)
    )
    load = StableDiffusionPipeline.from_pretrained
    StableDiffusionPipeline.from_pretrained = lambda name, *args, **kwargs: (
        _base() if str(name).startswith("hf-internal") else load(name, *args, **kwargs)
    )
    plugin = Plugin(options.plain)
    arguments = ["-q", "--no-header", "-p", "no:cacheprovider", "-W", "ignore", "--tb=short", PIPELINE, UNET]
    pytest.main([*arguments, "-k", options.k or "not Slow"], plugins=[plugin])
    return _report(plugin.found)


def _report(outcomes: dict[str, str]) -> int:
    failed = [name for name, outcome in outcomes.items() if outcome == "failed" and OF_FREE_NOISE not in name]
    refused = [name for name, outcome in outcomes.items() if outcome == "failed" and OF_FREE_NOISE in name]
    count = lambda what: sum(outcome == what for outcome in outcomes.values())
    summary = {"passed": count("passed"), "skipped": count("skipped"), "failed": failed, "FreeNoise refused": refused}
    print(json.dumps(summary))
    return int(bool(failed) or not count("passed"))


if __name__ == "__main__":
    sys.exit(main())
