"""Random shapes of `reference_attention` against the repeated form in float64: `python bench/fuzz.py --count 1000`.

Every backend that can run here (the Triton kernels in their interpreter without a GPU, a dtype a shape, for it is
slow), output and gradients, by the rule of videomaker.kernels.accuracy; odd lengths, any strides, references stored
once and expanded, samples that leave it out, memory filled with NaN beforehand, and the same bits in a second run. A
failure prints its seed. With `--json FILE` a run that was stopped goes on where it was, on the same commit; "left"
counts what it has not begun. On a GPU compiling takes nearly all of the time, so `--hold 12` lets twelve seeds in a row
share head dim, heads, layouts and what else the kernels are compiled for.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

from measure import environment
from torch import Tensor
from videomaker.kernels import available_backends, reference_attention
from videomaker.kernels.accuracy import error_band, failures, largest_score, poisoned_memory

HEAD_DIMS = (1, 8, 16, 24, 37, 40, 64, 80)
# The fields of a call that decide what the kernels are compiled for.
HELD = ("batch", "heads", "ref_batch", "layouts", "use_reference", "bias")
NAMES = ("out", "dq", "dk", "dv", "dk_ref", "dv_ref")
DTYPES = {"naive": (torch.float64, torch.float32), "sdpa": (torch.float64, torch.float32, torch.bfloat16)}
TRITON_DTYPES = (torch.float32, torch.float16)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "separate": lambda x: x.contiguous(),
    "fused": lambda x: torch.stack([x, x, x], dim=2).unbind(2)[1],
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch last": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "padded": lambda x: torch.nn.functional.pad(x, (1, 3))[..., 1:-3],
}


@dataclass(frozen=True)
class Draw:
    """One random call."""

    seed: int
    batch: int
    num_frames: int
    tokens: int
    num_ref_tokens: int
    heads: int
    head_dim: int
    ref_batch: int
    layouts: tuple[str, str]  # of the frames' tensors and of the reference's
    use_reference: tuple[bool, ...] | None
    bias: float | None
    size: float

    @classmethod
    def of(cls, seed: int, hold: int = 1) -> "Draw":
        """The call that belongs to a seed; `hold` seeds in a row share what the kernels are compiled for."""
        if hold > 1:
            first = cls.of(seed - seed % hold)
            held = {name: getattr(first, name) for name in HELD}
            return replace(cls.of(seed), head_dim=HEAD_DIMS[seed // hold % len(HEAD_DIMS)], **held)
        draw = random.Random(seed)
        batch, tokens = draw.randint(1, 2), draw.choice((draw.randint(1, 40), draw.randint(1, 80)))
        return cls(
            seed=seed,
            batch=batch,
            num_frames=draw.randint(1, 3),
            tokens=tokens,
            num_ref_tokens=draw.choice((0, 1, tokens, tokens, draw.randint(1, 70))),
            heads=draw.randint(1, 2),
            head_dim=draw.choice(HEAD_DIMS),
            ref_batch=draw.choice((1, batch)),
            layouts=(draw.choice(list(LAYOUTS)), draw.choice([*LAYOUTS, "expanded"])),
            use_reference=draw.choice((None, tuple(draw.random() < 0.5 for _ in range(batch)))),
            bias=draw.choice((None, 0.7, -2.0)),
            size=draw.choice((0.1, 1.0, 1.0, 3.0)),
        )

    def tensors(self) -> list[Tensor]:
        """q, k, v, k_ref, v_ref and the output's gradient, in float64 with values of bfloat16."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(batch: int, tokens: int, size: float = 1.0) -> Tensor:
            x = torch.randn(batch, tokens, self.heads, self.head_dim, generator=generator) * size
            return x.bfloat16().double()

        frames = [normal(self.batch, self.num_frames * self.tokens, self.size) for _ in range(3)]
        reference = [normal(self.ref_batch, self.num_ref_tokens, self.size) for _ in range(2)]
        return [*frames, *reference, normal(self.batch, self.num_frames * self.tokens)]

    def options(self, device: torch.device) -> dict[str, object]:
        """Keyword arguments of the call."""
        use = None if self.use_reference is None else torch.tensor(self.use_reference, device=device)
        return {"num_frames": self.num_frames, "use_reference": use, "reference_bias": self.bias}


