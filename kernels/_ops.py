"""The namespace of the operators. Each Hugging Face `kernels` build has a file of this name of its own."""


def add_op_namespace_prefix(op_name: str) -> str:
    """`op_name` with its namespace, as `torch.library` takes it."""
    return f"videomaker::{op_name}"
