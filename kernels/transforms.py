"""What `torch.func` may do with the attention operators: vmap, gradients of each sample, and no forward mode.

An operator here takes tensors whose first dimension is the batch, then options, and returns such tensors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Rule = Callable[..., Any]
PLAIN = (Tensor, torch.nn.Parameter)


def differentiable(operator: Any, setup_context: Rule, backward: Rule) -> Callable[..., Any]:
    """`operator` with a gradient for autograd, for `torch.func`, and by the shortest way in eager code.

    The operator is what compilers, transforms and modes see. Where none looks, its Python function is called by itself:
    the dispatcher's share of a call is a few times what the kernels of a small layer take on a GPU.
    """
    operator.register_autograd(backward, setup_context=setup_context)
    # A custom operator's own gradient is unknown to `torch.func`; a Function that is known to it is slow to call.
    members = {
        "forward": staticmethod(lambda *arguments: operator(*arguments)),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "generate_vmap_rule": True,
    }
    transformed: Any = type("AttentionFunction", (torch.autograd.Function,), members)
    compute = operator._init_fn

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = compute(*arguments)
        setup_context(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    eager: Any = type("EagerAttentionFunction", (torch.autograd.Function,), members)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*arguments)
        if torch._C._are_functorch_transforms_active():
            return transformed.apply(*arguments)
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        if _is_watched(tensors):
            return operator(*arguments)
        if torch.is_grad_enabled() and any([x.requires_grad for x in tensors]):  # a list is quicker than a generator
            return eager.apply(*arguments)
        return compute(*arguments)

    return call


def differentiable_once(operator: Any, name: str) -> Callable[..., Any]:
    """`operator`, which is a gradient itself; its own is refused in the name of the attention that was called."""

    def refuse(ctx: Any, *_: object) -> None:
        raise NotImplementedError(f"{name} has no second derivative: use backend='naive'")

    return differentiable(operator, lambda ctx, inputs, output: None, refuse)


def _is_watched(tensors: list[Tensor]) -> bool:
    """Whether a mode, a trace, a profiler or a tensor that is not a plain one wants to see the operator."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch.autograd.profiler._is_profiler_enabled
        or any([type(x) not in PLAIN or x.is_meta for x in tensors])
        # The gradient that comes first, under `torch.autograd.grad(..., is_grads_batched=True)`.
        or torch._C._functorch.is_legacy_batchedtensor(tensors[0])
    )


def is_readable(x: Tensor) -> bool:
    """Whether a tensor's numbers are there to be looked at: no compiler, transform or mode stands before them."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or type(x) not in PLAIN
    )


def register_batching(operator: Any) -> None:
    """vmap of an operator: one call whose batch is the batch of all samples."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[object, object]:
        size = info.batch_size
        folded = (fold(x, dim, size) for x, dim in zip(arguments, in_dims, strict=True))
        results = operator(*folded)
        results = results if isinstance(results, tuple) else (results,)
        unfolded = tuple(x.unflatten(0, (size, x.shape[0] // size)) for x in results)
        return unfolded, (0,) * len(unfolded)

    operator.register_vmap(rule)


def refuse_forward_mode(*tensors: Tensor) -> None:
    """Raises NotImplementedError for a tensor with a tangent, which an operator would drop without a word."""
    if torch.compiler.is_compiling():
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            "forward-mode derivatives (torch.func.jvp, jacfwd) pass through backend='naive' only: choose it"
        )


def gradient_memory(x: Tensor, needed: bool = True) -> Tensor:
    """Contiguous memory for a gradient; for one that nobody needs only a batch, which vmap folds."""
    return x.new_empty(x.shape if needed else (x.shape[0], 0))


def fold(x: Any, dim: int | None, size: int) -> Any:
    """`[…, size, …]` -> `[size·B, …]`; the same samples again where `x` has no such dimension."""
    if not isinstance(x, Tensor):
        return x
    x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)