@dataclass(frozen=True)
class Video:
    """One video in the usual form, the reference repeated for each frame: `[F, N, H, D]`, keys `[F, N + M, H, D]`."""

    q: Tensor
    k: Tensor
    v: Tensor
    weights: Tensor  # [F, H, N, N + M]

    @classmethod
    def all_of(
        cls, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, *, num_frames: int,
        use_reference: Tensor | None, reference_bias: float | None,
    ) -> "Iterator[Video]":  # fmt: skip
        """Every video of a call; one that leaves the reference out has M = 0."""
        for video in range(len(q)):
            q_f, k_f, v_f = (x[video].unflatten(0, (num_frames, -1)) for x in (q, k, v))
            mask = q.new_zeros(k_f.shape[1])
            if use_reference is None or use_reference[video]:
                k_r, v_r = (x[video % len(x)].repeat(num_frames, 1, 1, 1) for x in (k_ref, v_ref))
                mask = torch.cat([mask, q.new_full((k_r.shape[1],), reference_bias or 0.0)])
                k_f, v_f = torch.cat([k_f, k_r], dim=1), torch.cat([v_f, v_r], dim=1)
            scores = torch.einsum("fqhd,fkhd->fhqk", q_f, k_f) * q.shape[-1] ** -0.5 + mask
            yield cls(q_f, k_f, v_f, scores.softmax(-1))


def repeated(*tensors: Tensor, **options: object) -> Tensor:
    """The usual form: for each video repeat the reference, concatenate, one softmax over a mask."""
    videos = Video.all_of(*tensors, **options)
    return torch.stack([torch.einsum("fhqk,fkhd->fqhd", x.weights, x.v).flatten(0, 1) for x in videos])


def magnitudes(tensors: list[Tensor], options: dict[str, object]) -> list[float]:
    """The size that each result would have if what it sums had random signs: the root of the terms' squares, summed.

    Relative to a result, an error has no meaning where the terms cancel: with one key the weight is one and
    `dP - delta` of the softmax's gradient is a difference of two equal numbers, so dq is exactly zero and what a kernel
    leaves is a rounding of either. Where terms do not cancel, this is the result's own size or less.
    """
    *inputs, grad = tensors
    sums = [torch.zeros_like(x) for x in (grad, *inputs)]
    for video, x in enumerate(Video.all_of(*inputs, **options)):
        g = grad[video].unflatten(0, (len(x.q), -1))
        d_weights = torch.einsum("fqhd,fkhd->fhqk", g, x.v)
        delta = (x.weights * d_weights).sum(-1, keepdim=True)
        weights = x.weights.square()
        d_scores = weights * (d_weights.square() + delta.square()) / x.q.shape[-1]
        sums[0][video] = torch.einsum("fhqk,fkhd->fqhd", weights, x.v.square()).flatten(0, 1)
        sums[1][video] = torch.einsum("fhqk,fkhd->fqhd", d_scores, x.k.square()).flatten(0, 1)
        d_keys = torch.einsum("fhqk,fqhd->fkhd", d_scores, x.q.square())
        d_values = torch.einsum("fhqk,fqhd->fkhd", weights, g.square())
        for place, terms in ((2, d_keys), (3, d_values)):
            own, shared = terms.tensor_split((x.q.shape[1],), dim=1)
            sums[place][video] = own.flatten(0, 1)
            if shared.shape[1]:
                sums[place + 2][video % len(sums[place + 2])] += shared.sum(0)
    return [x.sum().sqrt().item() for x in sums]


def evaluate(attention: Callable[..., Tensor], tensors: list[Tensor], options: dict[str, object]) -> list[Tensor]:
    """The output and five gradients; zeros for a tensor that the output does not depend on."""
    *inputs, grad = tensors
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = attention(*inputs, **options)
    gradients = torch.autograd.grad(out, inputs, grad, allow_unused=True)
    return [out.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True))]


def check(draw: Draw, backends: dict[str, tuple[torch.dtype, ...]], device: torch.device) -> dict[str, list[str]]:
    """What is wrong with the call, by backend and dtype; nothing where it is right."""
    tensors = [x.to(device) for x in draw.tensors()]
    options = draw.options(device)
    exact, sizes = evaluate(repeated, tensors, options), magnitudes(tensors, options)
    wrong = {}
    for backend, dtypes in backends.items():
        is_slow = backend == "triton" and device.type == "cpu"
        for dtype in dtypes[draw.seed % len(dtypes) :][:1] if is_slow else dtypes:
            arranged = _arranged(draw, [x.to(dtype) for x in tensors])
            usual = _errors(evaluate(repeated, arranged, options), exact, sizes)
            band = error_band(dtype, _largest(tensors) + abs(draw.bias or 0.0))
            run = lambda *x, backend=backend, **o: reference_attention(*x, backend=backend, **o)
            with poisoned_memory():
                found = evaluate(run, arranged, options)
            again = evaluate(run, arranged, options)
            why = failures(_errors(found, exact, sizes), usual, band)
            why += [f"{n}: other bits" for n, x, y in zip(NAMES, found, again, strict=True) if not torch.equal(x, y)]
            wrong[f"{backend}, {str(dtype)[6:]}"] = why
    return wrong


def _arranged(draw: Draw, tensors: list[Tensor]) -> list[Tensor]:
    own, reference = draw.layouts
    q, k, v, k_ref, v_ref, grad = tensors
    k_ref, v_ref = ((_expanded(x, draw) if reference == "expanded" else LAYOUTS[reference](x)) for x in (k_ref, v_ref))
    return [*(LAYOUTS[own](x) for x in (q, k, v)), k_ref, v_ref, grad]


