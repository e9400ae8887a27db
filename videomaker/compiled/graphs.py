"""Compiled inference: the pipeline's tensor functions as static graphs, and as CUDA graphs on NVIDIA.

`VideoMakerPipeline.compile` makes one `CompiledPipeline` for declared shapes (`Bucket`). Weights, prompts, references,
guidance and schedules are inputs of the graphs, so none of them ever compiles anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_map_only

from videomaker.errors import InputError, check_counts

from . import artifacts
from .changes import Taken
from .processors import prepare_unet
from .sampler import Approximations
from .step import decode_pictures, denoising_step

logger = logging.getLogger(__name__)

Undeclared = Literal["eager", "compile", "error"]
COSTS = {"eager": "it runs eagerly, which is slower", "compile": "it is compiled now"}
# Dynamo's limit of shapes for one function is meant for shapes that nobody declared.
SHAPE_LIMIT = 256
CAPTURE_WARMUPS = 3  # runs before a capture: compilation, autotuning, workspaces of libraries


@dataclass(frozen=True)
class Bucket:
    """A shape to compile for.

    Args:
        num_frames, height, width: of the videos, in frames and pixels.
        batch: videos at once.
        num_references: pictures of each subject.
        guidance: whether the videos are guided (guidance above 1).

    Raises:
        InputError: a number is no count.
    """

    num_frames: int = 16
    height: int = 512
    width: int = 512
    batch: int = 1
    num_references: int = 1
    guidance: bool = True

    def __post_init__(self) -> None:
        check_counts(num_frames=self.num_frames, height=self.height, width=self.width, batch=self.batch)
        check_counts(least=0, num_references=self.num_references)

    def __str__(self) -> str:
        guidance = "guided" if self.guidance else "unguided"
        return f"{self.batch} x {self.num_frames} frames of {self.width}x{self.height}, {guidance}"


class Compilable(Protocol):
    """What compiling asks of a pipeline: modules in their place, opt-in approximations, and the call."""

    unet: Any
    vae: Any
    text_encoder: Any
    device: torch.device
    vae_scale_factor: int
    approximations: Approximations
    compiled: CompiledPipeline | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Makes videos."""


@dataclass(frozen=True)
class CompileReport:
    """What `compile` did: seconds until every bucket had run once, and what became of the saved artifacts."""

    buckets: tuple[Bucket, ...]
    seconds: float
    artifacts: str

    def __str__(self) -> str:
        return f"{len(self.buckets)} shapes ready in {self.seconds:.0f} s; artifacts {self.artifacts.partition(':')[0]}"


