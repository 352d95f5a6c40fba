"""Servers of VMware: the few calls that are needed to find virtual machines and to read their files."""

from __future__ import annotations

import contextlib
import html
import http.client
import re
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urlencode

from pvetools.storage import markup
from pvetools.storage.markup import Node
from pvetools.system.errors import NotFound, PveError

TIMEOUT = 30.0
_LARGEST = 64 << 20
_LARGEST_REFUSAL = 64 << 10
_BLOCK, _BLOCKS = 1 << 20, 64  # bytes of a kept piece, and how many are kept
_ATTEMPTS = 4
_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?><Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><Body><{name} xmlns="urn:vim25">{body}</{name}></Body>'
    "</Envelope>"
)
_PROPERTIES = {
    "VirtualMachine": ("name", "config.files.vmPathName", "datastore", "runtime.powerState"),
    "Datacenter": ("name", "datastore"),
    "Datastore": ("name", "summary.url"),
}
_STORED = re.compile(r"\[([^\]]+)\] ?(.+)")
_MOUNT = re.compile(r"/vmfs/volumes/([^/]+)/(.+)")


class Server(NamedTuple):
    """Where to log in, and as whom."""

    host: str
    port: int
    user: str
    password: str
    verify: bool = True


class Place(NamedTuple):
    """A file on a datastore."""

    datacenter: str
    datastore: str
    path: str

    def __str__(self) -> str:
        return "/".join(self)

    def beside(self, name: str) -> Place:
        """A file in the same folder."""
        folder, slash, _ = self.path.rpartition("/")
        return self._replace(path=f"{folder}{slash}{name}")


class Machine(NamedTuple):
    """A virtual machine: the place of its configuration, and whether it is switched off."""

    name: str
    place: Place
    off: bool


class Inventory(NamedTuple):
    """The machines of a server, and its datastores (datacenter, name) by the id they are mounted with."""

    machines: list[Machine]
    mounts: dict[str, tuple[str, str]]

    def resolve(self, name: str, beside: Place) -> Place:
        """The file that a machine's configuration names: relative to it, or with the mount point of its datastore.

        Raises:
            NotFound: no such datastore.
        """
        match = _MOUNT.fullmatch(name)
        if not match:
            return beside.beside(name)
        if match[1] not in self.mounts:
            raise NotFound(f"'{name}' lies on a datastore that the server does not have")
        return Place(*self.mounts[match[1]], match[2])


def _reference(node: Node | None, what: str) -> str:
    """A reference to an object of the server, as it stands in calls."""
    if node is None:
        raise PveError(f"the server did not name its {what}")
    return f'type="{html.escape(node.attributes.get("type", ""))}">{html.escape(node.text)}'


