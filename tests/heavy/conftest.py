"""The engines that place workers, each started once for all its tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.heavy.ray_cluster import RayCluster
from tests.heavy.sites import Engine, Site, undisturbed_curves
from tests.heavy.slurm_cluster import SlurmCluster
from tests.heavy.this_host import ThisHost


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as folder:  # paths of sockets are short
        cluster = SlurmCluster(Path(folder))
        try:
            cluster.open()
            yield cluster
        finally:
            cluster.close()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    cluster = RayCluster()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(params=["slurm", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Give each engine in turn: those of clusters, or what a test asks for by `ALL`."""
    if request.param == "local":
        return ThisHost(request.getfixturevalue("tmp_path"))
    found: Engine = request.getfixturevalue("slurm" if request.param == "slurm" else "ray_cluster")
    return found


@pytest.fixture
def site(tmp_path: Path, engine: Engine, postgres_url: str) -> Iterator[Site]:
    found = Site(tmp_path, engine, postgres_url)
    yield found
    found.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return undisturbed_curves(tmp_path_factory.mktemp("undisturbed"))
