"""Lays kernels/ out as a Hugging Face `kernels` project and, since nothing needs a compiler, builds it.

    python kernels/hub/lay_out.py OUT

OUT then holds what kernel-builder takes (build.toml, flake.nix, CARD.md, torch-ext/videomaker_attention/) and what it
would make of that (build/torch-cpu, build/torch-cuda), which `kernels.get_local_kernel(Path("OUT"))` loads. The sources
have one copy, in kernels/; what is written here is never edited.

Format: https://github.com/huggingface/kernels, docs/source/kernel-requirements.md, edition 5.
"""

import argparse
import base64
import hashlib
import json
import shutil
import tomllib
from pathlib import Path

HUB = Path(__file__).resolve().parent
KERNELS = HUB.parent
NAMESPACE = """\
def add_op_namespace_prefix(op_name: str) -> str:
    return f"{identifier}::{{op_name}}"
"""


def sources() -> dict[str, bytes]:
    """The package's files by their place in it, without the namespace, which every build has of its own."""
    found = sorted(path for path in KERNELS.rglob("*.py") if HUB not in path.parents and path.name != "_ops.py")
    return {path.relative_to(KERNELS).as_posix(): path.read_bytes() for path in found}


def lay_out(place: Path) -> None:
    """Writes the project and its builds into `place`, which must be new or empty."""
    if place.exists() and any(place.iterdir()):
        raise FileExistsError(f"{place} is not empty: name a new folder")
    build, files = tomllib.loads((HUB / "build.toml").read_text()), sources()
    module = build["general"]["name"].replace("-", "_")
    unique = hashlib.sha256(b"".join(name.encode() + content for name, content in files.items())).hexdigest()[:7]
    write(place / "torch-ext" / module, files)
    for name in ("build.toml", "flake.nix", "CARD.md"):
        shutil.copy(HUB / name, place / name)
    (place / "build").mkdir()
    shutil.copy(HUB / "CARD.md", place / "build" / "README.md")
    for backend in build["general"]["backends"]:
        build_variant(
            place / "build" / f"torch-{backend}", build["general"], backend, f"_{module}_{backend}_{unique}", files
        )


def build_variant(place: Path, general: dict, backend: str, identifier: str, files: dict[str, bytes]) -> None:
    """One build: the files, the namespace of its operators, and its metadata."""
    files = {**files, "_ops.py": NAMESPACE.format(identifier=identifier).encode()}
    write(place, files)
    digests = {name: base64.b64encode(hashlib.sha256(files[name]).digest()).decode() for name in sorted(files)}
    metadata = {
        "name": general["name"],
        "id": identifier,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    (place / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def write(place: Path, files: dict[str, bytes]) -> None:
    """Writes files into a folder."""
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder")
    options = parser.parse_args()
    lay_out(options.out)
    print(f"{options.out}: torch-ext for kernel-builder, build for kernels.get_local_kernel")
