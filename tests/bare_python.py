"""A Python with torch, Triton and numpy and nothing else, as machines with a GPU often have: `environment(folder)`."""

import os
from pathlib import Path

# In a folder of PYTHONPATH, Python runs a file of this name before anything else.
HOOK = """
import importlib.machinery as machinery, sys

PRESENT = {"torch", "torchgen", "functorch", "triton", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe",
           "fsspec", "filelock", "typing_extensions", "setuptools", "_distutils_hack", "videomaker"}


class Present(machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        installed = spec is not None and "site-packages" in (spec.origin or "")
        return None if installed and name.partition(".")[0] not in PRESENT else spec


sys.meta_path[sys.meta_path.index(machinery.PathFinder)] = Present
"""


def environment(folder: Path) -> dict[str, str]:
    """Variables under which Python finds no other package; the hook lies in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(HOOK)
    return os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