class StaticGraph:
    """A function of tensors, compiled for the shapes that it meets while `open`.

    Args:
        name: of the function, for messages.
        function: takes and returns tensors, or nested containers of them; other leaves are constants of the graph.
        mode: of `torch.compile`.
        pool: memory pool of CUDA graphs; None runs the compiled function without capturing it.
        undeclared: what becomes of a shape that it meets while closed.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], *, mode: str, pool: Any = None, undeclared: Undeclared = "eager"
    ):
        self.open = False
        self._name, self._function, self._pool, self._undeclared = name, function, pool, undeclared
        self._compiled = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
        self._runners: dict[Any, Callable[..., Any]] = {}
        self._seconds: list[float] = []
        self._told: frozenset[torch.Size] = frozenset()

    def __call__(self, *args: Any) -> Any:
        """The function of `args`, through the graph of their shapes."""
        args = tree_map_only(torch.Tensor, torch.Tensor.contiguous, args)  # strides are part of a static shape
        leaves, structure = tree_flatten(args)
        shapes = tuple((x.shape, x.dtype) if isinstance(x, torch.Tensor) else x for x in leaves)
        runner = self._runners.get((structure, shapes))
        if runner is None and (self.open or self._compiles_undeclared(args[0])):
            runner = self._runners[structure, shapes] = self._build(args)
        return (self._function if runner is None else runner)(*args)

    def _build(self, args: tuple) -> Callable[..., Any]:
        start = time.perf_counter()
        with torch._dynamo.config.patch(recompile_limit=SHAPE_LIMIT, accumulated_recompile_limit=SHAPE_LIMIT):
            runner = self._compiled if self._pool is None else CapturedGraph(self._compiled, args, self._pool)
            runner(*args)
        self._seconds.append(time.perf_counter() - start)
        return runner

    def _compiles_undeclared(self, latents: torch.Tensor) -> bool:
        """Says once what a shape outside the declared ones costs, and whether it is to be compiled."""
        told, self._told = latents.shape in self._told, self._told | {latents.shape}
        shape = "x".join(map(str, latents.shape))
        cost = f"; compiling took up to {max(self._seconds):.0f} s for a declared one" if self._seconds else ""
        message = f"{self._name} meets latents of {shape}, not a declared shape: %s{cost}"
        if self._undeclared == "error":
            raise InputError(message % "declare it in compile()")
        if not told:
            logger.warning(message, COSTS[self._undeclared])
        return self._undeclared == "compile"


class CapturedGraph:
    """One captured run of a function on an NVIDIA GPU: inputs are copied in, the graph replayed, outputs copied out."""

    def __init__(self, function: Callable[..., Any], args: tuple, pool: Any):
        static = tree_map_only(torch.Tensor, torch.clone, args)
        self._inputs = _tensors(static)
        self._device = self._inputs[0].device
        # Streams and captures are the current device's, which need not be the model's; torch's own stream for captures
        # is made once for the process.
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(CAPTURE_WARMUPS):
                    function(*static)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool, stream=stream):
                self._outputs = function(*static)

    def __call__(self, *args: Any) -> Any:
        """The function of `args`; the outputs are the caller's to keep."""
        with torch.cuda.device(self._device):
            torch._foreach_copy_(self._inputs, _tensors(args))
            self._graph.replay()
            return tree_map_only(torch.Tensor, torch.clone, self._outputs)


def _tensors(args: tuple) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(args)[0] if isinstance(leaf, torch.Tensor)]


class CompiledPipeline:
    """The graphs of a pipeline that stays where it is, in its dtype, without offloading or adapters.

    Args:
        pipe, mode, cuda_graphs, undeclared: as in `compile_pipeline`.
    """

    def __init__(
        self,
        pipe: Compilable,
        *,
        mode: str = "default",
        cuda_graphs: bool = True,
        undeclared: Undeclared = "eager",
    ):
        _check(pipe, undeclared)
        captured = cuda_graphs and pipe.device.type == "cuda" and torch.version.cuda is not None
        options: dict[str, Any] = {
            "mode": mode,
            "pool": torch.cuda.graph_pool_handle() if captured else None,
            "undeclared": undeclared,
        }
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.eval().to(memory_format=torch.channels_last)
        prepare_unet(pipe.unet)
        self._pipe, self._taken = pipe, Taken(pipe)
        self.chunks: dict[torch.Size, int] = {}  # of all latents -> frames that the decoder takes at once
        self._step = StaticGraph("the denoising step", partial(denoising_step, pipe.unet), **options)
        self._decode = StaticGraph("the VAE decoder", partial(decode_pictures, pipe.vae), **options)
        # Every prompt is encoded alone and padded to one length, so the text encoder has one shape.
        pipe.text_encoder.compile(fullgraph=True, dynamic=False, mode=mode)

    @property
    def step(self) -> StaticGraph:
        """`step.denoising_step` with the UNet bound."""
        self._taken.check(self._pipe)
        return self._step

    @property
    def decode(self) -> StaticGraph:
        """`step.decode_pictures` with the VAE bound."""
        self._taken.check(self._pipe)
        return self._decode

    @contextlib.contextmanager
    def declaring(self) -> Iterator[None]:
        """Within it every shape that comes is compiled."""
        self._step.open = self._decode.open = True
        try:
            yield
        finally:
            self._step.open = self._decode.open = False


