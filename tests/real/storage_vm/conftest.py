"""Fixtures of the tests that run in the storage VM (`make test-storage`); nothing else collects them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# "outside": they are collected here and run in the VM; "inside": this is the VM
collect_ignore_glob = [] if os.environ.get("PVETOOLS_STORAGE_VM") else ["test_*.py"]
ENTRY = "import sys; sys.argv[0] = {tool!r}; from pvetools.cli.{tool} import main; sys.exit(main())"


@pytest.fixture(scope="module")
def module_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A PVETOOLS_ROOT for the tests of one module."""
    made = tmp_path_factory.mktemp("root")
    (made / "etc/pve").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PVETOOLS_ROOT", str(made))
        yield made


@pytest.fixture
def cli() -> Callable[..., str]:
    """Run a tool on the current root; gives its standard output, and fails the test when it fails."""

    def run(tool: str, *arguments: object, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", ENTRY.format(tool=tool), *map(str, arguments)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{tool} {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if status == 0 else done.stderr

    return run
