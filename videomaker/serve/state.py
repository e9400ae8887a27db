"""What the parts of a serving process share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from .checks import Check, load_check
from .config import ServeConfig, Shape
from .database import Database
from .keys import Keys, Signer
from .listing import Listing
from .metrics import HttpMetrics
from .models import ModelFacts, declared_shapes, describe_model
from .queue import Queue
from .registry import Registry
from .store import Store


@dataclass
class State:
    """The services of one process, made on first use.

    Attributes:
        config: the settings.
        draining: set when the process is about to end: it takes no more jobs.
    """

    config: ServeConfig
    draining: bool = False
    http: HttpMetrics = field(default_factory=HttpMetrics)

    @cached_property
    def database(self) -> Database:
        return Database(self.config.database_url)

    @cached_property
    def store(self) -> Store:
        return Store(self.config.files_url)

    @cached_property
    def queue(self) -> Queue:
        config = self.config
        return Queue(self.database, lease_seconds=config.lease_seconds, max_attempts=config.max_attempts)

    @cached_property
    def listing(self) -> Listing:
        return Listing(self.database)

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.database, assumed_seconds=self.config.assumed_seconds)

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.database)

    @cached_property
    def signer(self) -> Signer:
        return Signer(self.database)

    @cached_property
    def model(self) -> ModelFacts:
        return describe_model(self.config)

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        return declared_shapes(self.config, self.model)

    @cached_property
    def request_check(self) -> Check | None:
        return load_check(self.config.request_check)