def compile_pipeline(
    pipe: Compilable,
    buckets: Iterable[Bucket],
    *,
    saved: str | os.PathLike | None = None,
    mode: str = "default",
    cuda_graphs: bool = True,
    undeclared: Undeclared = "eager",
) -> CompileReport:
    """What `VideoMakerPipeline.compile` does.

    Args:
        pipe: in its final place and dtype, with its weights loaded.
        buckets: the shapes to compile for.
        saved: a folder of `artifacts.save`. What does not fit this machine is refused with the reason in the report,
            and compiled. The folder holds machine code: give only one that you made.
        mode: of `torch.compile`: `"default"`, or `"max-autotune-no-cudagraphs"` to try more kernels for longer.
        cuda_graphs: whether to capture on an NVIDIA GPU.
        undeclared: `"eager"`, `"compile"` or `"error"`: what becomes of shapes outside the buckets.

    Raises:
        InputError: the pipeline cannot be compiled, or `buckets` holds something else; what was compiled before stays.
    """
    buckets = _checked(buckets, pipe.vae_scale_factor)
    start = time.perf_counter()
    found = "not given" if saved is None else artifacts.load(saved, pipe, mode)
    with _as_before_on_failure(pipe):
        pipe.compiled = None  # what was compiled before does not rehearse
        pipe.compiled = CompiledPipeline(pipe, mode=mode, cuda_graphs=cuda_graphs, undeclared=undeclared)
        for bucket in buckets:
            logger.info("compiling for %s", bucket)
            with pipe.compiled.declaring():
                _rehearse(pipe, bucket)
    return CompileReport(buckets, time.perf_counter() - start, found)


def _checked(buckets: Any, factor: int) -> tuple[Bucket, ...]:
    """Each bucket once; all are looked at before the first is compiled, which takes minutes."""
    found = list(buckets) if isinstance(buckets, Iterable) else [buckets]
    if not all(isinstance(bucket, Bucket) for bucket in found):
        raise InputError(f"buckets are {str(found)[:60]}; give a list of Bucket")
    for bucket in found:
        for name in ("height", "width"):
            if (value := getattr(bucket, name)) % factor:
                raise InputError(f"{name} of a bucket is {value}; it must be a positive multiple of {factor}")
    return tuple(dict.fromkeys(found))


@contextlib.contextmanager
def _as_before_on_failure(pipe: Compilable) -> Iterator[None]:
    before, encode = pipe.compiled, pipe.text_encoder._compiled_call_impl  # torch has no way to take compile() back
    try:
        yield
    except BaseException:
        pipe.compiled, pipe.text_encoder._compiled_call_impl = before, encode
        raise


def _rehearse(pipe: Compilable, bucket: Bucket) -> None:
    """Makes a video of noise through every graph that a video of this shape can need."""
    wanted = pipe.approximations
    cut_off = wanted.guidance_until < 1
    factor, channels = pipe.vae_scale_factor, pipe.unet.config.in_channels
    size = (bucket.height // factor, bucket.width // factor)
    pipe.approximations = replace(wanted, guidance_until=0.5 if cut_off else 1.0)
    # Where guidance ends the inner blocks are computed anew; one of the two steps after that uses them again.
    reused, cut = (2, 6) if wanted.reuse_every > 1 else (1, 2)
    try:
        pipe(
            ["warm-up"] * bucket.batch,
            reference_image_embeds=torch.zeros(1, channels, bucket.num_references, *size),
            num_frames=bucket.num_frames,
            height=bucket.height,
            width=bucket.width,
            num_inference_steps=cut if cut_off else reused,
            guidance_scale=2.0 if bucket.guidance else 1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
    finally:
        pipe.approximations = wanted


def _check(pipe: Compilable, undeclared: str) -> None:
    if undeclared not in ("eager", "compile", "error"):
        raise InputError(f"undeclared is {undeclared!r}; choose eager, compile or error")
    for name in ("unet", "vae", "text_encoder"):
        if hasattr(getattr(pipe, name), "_hf_hook"):
            raise InputError(f"the {name} is offloaded; a compiled pipeline needs its weights in one place")
    config = pipe.unet.config
    if config.addition_embed_type or config.encoder_hid_dim_type:
        raise InputError("this UNet takes more than text and time (SDXL, an IP-Adapter); compile takes SD 1.5 alone")
