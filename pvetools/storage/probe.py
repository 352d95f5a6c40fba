"""Storages are asked side by side, each for a limited time: one whose server hangs holds up neither others nor us."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar
from zlib import crc32

from pvetools.storage import registry
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Driver, Space
from pvetools.system import apart, log
from pvetools.system.errors import PveError

STATUS_TIMEOUT = 12.0
PROOF_TIMEOUT = 45.0
LIST_TIMEOUT = 60.0

T = TypeVar("T")


def ask(definitions: Iterable[Definition], question: Callable[[Driver], T], timeout: float) -> dict[str, T | PveError]:
    """Ask the backend of each storage; gives the answers by storage, an error in place of one that is missing."""
    answers: dict[str, T | PveError] = {}
    questions: dict[str, Callable[[], T]] = {}
    storages: dict[str, str] = {}
    for found in definitions:
        try:
            name = _name(found)
            questions[name], storages[name] = _bound(question, registry.driver(found)), found.id
        except PveError as error:
            answers[found.id] = error
    for name, answer in apart.ask(questions, timeout).items():
        storage = storages[name]
        answers[storage] = _sentence(storage, answer.error) if answer.error else answer.value
    return answers


def _name(found: Definition) -> str:
    """A name for questions to a storage: one that hangs says nothing about another definition with the same id."""
    text = f"{found.type} {sorted(found.options.texts().items())}"
    return f"storage-{found.id}-{crc32(text.encode('utf-8', 'surrogateescape')):08x}"


def _bound(question: Callable[[Driver], T], driver: Driver) -> Callable[[], T]:
    return lambda: question(driver)


def _sentence(storage: str, error: str) -> PveError:
    return PveError(error if storage in error else f"storage '{storage}': {error}")


def refuse_hanging(found: Definition) -> None:
    """Refuse a storage in which a process hangs that asked it: whoever touches it would hang as well.

    Raises:
        PveError: there is one.
    """
    if pid := apart.hanging(_name(found)):
        raise PveError(f"storage '{found.id}' does not answer: process {pid} hangs in it since an earlier time")


def space(driver: Driver) -> Space:
    """The question for size and free space; it activates the storage."""
    driver.activate()
    return driver.status()


def verified(driver: Driver) -> None:
    """The question whether the storage can be reached as it is defined now, also while it is active as before."""
    driver.verify()


def prove(found: Definition, question: Callable[[Driver], object]) -> None:
    """Ask one storage.

    Raises:
        PveError: the answer is missing, with the reason.
    """
    answer = ask([found], question, PROOF_TIMEOUT)[found.id]
    if isinstance(answer, PveError):
        raise answer


def released(found: Definition) -> str:
    """Deactivate a storage; gives what hinders that, empty when nothing does."""
    try:
        prove(found, lambda driver: driver.deactivate())
    except PveError as error:
        return str(error)
    return ""


def release(found: Definition) -> None:
    """Deactivate a storage as far as that works; what does not is told in a warning."""
    if hindrance := released(found):
        log.warn(hindrance)
