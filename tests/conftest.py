"""Settings of every test: no network, a fixed seed, and Triton's interpreter where there is no GPU."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported


# A file goes to one of two workers: the longest come first, or one worker waits for the other in the end.
LONG = (
    "test_train_zero", "test_static", "test_train_model", "test_docs", "test_serve_page", "test_serve_process",
    "test_eval_suite", "test_bench_gpu", "test_serve_models", "test_trainer", "test_train_guards", "test_train_resume",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory):
    """A tiny model, six clips, and `config.yaml` of a run over them."""
    from runs import write_configuration  # imports the whole training

    return write_configuration(tmp_path_factory.mktemp("train")).parent


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of this run's own."""
    from services import Postgres, Unavailable

    pytest.importorskip("psycopg")
    # Not below pytest's folder: root's server runs as another user, whom each pytest that starts meanwhile locks out.
    with tempfile.TemporaryDirectory(prefix="vm-services-", ignore_cleanup_errors=True) as folder:
        try:
            server = Postgres(Path(folder) / "postgres")
        except Unavailable as error:
            pytest.skip(str(error))
        with server:
            yield server


@pytest.fixture(scope="session")
def object_store(tmp_path_factory):
    """An S3 store of this run's own; its credentials are in the environment."""
    from services import ObjectStore, Unavailable

    try:
        server = ObjectStore(tmp_path_factory.mktemp("services") / "s3")
    except Unavailable as error:
        pytest.skip(str(error))
    with server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def ray_cluster(object_store):
    """The address of a local Ray of this run's own, whose processes know the object store's credentials."""
    pytest.importorskip("ray")
    from local_ray import local_ray

    with local_ray() as address:
        yield address


@pytest.fixture(scope="session")
def pgbouncer(postgres):
    """A pool of transactions before the PostgreSQL server."""
    from services import PgBouncer, Unavailable

    with tempfile.TemporaryDirectory(prefix="vm-services-", ignore_cleanup_errors=True) as folder:
        try:
            pool = PgBouncer(postgres, Path(folder) / "pgbouncer")
        except Unavailable as error:
            pytest.skip(str(error))
        with pool:
            yield pool


_DATABASES = ["sqlite", *(pytest.param(kind, marks=pytest.mark.scale) for kind in ("postgresql", "pgbouncer"))]


@pytest.fixture(scope="module")
def browser():
    """Chromium, which the system brings; ended with the module, since no other event loop runs beside its own."""
    from browser import NoBrowser, open_browser

    try:
        with open_browser() as browser:
            yield browser
    except NoBrowser as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=_DATABASES)
def any_database(request, tmp_path):
    """An empty database of each kind."""
    from videomaker.serve.database import Database

    url = f"sqlite:///{tmp_path / 'q.db'}"
    if request.param != "sqlite":
        url = request.getfixturevalue("postgres").create()
    if request.param == "pgbouncer":
        url = request.getfixturevalue("pgbouncer").through(url)
    database = Database(url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def process_group():
    """This process as a group of one rank: its device, and what of the environment says so."""
    from videomaker.train.engine import start_distributed

    before = dict(os.environ)
    device = start_distributed()
    made = {name: os.environ.pop(name) for name in os.environ.keys() - before.keys()}
    return device, made


@pytest.fixture
def training_device(process_group, monkeypatch):
    """The device; the environment is this test's, or trainings in processes of other tests would join the group."""
    device, made = process_group
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    return device


@pytest.fixture
def trainer(training_folder, training_device, tmp_path, monkeypatch):
    """Makes trainers whose run goes to `tmp_path / "run"`; signals stay as pytest has them."""
    import signal

    from videomaker.train.overrides import load_config
    from videomaker.train.trainer import Trainer

    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def make(*overrides):
        config = load_config(str(training_folder / "config.yaml"), [f"output={tmp_path}/run", *overrides])
        return Trainer(config, training_device)

    return make
