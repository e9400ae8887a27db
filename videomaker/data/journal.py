"""What `videomaker data check` found, kept beside the manifest: an interrupted check goes on, a training heeds it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from .errors import ClipError
from .manifest import Clip

_END = {"complete": True}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """Of a clip whose files have this stamp; `reason` is empty for a good one."""

    id: str
    stamp: str
    reason: str = ""
    message: str = ""
    variable_rate: bool = False


def stamp_of(clip: Clip, root: Path) -> str:
    """Sizes and times of change of the files that a clip names."""
    names = [clip.video, *(name for ref in clip.refs for name in (ref.image, ref.mask) if name)]
    parts = []
    for name in [clip.shard] if clip.shard else names:
        try:
            status = (root / name).stat()
            parts.append(f"{status.st_size}-{status.st_mtime_ns}")
        except OSError:
            parts.append("missing")
    return " ".join(parts)


def read_refusals(manifest: Path, clips: Iterable[Clip]) -> dict[str, ClipError]:
    """What the last check of this manifest refused, by the clip's id, of clips whose files did not change since."""
    verdicts = {verdict.id: verdict for verdict in _read(manifest)[0].values() if verdict.reason}
    return {
        clip.id: ClipError(verdicts[clip.id].reason, f"{verdicts[clip.id].message} (found by `videomaker data check`)")
        for clip in clips
        if clip.id in verdicts and verdicts[clip.id].stamp == stamp_of(clip, manifest.parent)
    }


class Journal:
    """The verdicts of one check, a line each in `MANIFEST.checked`; those of an interrupted one are taken over.

    Args:
        manifest: what is checked.
        keep: write them down; where the folder cannot be written, the check goes on without.
    """

    def __init__(self, manifest: Path, *, keep: bool):
        self.root, self.path = manifest.parent, _path(manifest)
        verdicts, complete = _read(manifest)
        self._known = verdicts if keep and not complete else {}
        self._keep = keep
        self._lock = threading.Lock()
        self._file: IO[str] | None = None

    def __enter__(self) -> Journal:
        if self._keep:
            try:
                self._file = self.path.open("w", encoding="utf-8")
                for verdict in self._known.values():
                    self._write(asdict(verdict))
            except OSError as error:
                logger.warning("%s cannot be written (%s): an interrupted check begins anew", self.path, error.strerror)
        return self

    def __exit__(self, kind, *exception) -> None:
        if self._file is not None:
            if kind is None:
                self._write(_END)
            self._file.close()

    def look(self, clip: Clip, inspect: Callable[[Clip, Path], bool]) -> Verdict:
        """The verdict of an interrupted check, if the files are the same, or a new one by `inspect`."""
        stamp = stamp_of(clip, self.root)
        known = self._known.get(clip.id)
        if known is not None and known.stamp == stamp:
            return known
        try:
            verdict = Verdict(clip.id, stamp, variable_rate=inspect(clip, self.root))
        except ClipError as error:
            verdict = Verdict(clip.id, stamp, error.reason, error.detail)
        self._write(asdict(verdict))
        return verdict

    def _write(self, line: dict) -> None:
        if self._file is None:
            return
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def _path(manifest: Path) -> Path:
    return manifest.with_name(f"{manifest.name}.checked")


def _read(manifest: Path) -> tuple[dict[str, Verdict], bool]:
    """The verdicts, and whether the check came to its end. A last line that was cut off does not count."""
    found: dict[str, Verdict] = {}
    complete = False
    try:
        lines = _path(manifest).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}, False
    for line in lines:
        try:
            fields = json.loads(line)
            if fields == _END:
                complete = True
            else:
                found[fields["id"]] = Verdict(**fields)
        except (ValueError, TypeError, KeyError):
            continue
    return found, complete
