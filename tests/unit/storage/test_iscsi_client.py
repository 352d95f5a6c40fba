"""Our own iSCSI initiator and targets that answer in odd ways, or without an end."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from pvetools.storage import iscsi_client, san, volumes
from pvetools.storage.iscsi_client import Login
from pvetools.storage.san import Portal
from pvetools.system import paths
from pvetools.system.errors import NotFound, PveError

IN, FULL = b"\x25", b"\x87"  # data with status; the login is through
SECURITY, OPERATIONAL = b"\0", b"\x81"


def pdu(first: bytes, flags: bytes, data: bytes = b"", status: bytes = b"\0\0") -> bytes:
    head = first + flags + b"\0\0" + struct.pack(">I", len(data)) + bytes(28) + status + bytes(10)
    return head + data + bytes(-len(data) % 4)


def login(flags: bytes, text: str = "", status: bytes = b"\0\0") -> bytes:
    return pdu(b"\x23", flags, text.encode(), status)


def answer(data: bytes) -> bytes:
    return pdu(IN, b"\x81", data)


@contextlib.contextmanager
def target(*said: bytes, again: bool = False) -> Iterator[Login]:
    """Something that answers one message after the other; ``again``: the last answer for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as client:
                for number in range(1 << 30):
                    if number >= len(said) and not again:
                        return
                    if not client.recv(65536):
                        return
                    client.sendall(said[min(number, len(said) - 1)])

        threading.Thread(target=serve, daemon=True).start()
        yield Login(Portal("127.0.0.1", server.getsockname()[1]), "iqn.2020-01.org.x:y", "iqn.me", "me", "secret")


IN_AT_ONCE = (login(OPERATIONAL), login(FULL))


def size(made: Login, number: int = 1) -> int:
    with iscsi_client.session(made) as session:
        return session.size(number)


def test_the_size_of_a_lun_is_asked() -> None:
    with target(*IN_AT_ONCE, answer(struct.pack(">QI20x", 9, 512))) as made:
        assert size(made) == 5120


def test_short_answers_are_no_answers() -> None:
    for length in (0, 1, 11):
        with target(*IN_AT_ONCE, answer(bytes(length))) as made, pytest.raises(PveError, match=r"LUN 1 is too short$"):
            size(made)
    with (
        target(*IN_AT_ONCE, answer(bytes(7))) as made,
        iscsi_client.session(made) as session,
        pytest.raises(PveError, match=r"LUN 0 is too short$"),
    ):
        next(session.disks())
    listing = struct.pack(">I4xH6x", 8, 3)
    with (
        target(*IN_AT_ONCE, answer(listing), answer(b"")) as made,
        iscsi_client.session(made) as session,
        pytest.raises(PveError, match=r"LUN 3 is too short$"),
    ):
        next(session.disks())


def test_a_listing_that_ends_in_the_middle_of_an_entry_is_read_up_to_there() -> None:
    listing = struct.pack(">I4xH6xHx", 100, 3, 4)
    said = answer(listing), answer(bytes(36)), answer(struct.pack(">QI", 1, 512))
    with target(*IN_AT_ONCE, *said) as made, iscsi_client.session(made) as session:
        assert [*session.disks()] == [(3, 1024)]


def test_more_than_was_asked_for_is_refused() -> None:
    endless = pdu(IN, b"\0", bytes(30))
    with target(*IN_AT_ONCE, endless * 2) as made, pytest.raises(PveError, match=r"LUN 1 answers with more than was"):
        size(made)


@pytest.mark.parametrize("number", [0x4000, 16385, 65536, 99999])
def test_numbers_that_have_no_address_are_no_luns(number: int) -> None:
    with target(*IN_AT_ONCE) as made, pytest.raises(NotFound, match=f"has no LUN {number}$"):
        size(made, number)


@pytest.mark.parametrize("name", ["lun01", "lun00", "lun0001", "lun100000"])
def test_a_lun_has_one_name(root, name: str) -> None:
    paths.storage_config().write_text("iscsidirect: three\n\tportal 127.0.0.1\n\ttarget iqn.2020-01.org.x:y\n")
    assert volumes.parse("three:lun0").name == "lun0"
    with pytest.raises(PveError, match="unable to parse"):
        volumes.parse(f"three:{name}")


@pytest.mark.parametrize(
    "challenge",
    [
        "CHAP_A=5\0", "CHAP_A=5\0CHAP_I=1\0", "CHAP_A=5\0CHAP_C=0x00ff\0", "CHAP_A=5\0CHAP_I=one\0CHAP_C=0x00ff\0",
        "CHAP_A=5\0CHAP_I=256\0CHAP_C=0x00ff\0", "CHAP_A=5\0CHAP_I=-1\0CHAP_C=0x00ff\0",
        "CHAP_A=5\0CHAP_I=1\0CHAP_C=0xfg\0", "CHAP_A=5\0CHAP_I=1\0CHAP_C=0x\0", "CHAP_A=5\0CHAP_I=1\0CHAP_C=0b00ff\0",
    ],
)  # fmt: skip
def test_a_challenge_that_is_none_is_told(challenge: str) -> None:
    with (
        target(login(SECURITY, "AuthMethod=CHAP\0"), login(SECURITY, challenge)) as made,
        pytest.raises(PveError, match=r"its challenge can't be understood$") as told,
    ):
        size(made)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("said", "again"),
    [
        ([login(SECURITY)], True),  # it never comes to an end
        ([login(OPERATIONAL), *[login(OPERATIONAL)] * 3], True),
        ([pdu(b"\x20", b"\x80") * 1000], True),  # NOP-In, and nothing else
    ],
)
def test_a_target_without_an_end_is_given_up(said: list[bytes], again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(san, "QUESTION_PATIENCE", 1.0)
    start = time.monotonic()
    with target(*said, again=again) as made, pytest.raises(PveError, match="does not answer any more"):
        size(made)
    assert time.monotonic() - start < 10


def test_news_for_ever_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word from here: each message comes in time."""
    monkeypatch.setattr(san, "QUESTION_PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as client:
                while True:
                    client.sendall(pdu(b"\x20", b"\x80"))
                    time.sleep(0.05)

        threading.Thread(target=serve, daemon=True).start()
        start = time.monotonic()
        made = Login(Portal(*server.getsockname()), "iqn.2020-01.org.x:y", "iqn.me")
        with pytest.raises(PveError, match="does not answer any more"):
            size(made)
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("", "sends elsewhere, but does not say where"), (f"{'a' * 64}.example:1,1", "is not known"),
        ("127.0.0.1:99999,1", "has a port above 65535"), (f"127.0.0.1:{'9' * 5000},1", "is not known"),
    ],
)  # fmt: skip
def test_a_target_that_sends_to_nowhere_is_told(address: str, why: str) -> None:
    text = f"TargetAddress={address}\0" if address else ""
    with target(login(SECURITY, text, b"\x01\x01")) as made, pytest.raises(PveError, match=re.escape(why)):
        size(made)
