"""pytest plugin inside of the VM: runs the wanted tests and writes a report of each to the tests outside.

The wanted tests come as node ids on standard input, one a line.
"""

from __future__ import annotations

import json
import os
import sys

import pytest

WANTED = frozenset(sys.stdin.read().split("\n"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = [item for item in items if item.nodeid in WANTED]
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in WANTED])
    items[:] = chosen


class Reporter:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.out = os.fdopen(int(os.environ["REPORTS_FD"]), "w", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.out.write(json.dumps(data, default=str) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Reporter(config), "storage-vm-reporter")
