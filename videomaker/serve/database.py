"""The database: connections, and the few things in which SQLite and PostgreSQL differ."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows: writers wait as SQLite lets them
    fcntl = None  # type: ignore[assignment]  # a module that is not there

from sqlalchemy import Connection, Double, create_engine, event, make_url, select
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from videomaker.errors import InputError

T = TypeVar("T")
# A connection that was lost, a server that starts or ends, a deadlock: what the same transaction may not meet again.
PASSING = (OperationalError, InterfaceError)
BUSY_SECONDS = 30  # how long a writer waits for another on SQLite
# Of libpq, in seconds (the last in milliseconds): a server whose host is gone is noticed, not waited for. Of psycopg:
# nothing is prepared, since behind a pool of transactions (PgBouncer) the next one may run on another connection.
_POSTGRES = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
             "tcp_user_timeout": 20_000, "prepare_threshold": None}  # fmt: skip
RETRY_SECONDS = (0.05, 1.0)  # between two tries of a transaction: the first pause, the longest
_CLOCKS = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
}


class _Now(FunctionElement[float]):
    inherit_cache = True
    type = Double()


@compiles(_Now)
def _clock(_element: _Now, compiler: Any, **_: Any) -> str:
    return _CLOCKS[compiler.dialect.name]


NOW = _Now()  # the database's clock, in seconds since 1970: what leases are measured with


class Database:
    """Transactions on a SQLite file or a PostgreSQL server.

    Args:
        url: of SQLAlchemy.
        patience: seconds for which a PostgreSQL server that takes no connection is waited for.

    Attributes:
        shown: the URL without its password.

    Raises:
        InputError: it is another kind of database, or its driver is not installed.
    """

    def __init__(self, url: str, *, patience: float = 10):
        kind = make_url(url).get_backend_name()
        if kind not in _CLOCKS:
            raise InputError(f"database {kind!r} is not supported: give sqlite:///… or postgresql+psycopg://…")
        self.shown = shown_url(url)
        self.is_sqlite = kind == "sqlite"
        self._line: Path | None = None
        self._patience, self._hurry = patience, threading.local()
        options: dict[str, Any] = {}
        if self.is_sqlite:
            file = Path(make_url(url).database or "videomaker.db")
            try:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                file.touch(mode=0o600)  # it holds prompts, and the secret that signs links
            except (FileExistsError, NotADirectoryError) as error:
                raise InputError(f"{file.parent} is no folder: give another --data") from error
            self._line = file.with_name(f"{file.name}-line") if fcntl else None
            options["connect_args"] = {"timeout": BUSY_SECONDS, "check_same_thread": False}
        else:
            options["pool_pre_ping"] = True
            options["connect_args"] = _POSTGRES
        try:
            self.engine = create_engine(url, **options)
        except ModuleNotFoundError as error:
            raise InputError(f"database {kind!r} needs the package {error.name}: pip install it") from error
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            event.listen(self.engine, "do_connect", self._connect)

    def _connect(self, dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
        """A restart or a failover is over in seconds: whoever asks meanwhile waits rather than fails."""

        def connect() -> Any:
            connection = dialect.connect(*arguments, **options)
            try:  # PgBouncer takes connections also while its database is away, and says so at the first question
                connection.autocommit = True  # or it would be three round trips
                connection.execute("SELECT 1")
                connection.autocommit = False
            except BaseException:
                connection.close()
                raise
            return connection

        patience = 0.0 if getattr(self._hurry, "on", False) else self._patience
        return wait_out(connect, patience, dialect.loaded_dbapi.OperationalError)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: on SQLite the only one meanwhile, on PostgreSQL among others, by row locks."""
        with self._turn(), self.engine.connect() as idle:
            connection = idle.execution_options(writes=True)
            with connection.begin():
                yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Writers of a SQLite file go one after the other in the order they came.

        SQLite itself lets them sleep and look again, so that one that writes all the time starves the others.
        """
        if self._line is None:
            yield
            return
        with self._line.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, however it ends
            yield

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads; it waits for nobody."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def answers(self) -> bool:
        """Whether the database can be reached and asked, now."""
        self._hurry.on = True
        try:
            with self.read() as connection:
                connection.execute(select(NOW))
        except SQLAlchemyError:
            return False
        finally:
            self._hurry.on = False
        return True

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()


def shown_url(url: str) -> str:
    """A database's URL without its password."""
    return make_url(url).render_as_string(hide_password=True)


def wait_out(transaction: Callable[[], T], seconds: float, passing: Any = PASSING) -> T:
    """The outcome of a transaction that may be run again, for as long as the database only stays away.

    Args:
        transaction: what to do; a try whose connection was lost may have been committed.
        seconds: how long to go on.
        passing: the errors after which it is run again.

    Raises:
        OperationalError, InterfaceError: it stayed away.
    """
    until, pause = time.monotonic() + seconds, RETRY_SECONDS[0]
    while True:
        try:
            return transaction()
        except passing:
            if time.monotonic() + pause > until:
                raise
        time.sleep(pause)
        pause = min(2 * pause, RETRY_SECONDS[1])


def _prepare_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # BEGIN is ours, see below
    # FULL: an accepted job survives a power cut, at one fsync a commit.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail when another wrote in between.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
