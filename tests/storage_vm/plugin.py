"""pytest plugin outside of the VM: items of tests/real/storage_vm run in it, and are reported here as if they ran here.

`python -m pytest -p tests.storage_vm.plugin tests/real/storage_vm`.  Tests that use the fixture `machine` run outside,
after all others: they may cut the power.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox import cache, enter
from tests.storage_vm import build, payload
from tests.storage_vm.machine import Dead, Machine, Request

MARK = "PVETOOLS_STORAGE_VM"
HERE = Path(__file__).resolve().parents[1] / "real/storage_vm"
TIMEOUT = 300  # that pytest applies inside, where a test wants no other
ASSETS = "guest_assets"  # the fixture of tests that need what guests are made of
COMMAND = (
    "python3", "-m", "pytest", "-q", "-p", "tests.storage_vm.inside", "--tb=short",
)  # fmt: skip

os.environ.setdefault(MARK, "outside")


class Bed:
    """The VM of this run, switched on when the first test needs it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.machine: Machine | None = None
        self.request: Request | None = None
        self.waiting: dict[str, list[pytest.TestReport]] = {}
        self.broken = ""

    def power(self) -> Machine:
        """The VM, up."""
        if self.broken:
            pytest.fail(self.broken, pytrace=False)
        if self.machine is None:
            self.broken = "the storage VM did not start"
            self.machine = Machine(build.made())
            self.machine.start()
            self.broken = ""
        elif not self.machine.alive():
            self.machine.boot()
            self.machine.carry_in()
        return self.machine

    def close(self) -> None:
        if self.machine:
            self.machine.close()
            self.machine = None

    # ------------------------------------------------------------ tests inside

    def begin(self, items: list[pytest.Item]) -> None:
        """Start pytest in the VM for the items that are still to come."""
        machine = self.power()
        if any(ASSETS in getattr(item, "fixturenames", ()) for item in items):
            machine.carry_assets()
        files = sorted({item.nodeid.split("::")[0] for item in items})
        options = ["--timeout", str(TIMEOUT)] if self.config.pluginmanager.hasplugin("timeout") else []
        self.request = machine.begin(
            [*COMMAND, *options, *files],
            stdin="\n".join(item.nodeid for item in items),
            environment={MARK: "inside", enter.MARK: "storage-vm", "PYTHONPATH": payload.CHECKOUT},
            cwd=payload.CHECKOUT,
            timeout=7200,
            lines=True,
        )

    def stop(self) -> None:
        """End pytest in the VM."""
        request, self.request = self.request, None
        if request and self.machine and self.machine.alive():
            self.machine.kill(request)

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """The reports of one item, waiting until its teardown is over."""
        assert self.request
        while not _over(found := self.waiting.setdefault(item.nodeid, [])):
            mark = item.get_closest_marker("timeout")
            message = next(self.request.messages(120.0 + (mark.args[0] if mark else TIMEOUT)))
            if "line" not in message:
                self.request = None
                said = f"{message['stdout'][-6000:]}\n{message['stderr'][-3000:]}"
                raise Dead(f"pytest in the VM ended with status {message['status']}:\n{said}")
            report = self.config.hook.pytest_report_from_serializable(
                config=self.config, data=json.loads(message["line"])
            )
            if isinstance(report.longrepr, list):  # the reason of a skip is a tuple, which JSON does not know
                report.longrepr = tuple(report.longrepr)
            self.waiting.setdefault(report.nodeid, []).append(report)
        return found


def _over(reports: list[pytest.TestReport]) -> bool:
    return any(report.when == "teardown" for report in reports)


def _inside(item: pytest.Item) -> bool:
    outside = item.get_closest_marker("skip") or "machine" in getattr(item, "fixturenames", ())
    return HERE in item.path.parents and not outside


BED = pytest.StashKey[Bed]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BED] = Bed(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[BED].close()


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The storage VM, up, for a test that looks at it from outside."""
    bed = request.config.stash[BED]
    bed.stop()
    yield bed.power()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = build.unsupported()
    for item in items:
        if HERE in item.path.parents and reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif HERE in item.path.parents:  # the sandbox is not what they need
            item.own_markers[:] = [mark for mark in item.own_markers if "sandbox" not in str(mark.kwargs.get("reason"))]
    items.sort(key=lambda item: not _inside(item))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if not _inside(item):
        return None
    bed = item.config.stash[BED]
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _run(bed, item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run(bed: Bed, item: pytest.Item) -> list[pytest.TestReport]:
    try:
        if bed.request is None and item.nodeid not in bed.waiting:
            items = item.session.items
            bed.begin([other for other in items[items.index(item) :] if _inside(other)])
        return bed.reports(item)
    except (Dead, cache.NotAvailable, RuntimeError, AssertionError, pytest.fail.Exception) as error:
        partly = bed.waiting.pop(item.nodeid, [])
        bed.stop()
        if bed.machine and isinstance(error, Dead):
            bed.machine.cut_power()
        return [*partly, _failure(item, str(error)), _failure(item, "", "teardown", "passed")]


def _failure(item: pytest.Item, text: str, when: str = "call", outcome: str = "failed") -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid, location=item.location, keywords={}, outcome=outcome, longrepr=text or None, when=when,
        sections=[], duration=0, start=0, stop=0,
    )  # type: ignore[arg-type]  # fmt: skip


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[BED].stop()
