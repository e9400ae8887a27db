"""Other models' attention over a reference: the usual repeated form against videomaker.attention's, a layer each.

    python bench/attn.py --adopters                  on a GPU: SD 1.5 and SDXL layers at full size
    python bench/attn.py --adopters --device cpu     small ones

The usual forms are what public code does: the bank, or the first image, repeated for every frame or image and
concatenated to its own tokens. Ours is held against the usual form in float64 before it is timed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from diffusers.models.attention_processor import Attention
from measure import measure, peak_memory
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from videomaker.attention import (
    PlainAttnProcessor,
    ReferenceAttnProcessor,
    ReferenceBank,
    SharedStyle,
    StyleAlignedAttnProcessor,
)

NAME = "layer"  # of the bank's entry


def attend(attn: Attention, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's attention of projected rows `[rows, tokens, C]`, and the layer's output projection."""
    q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=attn.scale)
    return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


class UsualBankProcessor:
    """A ReferenceNet's read mode as it is usually written, on the keywords of `ReferenceBank`."""

    def __init__(self, name: str = NAME):
        self.name = name

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: object, reference_bank: Any = None, **kwargs: object
    ) -> Tensor:
        """Repeats the bank for every frame; videos without it are computed once more, alone."""
        x = hidden_states
        if reference_bank is None:
            return attend(attn, attn.to_q(x), attn.to_k(x), attn.to_v(x))
        frames, bank = reference_bank.num_frames, reference_bank.states[self.name]
        bank = bank.repeat(len(x) // frames // len(bank), 1, 1)
        repeated = bank.unsqueeze(1).repeat(1, frames, 1, 1).flatten(0, 1)  # [B·F, M, C]
        joined = torch.cat([x, repeated], dim=1)
        out = attend(attn, attn.to_q(x), attn.to_k(joined), attn.to_v(joined))
        if reference_bank.use_reference is None:
            return out
        alone = ~reference_bank.use_reference.repeat_interleave(frames)
        own = x[alone]
        out = out.clone()
        out[alone] = attend(attn, attn.to_q(own), attn.to_k(own), attn.to_v(own))
        return out


class UsualStyleProcessor:
    """StyleAligned's shared attention as it is usually written, on the keywords of `SharedStyle`."""

    def __init__(self, score_shift: float = 0.0):
        self.score_shift = score_shift

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: object, shared_style: SharedStyle, **kwargs: object
    ) -> Tensor:
        """Normalises queries and keys to the first image's statistics, repeats its keys and values for every image."""
        images, tokens = shared_style.num_images, hidden_states.shape[1]
        q, k, v = (layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
        q, k = (self._normalised(x, images) for x in (q, k))
        k, v = (torch.cat([x, self._first(x, images)], dim=1) for x in (k, v))
        shift = torch.zeros(2 * tokens, dtype=q.dtype, device=q.device)
        shift[tokens:] = self.score_shift
        return attend(attn, q, k, v, shift.expand(tokens, -1) if self.score_shift else None)

    def _first(self, x: Tensor, images: int) -> Tensor:
        grouped = x.unflatten(0, (-1, images))
        return grouped[:, :1].expand_as(grouped).flatten(0, 1)

    def _normalised(self, x: Tensor, images: int) -> Tensor:
        mean, deviation = x.mean(dim=1, keepdim=True), (x.var(dim=1, keepdim=True) + 1e-5).sqrt()
        return (x - mean) / deviation * self._first(deviation, images) + self._first(mean, images)


class UsualPlainProcessor:
    """Self-attention by torch."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: object, reference_bank: object = None, **kwargs: object
    ) -> Tensor:
        """Every row for itself, whatever the bank holds."""
        return attend(attn, attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))


@dataclass(frozen=True)
class Layer:
    """One self-attention of a model: `groups` videos (or halves of a batch) of `rows` frames (or images)."""

    model: Literal["ReferenceNet", "StyleAligned", "plain"]
    groups: int
    rows: int
    tokens: int
    channels: int
    num_heads: int

    def __str__(self) -> str:
        return f"{self.model}, {self.groups} × {self.rows} rows of {self.tokens} tokens, {self.channels} channels"

    def inputs(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Hidden states of the rows, and of one reference."""
        x = torch.randn(self.groups * self.rows, self.tokens, self.channels, device=device)
        return x.to(dtype), torch.randn(1, self.tokens, self.channels, device=device).to(dtype)

    def keywords(self, reference: Tensor) -> dict[str, Any]:
        """What the call carries: guidance's first half has no reference."""
        if self.model == "ReferenceNet":
            use = torch.arange(self.groups, device=reference.device) >= self.groups // 2
            return ReferenceBank({NAME: reference}).read(num_frames=self.rows, use_reference=use)
        return SharedStyle(self.rows).as_kwargs() if self.model == "StyleAligned" else {}

    def processors(self) -> dict[str, Any]:
        """The usual form and ours."""
        return {
            "ReferenceNet": {"usual": UsualBankProcessor(), "ours": ReferenceAttnProcessor(NAME)},
            "StyleAligned": {"usual": UsualStyleProcessor(), "ours": StyleAlignedAttnProcessor()},
            "plain": {"usual": UsualPlainProcessor(), "ours": PlainAttnProcessor()},
        }[self.model]


def layers(device: torch.device) -> list[Layer]:
    """SD 1.5 at 512 × 512 with 24 frames and guidance, SDXL at 1024 × 1024 with four images; small ones on a CPU."""
    if device.type == "cpu":
        return [
            Layer("ReferenceNet", 2, 8, 256, 320, 8),
            Layer("StyleAligned", 2, 4, 256, 640, 10),
            Layer("plain", 1, 8, 256, 320, 8),
        ]
    return [
        *(Layer("ReferenceNet", 2, 24, tokens, width, 8) for tokens, width in ((4096, 320), (1024, 640), (256, 1280))),
        *(Layer("StyleAligned", 2, 4, tokens, width, width // 64) for tokens, width in ((4096, 640), (1024, 1280))),
        *(Layer("plain", 2, 16, tokens, width, 8) for tokens, width in ((4096, 320), (1024, 640), (256, 1280))),
    ]


class BytesMade(TorchDispatchMode):
    """Counts the bytes of tensors that operators make, views and results in place not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Runs the operator and adds what is new in its results."""
        results = operator(*args, **(kwargs or {}))
        known = {
            x.untyped_storage().data_ptr() for x in torch.utils._pytree.tree_leaves((args, kwargs)) if _is_tensor(x)
        }
        for x in torch.utils._pytree.tree_leaves(results):
            if _is_tensor(x) and x.untyped_storage().data_ptr() not in known:
                self.total += x.untyped_storage().nbytes()
        return results


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


def run(options: argparse.Namespace, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One record for each layer, form and direction, printed as a table."""
    print(
        f"{'':<8}{'form':<7}{'median ms':>10}{'p20':>9}{'p80':>9}{'peak MiB':>10}{'MB made':>9}{'never made':>11}"
        f"{'ours is':>9}"
    )
    records: list[dict[str, Any]] = []
    for layer in layers(options.device):
        print(layer)
        found = run_layer(layer, dtype, options)
        records += found
        for r in found:
            print(
                f"{r['direction']:<8}{r['form']:<7}{r['median_ms']:>10.2f}{r['p20_ms']:>9.2f}{r['p80_ms']:>9.2f}"
                f"{r['peak_mib']:>10.0f}{r['bytes_made'] / 1e6:>9.1f}{r['bytes_never_made'] / 1e6:>11.1f}"
                f"{r['our_speedup']:>8.2f}x"
            )
    return records


def run_layer(layer: Layer, dtype: torch.dtype, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Gate, then time, both forms of a layer."""
    device = options.device
    attn = Attention(layer.channels, heads=layer.num_heads, dim_head=layer.channels // layer.num_heads).to(
        device, dtype
    )
    x, reference = layer.inputs(dtype, device)
    forms = layer.processors()
    gate(attn, forms, layer, x, reference)
    records = []
    for direction in ("forward", "both"):
        calls = {form: call(attn, processor, layer, x, reference, direction) for form, processor in forms.items()}
        made = {}
        for form, attend_once in calls.items():
            with BytesMade() as counted:
                attend_once()
            made[form] = counted.total
        timings = {form: measure([each], device=device, seconds=options.seconds) for form, each in calls.items()}
        records += [
            {"layer": asdict(layer), "dtype": str(dtype).removeprefix("torch."), "form": form, "direction": direction}
            | {**asdict(timing), "peak_mib": peak_memory(calls[form], device), "bytes_made": made[form]}
            | {
                "bytes_never_made": made["usual"] - made[form],
                "our_speedup": timing.median_ms / timings["ours"].median_ms,
            }
            for form, timing in timings.items()
        ]
    return records


def call(
    attn: Attention, processor: Any, layer: Layer, x: Tensor, reference: Tensor, direction: str
) -> Callable[[], object]:
    """The layer with a processor: without autograd, or with the gradients of all that it takes."""
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return processor(attn, x, **layer.keywords(reference))

        return forward
    inputs = [x.detach().requires_grad_(), reference.detach().requires_grad_()]
    wanted = [inputs[0], *(inputs[1:] if layer.model == "ReferenceNet" else []), *attn.parameters()]

    def both() -> tuple[Tensor, ...]:
        out = processor(attn, inputs[0], **layer.keywords(inputs[1]))
        return torch.autograd.grad(out, wanted, torch.ones_like(out))

    return both


def gate(attn: Attention, forms: dict[str, Any], layer: Layer, x: Tensor, reference: Tensor) -> None:
    """Raises unless our output is at most twice as far from float64 as the usual form in the same dtype."""
    group = slice(-layer.rows, None)  # the last group has the reference
    with torch.no_grad():
        one = Layer(**asdict(layer) | {"groups": 1})
        found = {form: processor(attn, x[group], **one.keywords(reference)) for form, processor in forms.items()}
        exact = forms["usual"](copy.deepcopy(attn).double(), x[group].double(), **one.keywords(reference.double()))
    wrong = {form: float(torch.linalg.vector_norm(out.double() - exact)) for form, out in found.items()}
    if not wrong["ours"] <= 2 * wrong["usual"] + 4 * torch.finfo(x.dtype).eps * float(torch.linalg.vector_norm(exact)):
        raise ArithmeticError(f"{layer}: ours is {wrong['ours']:.3g} from float64, the usual form {wrong['usual']:.3g}")