class Session:
    """A login. Its cookie opens the files too."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cookie = ""
        self._content: Node | None = None

    # Calls.

    def connection(self) -> http.client.HTTPSConnection:
        """A new connection, which is made with its first request."""
        context = ssl.create_default_context()
        if not self.server.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(self.server.host, self.server.port, timeout=TIMEOUT, context=context)

    def headers(self, more: Mapping[str, str]) -> dict[str, str]:
        """Headers of a request."""
        return {"User-Agent": "pvetools", **({"Cookie": self.cookie} if self.cookie else {}), **more}

    def explained(self, error: Exception) -> PveError:
        """What went wrong with a connection, in words that name the server."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return PveError(
                f"the certificate of server '{self.server.host}' is not trusted ({error.verify_message}); "
                "skip-cert-verification trusts it whatever it is"
            )
        return PveError(f"server '{self.server.host}' port {self.server.port}: {_reason(error)}")

    def _request(self, verb: str, path: str, body: bytes | None = None, more: Mapping[str, str] = {}) -> _Answer:
        connection = self.connection()
        try:
            connection.request(verb, path, body=body, headers=self.headers(more))
            return _Answer(connection, connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self.explained(error) from None

    def call(self, name: str, this: str, body: str = "") -> Node:
        """Call a method; gives the element that it returned.

        Raises:
            PveError: with the words of the server.
        """
        text = _ENVELOPE.format(name=name, body=f"<_this {this}</_this>{body}").encode()
        headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '"urn:vim25/6.0"'}
        with self._request("POST", "/sdk", text, headers) as answer:
            data = answer.read(_LARGEST)
            if not self.cookie:
                self.cookie = (answer.headers.get("Set-Cookie") or "").partition(";")[0]
            content_type = answer.headers.get("Content-Type") or ""
            if "xml" not in content_type:
                raise PveError(f"server '{self.server.host}' answered {answer.status}: no VMware server?")
        body_node = markup.parse(data, f"the answer of server '{self.server.host}'").first("Body")
        fault = body_node.first("Fault") if body_node else None
        if fault:
            raise PveError(f"server '{self.server.host}': {fault.value('faultstring') or 'the call failed'}")
        return (body_node.at(f"{name}Response") if body_node else None) or Node("", {})

    def _part(self, name: str) -> str:
        if self._content is None:
            self._content = self.call("RetrieveServiceContent", 'type="ServiceInstance">ServiceInstance').first(
                "returnval"
            )
        return _reference(self._content.first(name) if self._content else None, name)

    def login(self) -> None:
        """Log in.

        Raises:
            PveError: not reachable, or user name and password are wrong.
        """
        user, password = html.escape(self.server.user), html.escape(self.server.password)
        manager = self._part("sessionManager")
        self.cookie = ""
        self.call("Login", manager, f"<userName>{user}</userName><password>{password}</password>")

    def logout(self) -> None:
        """Log out, if the server still knows us."""
        with contextlib.suppress(PveError):
            self.call("Logout", self._part("sessionManager"))

    # What there is.

    def inventory(self) -> Inventory:
        """All machines and datastores.

        Raises:
            PveError: as ``call``.
        """
        objects = {"VirtualMachine": [], "Datacenter": [], "Datastore": []}  # type: dict[str, list[_Object]]
        for found in self._objects():
            objects.get(found.type, []).append(found)
        stores = {store.id: store.value("name") for store in objects["Datastore"]}
        homes = {
            (store, stores[store]): center.value("name")
            for center in objects["Datacenter"]
            for store in center.references("datastore")
            if store in stores
        }
        machines = [made for found in objects["VirtualMachine"] if (made := _machine(found, homes))]
        mounts: dict[str, tuple[str, str]] = {}
        for store in objects["Datastore"]:
            name = store.value("name")
            home = (homes.get((store.id, name), ""), name)
            mounts |= {name: home, store.value("summary.url").rstrip("/").rpartition("/")[2]: home}
        return Inventory(sorted(machines), mounts)

    def _objects(self) -> Iterator[_Object]:
        types = "".join(f"<type>{type_}</type>" for type_ in _PROPERTIES)
        made = self.call(
            "CreateContainerView",
            self._part("viewManager"),
            f"<container {self._part('rootFolder')}</container>{types}<recursive>true</recursive>",
        )
        view = _reference(made.first("returnval"), "view")
        wanted = "".join(
            f"<propSet><type>{type_}</type>{''.join(f'<pathSet>{path}</pathSet>' for path in paths)}</propSet>"
            for type_, paths in _PROPERTIES.items()
        )
        through = (
            f'<objectSet><obj {view}</obj><skip>true</skip><selectSet xsi:type="TraversalSpec">'
            "<type>ContainerView</type><path>view</path><skip>false</skip></selectSet></objectSet>"
        )
        collector = self._part("propertyCollector")
        answer = self.call("RetrievePropertiesEx", collector, f"<specSet>{wanted}{through}</specSet><options/>")
        while result := answer.first("returnval"):
            yield from map(_Object, result.all("objects"))
            token = result.value("token")
            if not token:
                return
            answer = self.call("ContinueRetrievePropertiesEx", collector, f"<token>{html.escape(token)}</token>")

    # Files.

    def read(self, place: Place, limit: int) -> bytes:
        """The beginning of a file, at most ``limit`` bytes.

        Raises:
            NotFound: no such file. PveError.
        """
        with self._file("GET", place, {"Range": f"bytes=0-{limit - 1}"}) as answer:
            return answer.read(limit)

    def size(self, place: Place) -> int:
        """Bytes of a file.

        Raises:
            As ``read``.
        """
        with self._file("HEAD", place, {}) as answer:
            text = answer.headers.get("Content-Length") or ""
            return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else 0

    @contextlib.contextmanager
    def _file(self, verb: str, place: Place, more: Mapping[str, str]) -> Iterator[_Answer]:
        with self._request(verb, _path(place), more=more) as answer:
            if answer.status == 404:
                raise NotFound(f"server '{self.server.host}' has no file '{place}'")
            if answer.status not in (200, 206):
                raise PveError(f"server '{self.server.host}' does not give '{place}': {answer.status} {answer.reason}")
            yield answer


