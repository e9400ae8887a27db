"""Every variant of the attention kernels, as a launch would compile it; needs no GPU."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from videomaker.kernels.pisa import backward, forward, launch, plans, primitives
from videomaker.kernels.pisa.configs import Config, table_configs
from videomaker.kernels.pisa.plans import FP32_POINTERS, Geometry

HEADS = 8
TYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
LAYOUTS = ("separate", "fused")  # q, k and v as tensors of their own, or views of one projection
# Tokens are multiples of the first config's tiles, else of the second's or third's, else of none.
TILES = ("whole", "whole, small", "whole, smallest", "partial")
MODES = ("pisa", "reference", "reference + bias")  # the reference asks as well; is attended to alone; with a bias


@dataclass(frozen=True)
class Variant:
    """One kernel with all that its machine code depends on, the GPU aside. `config` None: the table's."""

    kernel: str  # of configs.KERNELS, or "row_statistics" or "sum_groups"
    head_dim: int
    dtype: torch.dtype = torch.bfloat16
    mode: str = "pisa"
    tiles: str = "whole"
    split: bool = False
    layout: str = "separate"
    config: Config | None = None
    large_strides: bool = False  # a tile's rows lie beyond 2**31 elements

    def __str__(self) -> str:
        flags = f"{self.tiles} tiles{', split' * self.split}, {self.layout}"
        large = ", large strides" * self.large_strides
        return f"{self.kernel} D={self.head_dim} {TYPE_NAMES[self.dtype]} {self.mode}, {flags}{large}"

    @property
    def function(self) -> triton.JITFunction:
        """The kernel's function."""
        if self.kernel.startswith("forward"):
            return forward.pisa_forward
        return primitives.sum_groups if self.kernel == "sum_groups" else getattr(backward, f"pisa_{self.kernel}")

    @property
    def geometry(self) -> Geometry:
        """A call that leads to this variant."""
        tokens = 4095 if self.tiles == "partial" else 4096
        width = 2**26 if self.large_strides else HEADS * self.head_dim * (3 if self.layout == "fused" else 1)
        stride = (17 * tokens * width, width, self.head_dim)
        return Geometry(
            device=torch.device("cpu"),
            dtype=self.dtype,
            num_frames=16,
            num_tokens=tokens,
            num_ref_tokens=tokens,
            shape=(2, 17 * tokens, HEADS, self.head_dim),
            strides=(stride,) * 5,
            ref_batch=2,
            ref_queries=self.mode == "pisa",
            ref_bias=self.mode == "reference + bias",
            precision="ieee",
        )

    def chosen(self, family: str) -> Config:
        """The configuration for a family of GPUs."""
        if self.kernel in ("row_statistics", "sum_groups"):
            return Config(64, 0)
        configs = table_configs(self.kernel, family, self.head_dim, self.dtype)
        return self.config or configs[min(TILES.index(self.tiles), len(configs) - 1)]

    def exists(self, family: str) -> bool:
        """Whether any number of tokens leads to it: small tiles are another variant only where they are smaller."""
        if self.tiles in ("whole", "partial"):
            return True
        return self._block(family) < replace(self, tiles=TILES[TILES.index(self.tiles) - 1])._block(family)

    def _block(self, family: str) -> int:
        config = self.chosen(family)
        return max(config.block_q, config.block_k)

    def constants(self, family: str) -> dict[str, object]:
        """Compile-time arguments, as plans.py makes them."""
        config, options = self.chosen(family), {"is_split": self.split}
        if self.kernel == "sum_groups":
            return {"BLOCK": launch.SUM_BLOCK}
        if self.kernel == "row_statistics":
            return plans.statistics_constants(self.geometry)
        if self.kernel.startswith("forward"):
            constants = plans.forward_constants(
                self.geometry, config, save=self.kernel == "forward_training", **options
            )
        else:
            constants = plans.backward_constants(self.geometry, config, **options)
        return {name: value for name, value in constants.items() if name not in config.launch_options()}

    def source(self, family: str) -> ASTSource:
        """What a launch compiles: pointers known to be aligned, integers not specialised."""
        constants = self.constants(family)
        if not self.geometry.ref_bias:
            constants["ref_bias"] = None
        names = self.function.arg_names
        signature = {name: self._kind(name, constants) for name in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"}
        constants = {name: value for name, value in constants.items() if name in names}
        return ASTSource(self.function, signature, constants, aligned)

    def _kind(self, name: str, constants: dict[str, object]) -> str:
        if name in constants:
            return "constexpr"
        if name.startswith("scale"):
            return "fp32"
        if name.startswith(("num_", "stride_")) or name == "size":
            return "i32"
        return "*fp32" if name in FP32_POINTERS else f"*{TYPE_NAMES[self.dtype]}"


def attention_variants(
    head_dim: int, dtype: torch.dtype = torch.bfloat16, layouts: tuple[str, ...] = LAYOUTS
) -> Iterator[Variant]:
    """Every variant of one head dim and dtype; of the small tiles, not all families have them (`exists`)."""
    for layout, mode, tiles in itertools.product(layouts, MODES, TILES):
        options = {"head_dim": head_dim, "dtype": dtype, "layout": layout, "mode": mode, "tiles": tiles}
        # Without queries of the reference only its gradient is ever a sum of shares.
        splits = (False, True) if mode == "pisa" else (False,)
        for kernel, split in itertools.product(("forward", "forward_training", "backward_query"), splits):
            yield Variant(kernel, split=split, **options)
        for split in (False, True):
            yield Variant("backward_key", split=split, **options)
    for mode in MODES[:2]:
        yield Variant("row_statistics", head_dim, dtype, mode)
    yield Variant("sum_groups", head_dim, dtype)


@cache
def _backend(target: GPUTarget) -> object:
    return make_backend(target)


def front_end(variant: Variant, target: GPUTarget, family: str) -> str | None:
    """What Triton's front end (Python to TTIR) has against a variant, in one line; None if nothing."""
    backend = _backend(target)
    config = variant.chosen(family)
    options = backend.parse_options({"num_warps": config.num_warps, "num_stages": config.num_stages})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    try:
        variant.source(family).make_ir(
            target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context
        )
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    return None
