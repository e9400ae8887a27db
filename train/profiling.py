"""A trace of a few steps by torch's profiler, for chrome://tracing or Perfetto."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from videomaker.files import atomic_path

_BEFORE = 2  # steps that are not recorded: the first compile and allocate


class Profiler:
    """Records steps 3 to 2 + `steps` of this start into `folder`; does nothing when `steps` is 0."""

    def __init__(self, folder: Path, steps: int):
        self.folder = folder
        self._profile: profile | None = None
        if steps:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            plan = schedule(wait=_BEFORE - 1, warmup=1, active=steps, repeat=1)
            self._profile = profile(
                activities=activities, schedule=plan, on_trace_ready=self._write, profile_memory=True
            )

    def _write(self, recorded: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / "trace.json") as temporary:
            recorded.export_chrome_trace(str(temporary))

    def __enter__(self) -> Profiler:
        if self._profile:
            self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile:
            self._profile.__exit__(kind, error, trace)

    def step(self) -> None:
        """To be called after every optimizer step."""
        if self._profile:
            self._profile.step()
