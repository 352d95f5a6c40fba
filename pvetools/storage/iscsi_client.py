"""A small iSCSI initiator: which LUNs a target has, and how large they are. Data is read and written by QEMU's own.

The tools of libiscsi can't say that for one target of several, and take passwords through their environment only. A
connection lives for a few commands; every wait has a time-out, and so has every question as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pvetools.storage import san
from pvetools.storage.san import Portal
from pvetools.system.errors import NotFound, PveError

_HEAD = 48
_LOGIN, _COMMAND, _LOGOUT, _NOP_IN, _RESPONSE, _LOGIN_RESPONSE, _DATA_IN = 0x43, 0x01, 0x46, 0x20, 0x21, 0x23, 0x25
_SECURITY, _OPERATIONAL, _FULL = 0, 1, 3  # stages of the login
_MAX_DATA = 1 << 18
_CHECK_CONDITION = 2
_UNIT_ATTENTION = 6
_DISK = 0
_MAX_REDIRECTS = 3
_MAX_LUN = 0x3FFF  # of those that two bytes tell
_PARAMETERS = {
    "HeaderDigest": "None", "DataDigest": "None", "MaxRecvDataSegmentLength": str(_MAX_DATA), "InitialR2T": "Yes",
    "ImmediateData": "No", "MaxBurstLength": str(_MAX_DATA), "FirstBurstLength": "65536", "MaxConnections": "1",
    "DefaultTime2Wait": "2", "DefaultTime2Retain": "0", "MaxOutstandingR2T": "1", "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes", "ErrorRecoveryLevel": "0",
}  # fmt: skip
# why a login fails, by class and detail
_REFUSALS = {
    0x0201: "user name or password are wrong, or it wants some and the storage has none",
    0x0202: "it does not let the initiator '{initiator}' in",
    0x0203: "there is no such target",
    0x0204: "the target was removed",
    0x0301: "it is out of service",
    0x0302: "it is out of resources",
}


class Login(NamedTuple):
    """Whom to talk to, and as whom. An empty user: without authentication."""

    portal: Portal
    target: str
    initiator: str
    user: str = ""
    password: str = ""


class _Answer(NamedTuple):
    head: bytes
    data: bytes


class _Redirected(Exception):
    def __init__(self, portal: Portal) -> None:
        self.portal = portal


@contextlib.contextmanager
def session(login: Login) -> Iterator[Session]:
    """Be logged in to a target.

    Raises:
        PveError: it does not answer in time, or lets nobody in.
    """
    place = login.portal
    with contextlib.ExitStack() as stack:
        for _ in range(_MAX_REDIRECTS):
            made = Session(login, place)
            try:
                made.log_in()
            except _Redirected as error:
                made.close()
                place = error.portal
            except BaseException:
                made.close()
                raise
            else:
                stack.callback(made.log_out)
                yield made
                return
        raise PveError(f"target '{login.target}' sends from portal to portal, the last one is '{place}'")


class Session:
    """One connection to one target."""

    def __init__(self, login: Login, place: Portal) -> None:
        self.login, self.place = login, place
        self._tag, self._command, self._expected = 0, 1, 0
        # a number of the random kind: two sessions with one number would end each other
        self._number = b"\x80" + os.urandom(3) + b"\0\0"
        self._socket = san.connect(place)
        self._deadline = 0.0
        self._begin(san.QUESTION_PATIENCE)

    def _begin(self, patience: float) -> None:
        """A question begins: what is said and answered until the next one has to be over in time."""
        self._deadline = time.monotonic() + patience

    def close(self) -> None:
        self._socket.close()

    # What is asked.

    def disks(self) -> Iterator[tuple[int, int]]:
        """Number and bytes of every LUN that is a disk."""
        said = self._ask(0, struct.pack(">BxBxxxIxx", 0xA0, 0, 16 << 10), 16 << 10, 8)
        length = min(struct.unpack_from(">I", said)[0], len(said) - 8) & ~7
        for place in range(8, 8 + length, 8):
            number = struct.unpack_from(">H", said, place)[0] & _MAX_LUN
            if self._kind(number) == _DISK:
                yield number, self.size(number)

    def _kind(self, number: int) -> int:
        return self._ask(number, struct.pack(">BxxBBx", 0x12, 0, 36), 36, 1)[0]

    def size(self, number: int) -> int:
        """Bytes of a LUN.

        Raises:
            NotFound: there is no such LUN.
        """
        if number > _MAX_LUN:
            raise self._no_lun(number)
        said = self._ask(number, struct.pack(">BB8xIxx", 0x9E, 0x10, 32), 32, 12)
        last, block = struct.unpack_from(">QI", said)
        return int((last + 1) * block)

    def _no_lun(self, number: int) -> NotFound:
        return NotFound(f"target '{self.login.target}' has no LUN {number}")

    def _ask(self, number: int, command: bytes, length: int, least: int) -> bytes:
        """Run a SCSI command that reads; one is tried again after news from the device (it was reset, it has grown).

        Args:
            number: of the LUN.
            command: what it is asked.
            length: bytes that it may answer.
            least: bytes without which the answer says nothing.
        """
        self._begin(san.QUESTION_PATIENCE)
        for _ in range(4):
            status, data, sense = self._run(number, command, length)
            if status == 0 and len(data) < least:
                raise PveError(f"target '{self.login.target}': the answer of LUN {number} is too short")
            if status == 0:
                return data
            key = sense[4] & 0xF if len(sense) > 4 else 0  # behind the length of two bytes
            if status != _CHECK_CONDITION or key != _UNIT_ATTENTION:
                break
        if sense[14:16] == b"\x25\x00":
            raise self._no_lun(number)
        raise PveError(
            f"target '{self.login.target}': LUN {number} answers with status {status}, sense {sense[2:20].hex()}"
        )

    def _run(self, number: int, command: bytes, length: int) -> tuple[int, bytes, bytes]:
        self._tag += 1
        flags = 0xC1  # final, read, simple queue
        lun = struct.pack(">H6x", number if number < 256 else 0x4000 | number)
        head = struct.pack(">BBxxI", _COMMAND, flags, 0) + lun
        head += struct.pack(">IIII", self._tag, length, self._command, self._expected) + command.ljust(16, b"\0")
        self._command += 1
        self._send(head)
        found = bytearray()
        while True:
            answer = self._receive()
            kind = answer.head[0] & 0x3F
            if kind == _DATA_IN:
                found += answer.data
                if len(found) > length:
                    raise PveError(f"target '{self.login.target}': LUN {number} answers with more than was asked for")
                if answer.head[1] & 1:  # with the status in it
                    return answer.head[3], bytes(found), b""
            elif kind == _RESPONSE:
                return answer.head[3], bytes(found), answer.data

    # Log in and out.

    def log_in(self) -> None:
        """Log in as the storage says."""
        self._begin(san.QUESTION_PATIENCE)
        login = self.login
        texts = {"InitiatorName": login.initiator, "TargetName": login.target, "SessionType": "Normal"}
        texts["AuthMethod"] = "CHAP,None" if login.user else "None"
        said, stage = self._negotiate(texts, _SECURITY, _OPERATIONAL)
        if stage == _SECURITY and said.get("AuthMethod") == "CHAP":
            said, stage = self._negotiate({"CHAP_A": "5"}, _SECURITY, _SECURITY)
            said, stage = self._negotiate(self._proof(said), _SECURITY, _OPERATIONAL)
        elif stage == _SECURITY:
            said, stage = self._negotiate({}, _SECURITY, _OPERATIONAL)
        while stage != _FULL:
            said, stage = self._negotiate(_PARAMETERS if stage == _OPERATIONAL else {}, _OPERATIONAL, _FULL)

    def _proof(self, said: Mapping[str, str]) -> dict[str, str]:
        """The answer to the target's challenge, which shows that the password is known."""
        if said.get("CHAP_A") != "5":
            raise PveError(f"target '{self.login.target}' wants another kind of CHAP than MD5")
        kind, challenge = said.get("CHAP_C", "")[:2].lower(), said.get("CHAP_C", "")[2:]
        try:
            number, data = bytes([int(said.get("CHAP_I", ""), 0)]), bytes.fromhex(challenge)
        except ValueError:
            number, data = b"", b""
        if kind != "0x" or not data:
            raise PveError(f"target '{self.login.target}' proves nobody's password: its challenge can't be understood")
        mixed = number + self.login.password.encode("utf-8", "surrogateescape") + data
        return {"CHAP_N": self.login.user, "CHAP_R": "0x" + hashlib.md5(mixed, usedforsecurity=False).hexdigest()}

    def _negotiate(self, texts: Mapping[str, str], stage: int, following: int) -> tuple[dict[str, str], int]:
        """Say something in a stage of the login; gives what the target says, and the stage that comes now."""
        data = b"".join(f"{key}={value}\0".encode() for key, value in texts.items())
        flags = stage << 2 | (0x80 | following if following != stage else 0)
        head = struct.pack(">BBxxI", _LOGIN, flags, len(data)) + self._number + b"\0\0"
        head += struct.pack(">IHxxII", 0, 0, self._command, self._expected) + bytes(16)
        self._send(head, data)
        answer = self._receive()
        if answer.head[0] & 0x3F != _LOGIN_RESPONSE:
            raise PveError(f"portal '{self.place}' does not talk iSCSI")
        pairs = (word.partition("=") for word in answer.data.decode("utf-8", "replace").split("\0") if word)
        said = {key: value for key, _, value in pairs}
        self._check(struct.unpack_from(">H", answer.head, 36)[0], said)
        return said, answer.head[1] & 3 if answer.head[1] & 0x80 else stage

    def _check(self, status: int, said: Mapping[str, str]) -> None:
        if status >> 8 == 1:
            if not (address := said.get("TargetAddress", "").partition(",")[0]):
                raise PveError(f"portal '{self.place}' sends elsewhere, but does not say where")
            raise _Redirected(san.portal(address, self.place.port))
        if status:
            why = _REFUSALS.get(status, f"status {status:#06x}").format(initiator=self.login.initiator)
            raise PveError(f"can't log in to target '{self.login.target}' at portal '{self.place}': {why}")

    def log_out(self) -> None:
        """Say goodbye, and do not insist on an answer."""
        self._begin(san.PATIENCE)
        self._tag += 1
        head = struct.pack(">BBxxI8x", _LOGOUT, 0x80, 0)
        head += struct.pack(">IHxxII16x", self._tag, 0, self._command, self._expected)
        with contextlib.suppress(PveError):
            self._send(head)
            self._receive()
        self.close()

    # PDUs.

    def _send(self, head: bytes, data: bytes = b"") -> None:
        try:
            self._wait()
            self._socket.sendall(head + data + bytes(-len(data) % 4))
        except OSError as error:
            raise PveError(f"portal '{self.place}' does not answer any more: {error}") from None

    def _wait(self) -> None:
        """Let the next wait end before the question has to be over. TimeoutError: there is no time left."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it comes to no end")
        self._socket.settimeout(min(left, san.PATIENCE))

    def _receive(self) -> _Answer:
        while True:
            head = self._read(_HEAD)
            length = struct.unpack_from(">I", head, 4)[0] & 0xFFFFFF
            skipped = head[4] * 4  # additional headers
            if length > _MAX_DATA:
                raise PveError(f"portal '{self.place}' does not talk iSCSI")
            data = self._read(skipped + length + -length % 4)[skipped : skipped + length]
            kind = head[0] & 0x3F
            if kind != _DATA_IN or head[1] & 1:  # other data has no number
                self._expected = struct.unpack_from(">I", head, 24)[0] + 1 & 0xFFFFFFFF
            if kind != _NOP_IN:
                return _Answer(head, data)

    def _read(self, length: int) -> bytes:
        found = bytearray()
        try:
            while len(found) < length:
                self._wait()
                part = self._socket.recv(length - len(found))
                if not part:
                    raise PveError(f"portal '{self.place}' has closed the connection")
                found += part
        except OSError as error:
            raise PveError(f"portal '{self.place}' does not answer any more: {error}") from None
        return bytes(found)