def _expanded(x: Tensor, draw: Draw) -> Tensor:
    return x.expand(draw.batch, -1, -1, -1) if draw.ref_batch == 1 else x


def _errors(found: list[Tensor], exact: list[Tensor], sizes: list[float]) -> dict[str, float]:
    """Errors relative to the result, or to what it sums where that is larger; infinite for a NaN.

    The gradient of an expanded reference is the sum over the videos, where it is exact zero too.
    """
    pairs = zip(NAMES, found, exact, sizes, strict=True)
    return {
        name: _error(x.sum(0, keepdim=True) if len(x) > len(y) else x, y, size)
        for name, x, y, size in pairs
        if y.numel()
    }


def _error(x: Tensor, exact: Tensor, size: float) -> float:
    size = max(size, torch.linalg.vector_norm(exact).item())
    error = torch.linalg.vector_norm(x.double() - exact).item()
    if size == 0:  # nothing was summed: the reference is left out
        return 0.0 if error == 0 else math.inf
    return error / size if math.isfinite(error) else math.inf


def _largest(tensors: list[Tensor]) -> float:
    q, k, _, k_ref, *_ = tensors
    scale = q.shape[-1] ** -0.5
    return max(largest_score(q, x, scale) for x in (k, k_ref) if x.numel())


def backends_here(names: list[str], device: torch.device) -> dict[str, tuple[torch.dtype, ...]]:
    """The backends asked for that can run, with the dtypes to try."""
    reasons = available_backends(torch.empty(1, 1, 1, 8, device=device))
    dtypes = DTYPES | {"triton": (*TRITON_DTYPES, torch.bfloat16) if device.type == "cuda" else TRITON_DTYPES}
    for name in (name for name in names if reasons[name]):
        print(f"{name} is left out: {reasons[name]}")
    return {name: dtypes[name] for name in names if reasons[name] is None}


class Progress:
    """What is known of the shapes so far, in a file where one is given."""

    def __init__(
        self, path: Path | None, first: int, device: torch.device, *,
        count: int = 1000, hold: int = 1, backends: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.path, self.first, self.count = path, first, count
        self.document = {
            "environment": environment(device), "first": first, "hold": hold, "backends": sorted(backends),
            "shapes": 0, "left": count, "checks": {}, "failures": [],
        }  # fmt: skip
        if path and path.exists():
            found = json.loads(path.read_text())
            same = all(
                found["environment"][x] == self.document["environment"][x] for x in ("commit", "torch", "triton")
            )
            if not same or any(found.get(x) != self.document[x] for x in ("first", "hold", "backends")):
                raise SystemExit(
                    f"{path} is of another commit, version, first seed, --hold or other backends: give another file"
                )
            self.document = found

    @property
    def next_seed(self) -> int:
        """The first that is not checked."""
        return self.first + self.document["shapes"]

    def add(self, draw: Draw, wrong: dict[str, list[str]]) -> None:
        """One shape's outcome."""
        self.document["shapes"] += 1
        self.document["left"] = max(0, self.count - self.document["shapes"])
        for what, why in wrong.items():
            self.document["checks"][what] = self.document["checks"].get(what, 0) + 1
            for reason in why:
                self.document["failures"].append({"seed": draw.seed, "backend": what, "why": reason})
                print(f"FAILED {draw}: {what}: {reason}", flush=True)
        if self.path:
            temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(self.document, indent=1) + "\n")
            temporary.replace(self.path)


def main() -> int:
    """Checks `--count` seeds from `--first` on; exit code 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no shape is begun")
    parser.add_argument("--hold", type=int, default=1, metavar="N", help="seeds in a row that share their kernels")
    parser.add_argument(
        "--backends", nargs="+", choices=["naive", "sdpa", "triton"], default=["naive", "sdpa", "triton"]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep what is known here after every shape; goes on")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backends, start = backends_here(options.backends, device), time.monotonic()
    if not backends:
        raise SystemExit("none of the backends can run here: nothing is checked")
    progress = Progress(options.json, options.first, device, count=options.count, hold=options.hold, backends=backends)
    for seed in range(progress.next_seed, options.first + options.count):
        if time.monotonic() - start > options.seconds:
            print("time was up")
            break
        draw = Draw.of(seed, options.hold)
        progress.add(draw, check(draw, backends, device))
        if progress.document["shapes"] % 50 == 0:
            print(f"{progress.document['shapes']} shapes, {time.monotonic() - start:.0f} s", flush=True)
    done, wrong = progress.document["shapes"], progress.document["failures"]
    failed = len({failure["seed"] for failure in wrong})
    print(f"{done} shapes by {', '.join(backends)}: {failed} failed")
    return int(failed > 0 or done == 0)


if __name__ == "__main__":
    sys.exit(main())
