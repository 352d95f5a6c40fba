"""Options that the tools keep in guests' files themselves cannot be set by users, but are read from files."""

import pytest

from pvetools.api import lxc_config, qemu_config
from pvetools.options.lxc import LxcOptions
from pvetools.options.qemu import QemuOptions


@pytest.mark.parametrize("params", [qemu_config.CreateParams, qemu_config.ChangeParams])
@pytest.mark.parametrize("key", ["parent", "snaptime", "vmstate", "runningmachine", "runningcpu", "meta"])
def test_virtual_machines(params, key):
    assert QemuOptions.find(key)
    assert params.find(key) is None
    assert params.find("memory")


@pytest.mark.parametrize("params", [lxc_config.CreateParams, lxc_config.UpdateParams])
@pytest.mark.parametrize("key", ["parent", "snaptime"])
def test_containers(params, key):
    assert LxcOptions.find(key)
    assert params.find(key) is None
    assert params.find("memory")
