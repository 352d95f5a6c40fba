"""Servers that the tests of several files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real import ceph
from tests.real.ceph import Cluster
from tests.real.storage_vm.cephs import USER


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ceph cluster with the pool `vms` and a user who may use it."""
    if ceph.missing():
        pytest.skip(f"'{ceph.missing()}' is not installed")
    with ceph.make(tmp_path_factory.mktemp("ceph")) as made:
        made.add_pool("vms")
        made.add_user(USER, "mon", "profile rbd", "osd", "profile rbd pool=vms")
        yield made
