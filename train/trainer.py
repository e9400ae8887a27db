"""The training loop: data to steps to checkpoints, and nothing that it could leave to another module."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from videomaker.data.dataset import DataConfig, build_dataset
from videomaker.data.loader import ClipLoader, build_loader
from videomaker.data.manifest import check_captions

from . import universal
from .average import average_in_place
from .best import Best
from .checkpoint import Checkpoints
from .checkpoint_files import Found
from .checks import check_size
from .config import TrainConfig
from .deepspeed_json import deepspeed_json
from .engine import computes_bf16, from_rank_zero, initialize, plain_gradient_norm
from .guards import LossGuard, StopRequest, Watchdog
from .inputs import Inputs
from .lock import FolderLock
from .memory_report import card_bytes, choose_checkpointing
from .model import DTYPES, Autoencoder, Denoiser, load_pipeline, load_vae, prepare_denoiser
from .monitor import Monitor, memory_gib
from .optimizer import learning_rate, set_rate
from .overrides import as_dict
from .plots import try_plots
from .profiling import Profiler
from .resume import check_groups, check_parameters, digest_frozen, find_checkpoint
from .run_folder import record_start
from .validation import Validation

_ADVICE = (
    "try a lower optimizer.learning_rate, a longer optimizer.warmup_steps, precision=bf16 instead of fp16, or look at "
    "the clips of the last steps; the last checkpoint is from before the trouble"
)


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says what to try."""


