"""The namespace of the operators: the project's, or the one that a Hugging Face `kernels` build gives each version."""

try:
    from ._ops import add_op_namespace_prefix as operator_name  # written by such a build
except ImportError:

    def operator_name(name: str) -> str:
        """`name` with its namespace, as `torch.library` takes it."""
        return f"videomaker::{name}"


__all__ = ["operator_name"]