class Reader:
    """A file that is read in pieces, by several threads at a time; each of them keeps its connection."""

    def __init__(self, session: Session, place: Place) -> None:
        self._session, self._place = session, place
        self._mine = threading.local()
        self._login = threading.Lock()
        self._block = lru_cache(_BLOCKS)(self._fetch_block)

    def read(self, offset: int, length: int) -> bytes:
        """A piece of the file; small ones come out of larger ones that are kept for a while.

        Raises:
            PveError: the server does not give it, also when it is asked again.
        """
        if length >= _BLOCK:
            return self._fetch(offset, length)
        data, at = b"", offset
        while len(data) < length:
            block = self._block(at // _BLOCK)
            piece = block[at % _BLOCK : at % _BLOCK + length - len(data)]
            if not piece:
                raise PveError(f"'{self._place}' ended at byte {at}")
            data, at = data + piece, at + len(piece)
        return data

    def _fetch_block(self, number: int) -> bytes:
        return self._fetch(number * _BLOCK, _BLOCK, whole=False)

    def _fetch(self, offset: int, length: int, *, whole: bool = True) -> bytes:
        for attempt in range(1, _ATTEMPTS + 1):
            cookie = self._session.cookie
            try:
                status, data = self._ask(offset, length)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                if attempt == _ATTEMPTS:
                    raise self._session.explained(error) from None
                continue
            if status == 206 and (len(data) == length or not whole):
                return data
            if status not in (401, 403) or attempt == _ATTEMPTS:
                raise PveError(
                    f"server '{self._session.server.host}' does not give a piece of '{self._place}': {status}"
                )
            self._renew(cookie)
        raise AssertionError  # the last attempt has ended before

    def _ask(self, offset: int, length: int) -> tuple[int, bytes]:
        connection = getattr(self._mine, "connection", None) or self._session.connection()
        self._mine.connection = connection
        headers = self._session.headers({"Range": f"bytes={offset}-{offset + length - 1}"})
        connection.request("GET", _path(self._place), headers=headers)
        response = connection.getresponse()
        data = response.read(length if response.status == 206 else _LARGEST_REFUSAL)
        if response.status == 206 and response.length:  # cut off, which is no error in http.client's eyes
            raise http.client.IncompleteRead(data)
        return response.status, data

    def _drop(self) -> None:
        if connection := getattr(self._mine, "connection", None):
            connection.close()
        self._mine.connection = None

    def _renew(self, cookie: str) -> None:
        """Log in again, unless another thread has done that since."""
        self._drop()
        with self._login:
            if self._session.cookie == cookie:
                self._session.login()


def _path(place: Place) -> str:
    return f"/folder/{quote(place.path)}?{urlencode({'dcPath': place.datacenter, 'dsName': place.datastore})}"


class _Answer(contextlib.AbstractContextManager["_Answer"]):
    """An answer that is being read; its connection is closed with the block."""

    def __init__(self, connection: http.client.HTTPSConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response = connection, response
        self.status, self.reason, self.headers = response.status, response.reason, response.headers

    def read(self, limit: int) -> bytes:
        try:
            return self._response.read(limit)
        except (OSError, http.client.HTTPException) as error:
            raise PveError(f"server '{self._connection.host}': {_reason(error)}") from None

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:g} seconds"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Object:
    """An object of the server with the properties that were asked for."""

    def __init__(self, node: Node) -> None:
        reference = node.first("obj") or Node("", {})
        self.id, self.type = reference.text, reference.attributes.get("type", "")
        self._values = {row.value("name"): row.first("val") for row in node.all("propSet")}

    def value(self, name: str) -> str:
        found = self._values.get(name)
        return found.text if found else ""

    def references(self, name: str) -> Iterable[str]:
        found = self._values.get(name)
        return [child.text for child in found.children] if found else []


def _machine(found: _Object, homes: dict[tuple[str, str], str]) -> Machine | None:
    """A machine; None when its configuration cannot be reached."""
    match = _STORED.fullmatch(found.value("config.files.vmPathName"))
    if not match:
        return None
    centers = [homes[store, match[1]] for store in found.references("datastore") if (store, match[1]) in homes]
    if not centers:
        return None
    return Machine(
        found.value("name"), Place(centers[0], match[1], match[2]), found.value("runtime.powerState") == "poweredOff"
    )


@contextlib.contextmanager
def session(server: Server) -> Iterator[Session]:
    """Log in for the block.

    Raises:
        PveError: that is not possible.
    """
    made = Session(server)
    made.login()
    try:
        yield made
    finally:
        made.logout()