class Trainer:
    """One run on this rank. Making it takes the run's folder and checks all that can be checked before the first step.

    Raises:
        InputError: another run writes into the folder, or the configuration does not fit the data, the model, or the
            checkpoint to go on from; nothing of the run was changed.
    """

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.folder = Path(config.output)
        self.accumulation = config.accumulation(self.world_size)
        self.ds_json = deepspeed_json(config, self.world_size)
        self.step = 0
        self.means: dict[str, float] = {}  # of the last step
        self.guard = LossGuard(config.guards)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.checkpoint)
        self._lock: FolderLock | None = None  # of rank 0
        try:
            self._prepare()
        except BaseException:
            self._release(unused=True)
            raise

    def _prepare(self) -> None:
        config = self.config
        from_rank_zero(self._take_folder)
        found = from_rank_zero(lambda: find_checkpoint(config, self.checkpoints, print))
        self._build_model()
        self.frozen = self._digest_frozen()
        self.inputs = Inputs(
            config,
            self.pipeline,
            num_train_timesteps=len(self.learner.alphas_cumprod) if isinstance(self.learner, Denoiser) else 0,
            device=self.device,
        )
        self.loader = self.build_loader(
            config.data, seed=config.seed, batch_size=config.micro_batch_size, group=config.batch_size
        )
        self.validation = Validation(
            config, self.pipeline, self.inputs, self.build_loader, rank=self.rank, world_size=self.world_size
        )
        weights = config.validation.weights
        self.judge_average = weights == "ema" or (weights == "auto" and config.optimizer.ema_decay > 0)
        kind = "ema" if self.judge_average else "weights"
        self._start_engine(found)
        self.best = from_rank_zero(lambda: Best(self.folder, config.checkpoint.best, kind, start=self.step))
        if self.rank == 0 and not self._is_complete():
            record_start(config, self.ds_json, step=self.step, world_size=self.world_size, device=self.device)

    def _is_complete(self) -> bool:
        """Whether no step is left; then the run's folder keeps the configuration that it was trained with."""
        return self.step == self.config.steps and (self.folder / "config.yaml").is_file()

    def _take_folder(self) -> None:
        self._lock = FolderLock(self.folder)

    def _release(self, *, unused: bool = False) -> None:
        if self._lock is not None:
            self._lock.release(unused=unused)

    def _build_model(self) -> None:
        config = self.config
        if config.task == "autoencoder":
            self.pipeline = None
            vae = load_vae(config.model, seed=config.seed)
            autocast = config.precision == "autocast"
            self.learner: Denoiser | Autoencoder = Autoencoder(vae, config.method, autocast=autocast)
            return
        self.pipeline = load_pipeline(
            config.model,
            dtype=DTYPES[config.precision],
            seed=config.seed,
            reference_cross_attention=config.method.reference_cross_attention,
            use_pisa=config.method.pisa,
        )
        check_size(config, self.pipeline.vae_scale_factor)
        chosen, why = choose_checkpointing(config, card_bytes(self.device))
        if why and self.rank == 0:
            print(why)
        denoiser = prepare_denoiser(self.pipeline, chosen)
        denoiser.alphas_cumprod = denoiser.alphas_cumprod.to(self.device)
        self.learner = denoiser
        self.pipeline.vae.to(self.device)
        self.pipeline.text_encoder.to(self.device)

    def _digest_frozen(self) -> str:
        """Of what the run builds on and does not train."""
        parts = [self.learner] if self.pipeline is None else [self.learner, self.pipeline.vae]
        return digest_frozen(parts) if self.rank == 0 else ""

    def build_loader(self, data: DataConfig, *, seed: int, batch_size: int, group: int = 0) -> ClipLoader:
        """The endless loader of this rank over `data`."""
        where = {"rank": self.rank, "world_size": self.world_size}
        dataset = build_dataset(data, seed=seed, cache=self._open_cache(data), **where)
        if self.pipeline is not None and data.long_captions == "error":
            check_captions(dataset.clips, self.pipeline.tokenizer)
        return build_loader(dataset, batch_size=batch_size, num_workers=data.num_workers, group=group, **where)

    def _open_cache(self, data: DataConfig):
        if not data.cache or self.pipeline is None:
            return None
        from videomaker.data.cache import open_cache

        pipeline = self.pipeline
        return open_cache(data, vae=pipeline.vae, text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)

    def _start_engine(self, found: Found | None) -> None:
        """The engine, fresh or where `found` stands."""
        if found is not None:
            from_rank_zero(lambda: check_parameters(found, self.learner, self.frozen, print))
            check_groups(found, self.learner, self.config.optimizer)
            if universal.needs_conversion(found, self.world_size):
                self.ds_json["checkpoint"] = {"load_universal": True}
        self.engine = initialize(self.learner, self.config, self.ds_json, self.device)
        if found is None:
            return
        universal.load(self.engine, found, self.checkpoints.folder)
        self.step, self.means = found.step, found.state["metrics"]
        self.guard.load_state_dict(found.state["guard"])
        self.loader.load_state_dict(found.state["data"])

    def save(self) -> None:
        """Writes a checkpoint of the steps done so far; all ranks call it."""
        state = {
            "guard": self.guard.state_dict(),
            "data": self.loader.state_dict(),
            "metrics": self.means,
            "config": as_dict(self.config),
            "frozen": self.frozen,
        }
        self.checkpoints.save(self.engine, self.step, state, ema=self.config.optimizer.ema_decay > 0)

    def run(self, stop: StopRequest) -> bool:
        """Trains to the last step, or until `stop`; returns whether the last step was reached.

        Raises:
            TrainingFailed: too many steps in a row were refused.
            CheckpointError: a checkpoint could not be written.
        """
        self.monitor = Monitor(self.folder, self.config, start=self.step, active=self.rank == 0)
        if self.step == self.config.steps:
            self.monitor.say(f"already at step {self.step} of {self.config.steps}: nothing to train")
        if self.config.precision == "autocast" and not computes_bf16(self.device):
            self.monitor.say("precision=autocast: this CPU has no instructions for bf16, so everything runs in fp32")
        if self.validation.batches or self.validation.samples:
            self.monitor.say(f"held-out losses and samples are of the {self._judged()} (validation.weights)")
        batches = iter(self.loader)
        try:
            profiler = Profiler(self.folder / "profile", self.config.log.profile if self.rank == 0 else 0)
            with Watchdog(self.config.guards.watchdog, stop) as watchdog, profiler:
                while self.step < self.config.steps:
                    stopping = self._optimizer_step(batches, stop)
                    watchdog.beat()
                    profiler.step()
                    if stopping or self._due(self.config.checkpoint.every, last=True):
                        self.save()
                        watchdog.beat()
                    if stopping:
                        reason = stop.reason or "another rank was asked to stop"
                        self.monitor.say(f"stopped and saved at step {self.step}: {reason}")
                        return False
                    self._validate(watchdog)
        finally:
            try:
                self.monitor.close()
                self._plot()
            finally:
                self._release()
        return True

    def _due(self, every: int, *, last: bool = False) -> bool:
        return (bool(every) and self.step % every == 0) or (last and self.step == self.config.steps)

    def _judged(self) -> str:
        return "moving average" if self.judge_average else "raw weights"

    def _validate(self, watchdog: Watchdog) -> None:
        """Held-out losses and samples where they are due, of the moving average if it is judged."""
        losses = self.validation.batches and self._due(self.config.validation.every)
        samples = self.validation.samples and self._due(self.config.sampling.every)
        if not (losses or samples):
            return
        with average_in_place(self.engine, wanted=self.judge_average):
            measured = self.validation.losses(self.engine.module) if losses else {}
            watchdog.beat()
            where = self.folder / "samples" / f"step-{self.step:08d}"
            sheet = self.validation.write_samples(where, weights=self._judged()) if samples else None
            watchdog.beat()
        if losses:
            self.monitor.record("held_out", self.step, measured)
            self.best.offer(self.engine, self.step, measured)
        if sheet is not None:
            self.monitor.image("samples", sheet, self.step)
        self._plot()

    def _plot(self) -> None:
        if self.rank == 0:
            try_plots(self.folder, self.monitor.say)

    def _optimizer_step(self, batches: Iterator[dict[str, Any]], stop: StopRequest) -> bool:
        """One optimizer step on every rank; returns whether any rank was asked to stop."""
        started = time.perf_counter()
        sums: dict[str, torch.Tensor] = {}
        for micro_step in range(self.accumulation):
            parts = self._micro_step(next(batches), micro_step)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach() / (self.accumulation * self.world_size)
            if micro_step < self.accumulation - 1:
                self.engine.step()
        means, stopping = self._agree(sums, bool(stop.reason))
        self.means = means
        objection = self.guard.objection(means["loss"])
        optimizer = self.engine.basic_optimizer
        optimizer.refuse, optimizer.refused = bool(objection), False  # fp16 may skip the optimizer by itself
        self._set_learning_rate(optimizer)
        plain_norm = plain_gradient_norm(self.engine) if self.config.zero.stage == 0 else None
        self.engine.step()
        self.step += 1
        self._count(means["loss"], objection or ("a gradient is not finite" if optimizer.refused else ""))
        self._report(means, time.perf_counter() - started, plain_norm)
        return stopping

    def _micro_step(self, batch: dict[str, Any], micro_step: int) -> dict[str, torch.Tensor]:
        losses = self.engine(*self.inputs(batch, self._keys(micro_step)))
        self.engine.backward(losses["loss"])
        return losses

    def _keys(self, micro_step: int) -> list[tuple[int, int]]:
        """(seed, place in the run) of this rank's clips, counted over all ranks and steps."""
        size = self.config.micro_batch_size
        first = ((self.step * self.accumulation + micro_step) * self.world_size + self.rank) * size
        return [(self.config.seed, first + i) for i in range(size)]

    def _agree(self, sums: dict[str, torch.Tensor], stop: bool) -> tuple[dict[str, float], bool]:
        """Losses averaged over the ranks and whether one of them wants to stop: the one exchange of a step."""
        packed = torch.stack([*(value.float() for value in sums.values()), torch.tensor(float(stop)).to(self.device)])
        if self.world_size > 1:
            dist.all_reduce(packed)
        *values, stop_votes = packed.tolist()
        return dict(zip(sums, values, strict=True)), stop_votes > 0

    def _set_learning_rate(self, optimizer: torch.optim.Optimizer) -> None:
        rate = learning_rate(self.config.optimizer, self.step, self.config.steps)
        set_rate((*optimizer.param_groups, *self.engine.optimizer.param_groups), rate)

    def _count(self, loss: float, objection: str) -> None:
        if not objection:
            self.guard.accept(loss)
            return
        self.guard.reject()
        self.monitor.say(f"step {self.step} skipped: {objection}")
        if self.guard.exhausted:
            raise TrainingFailed(
                f"{self.guard.in_a_row} steps in a row were skipped, the last because {objection}; {_ADVICE}"
            )

    def _report(self, means: dict[str, float], seconds: float, plain_norm: torch.Tensor | None) -> None:
        clips_per_second = self.config.batch_size / seconds
        gib = memory_gib(self.device)
        self.monitor.step({"loss": means["loss"], "clips/s": clips_per_second, "GiB": gib})
        if self.step % self.config.log.every == 0 or self.step == self.config.steps:
            norm = self.engine.get_global_grad_norm()  # kept by ZeRO and by the half-precision optimizers
            norm = plain_norm if norm is None else norm
            extra = {
                "learning_rate": self.engine.basic_optimizer.param_groups[0]["lr"],
                "gradient_norm": math.nan if norm is None else float(norm),
                "clips_per_second": clips_per_second,
                "memory_gib": gib,
                "skipped": self.guard.skipped,
            }
            self.monitor.record("metrics", self.step, {**means, **extra})
