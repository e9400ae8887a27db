"""Pages and pictures of the site that live elsewhere in the repository."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "log.md": "bench/LOG.md",
    "default-model.md": "videomaker/default_model/README.md",
}
PICTURES = {
    "images/demo.gif": "bench/results/demo.gif",
    "images/demo.png": "bench/results/demo.png",
    "images/ablation.png": "bench/results/ablation/ablation.png",
}
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files from elsewhere."""
    for name, source in {**PAGES, **PICTURES}.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    known = {file.src_uri for file in files}
    config.nav = _that_exist(config.nav, known)
    listed = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    if others := sorted(name for name in known if name.endswith(".md") and name not in listed):
        config.nav.append({"More": others})
    return files


def _that_exist(nav: list, known: set[str]) -> list:
    """The navigation without pages that are not written yet, and without groups that are empty then."""
    kept = []
    for entry in nav:
        title, value = next(iter(entry.items()))
        value = _that_exist(value, known) if isinstance(value, list) else value if value in known else None
        if value:
            kept.append({title: value})
    return kept


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links are those of the repository, where its pages are read too; on the site they lead to its own pages.

    What the site does not have becomes, on a page that lives elsewhere, a link to its front; in the manual it is an
    error, as every link that leads nowhere.
    """
    source = page.file.src_uri
    here = (ROOT / PAGES.get(source, f"docs/{source}")).parent
    known = {(ROOT / path).resolve(): name for name, path in {**PAGES, **PICTURES}.items()}
    if source in PAGES:
        known |= {path.resolve(): path.name for path in (ROOT / "docs").glob("*.md")}

    def relink(match: re.Match[str]) -> str:
        name = known.get((here / match[1]).resolve(), "index.md" if source in PAGES else match[1])
        return f"]({name}{match[2] or ''})"

    return _LINK.sub(relink, markdown)
