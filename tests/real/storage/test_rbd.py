"""Images in a Ceph cluster, reached by Ceph's library: the contract of all backends, and what is RBD's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pvetools.storage import secrets
from pvetools.system import paths
from tests.real import ceph
from tests.real.ceph import Cluster
from tests.real.storage_vm.beds import STORAGE, Bed
from tests.real.storage_vm.cephs import USER, foreign, section
from tests.real.storage_vm.conftest import cli, module_root  # noqa: F401 - fixtures
from tests.real.storage_vm.contract import *  # noqa: F403 - the tests are the point
from tests.real.storage_vm.contract import Case

pytestmark = pytest.mark.skipif(bool(ceph.missing()), reason=f"'{ceph.missing()}' is not installed")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with a pool and a user who may use it."""
    with ceph.make(tmp_path_factory.mktemp("ceph")) as made:
        made.add_pool("vms")
        made.add_user(USER, "mon", "profile rbd", "osd", "profile rbd pool=vms")
        yield made


@pytest.fixture(scope="module")
def case(cluster: Cluster, module_root: Path) -> Iterator[Case]:  # noqa: F811
    """The cluster as that of other hosts: by its monitors and a key."""
    secrets.write(STORAGE, "rbd", {"keyring": cluster.keyring(USER).read_text()})
    paths.storage_config().write_text(section())
    yield Case(Bed(section(), foreign(cluster), thin=True), "raw")
