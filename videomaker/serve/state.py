"""What the parts of a serving process share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from .checks import Check, load_check
from .config import ServeConfig, Shape
from .database import Database
from .highlighting import Highlighter
from .keys import Keys, Signer
from .listing import Listing
from .metrics import ProcessMetrics
from .models import ModelFacts, describe_all
from .provenance import Credentials, open_credentials
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
    process: ProcessMetrics = field(default_factory=ProcessMetrics)

    @cached_property
    def database(self) -> Database:
        """The database of the settings."""
        return Database(self.config.database_url)

    @cached_property
    def store(self) -> Store:
        """Where the files lie."""
        config = self.config
        return Store(config.files_url, config.files_options, public_endpoint=config.files_public_endpoint)

    def link(self, key: str, method: str, seconds: float) -> str | None:
        """A link by which clients get a file from the object store itself; None where they are not to."""
        return self.store.signed_url(key, seconds, method) if self.config.files_links else None

    @cached_property
    def queue(self) -> Queue:
        """The durable jobs."""
        config = self.config
        return Queue(
            self.database,
            lease_seconds=config.lease_seconds,
            max_attempts=config.max_attempts,
            keep_seconds=None if config.keep_hours is None else 3600 * config.keep_hours,
        )

    @cached_property
    def listing(self) -> Listing:
        """What is shown of jobs."""
        return Listing(self.database)

    @cached_property
    def registry(self) -> Registry:
        """The workers."""
        return Registry(self.database, assumed_seconds=self.config.assumed_seconds)

    @cached_property
    def keys(self) -> Keys:
        """Who may ask."""
        return Keys(self.database)

    @cached_property
    def signer(self) -> Signer:
        """Links for players."""
        return Signer(self.database)

    @cached_property
    def models(self) -> dict[str, ModelFacts]:
        """What each model can make, by name; the first is used where none is asked for."""
        return describe_all(self.config)

    @property
    def model(self) -> ModelFacts:
        """The first model, which in a worker is the only one."""
        return next(iter(self.models.values()))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of `model`: the shapes that are accepted alone; empty: any."""
        return self.model.shapes

    @cached_property
    def highlighter(self) -> Highlighter:
        """What puts the subjects of pictures on white."""
        return Highlighter(self.config.highlight_models, max_pixels=self.config.max_pixels)

    @cached_property
    def credentials(self) -> Credentials | None:
        """What videos are signed with, if a certificate is configured."""
        return open_credentials(self.config.certificate, self.config.certificate_key, self.config.timestamp_url)

    @cached_property
    def request_check(self) -> Check | None:
        """The team's check of requests, if there is one."""
        return load_check(self.config.request_check)
