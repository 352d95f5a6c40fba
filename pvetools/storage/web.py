"""Reading from web servers: only from addresses that were checked, every redirect anew.

A server on the local network would show its pages to whoever may only download ISO images; so addresses that are not
public are refused. ``PVETOOLS_DOWNLOAD_NETWORKS`` in the environment lists networks that are allowed nevertheless.
The name is resolved once: the address that was checked is the one that is connected to.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from pvetools.system.errors import PveError, Refused

ALLOWED = "PVETOOLS_DOWNLOAD_NETWORKS"
REDIRECTS = 10
CONNECT_TIMEOUT = 20.0
IDLE_TIMEOUT = 60.0
LONGEST = 12 * 3600.0
_BLOCK = 256 << 10
# networks of IPv6 whose last four bytes are an address of IPv4: NAT64, SIIT, the old "compatible" ones
_EMBEDDING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")))
_SPECIAL = tuple(map(ipaddress.ip_address, ("::", "::1")))
_MOVED = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_SECRET_FREE = re.compile(r"[?#].*")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


# -- addresses ---------------------------------------------------------------------------------------------------------


def _inner(address: Address) -> Address:
    """The IPv4 address that one of IPv6 stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address not in _SPECIAL and any(address in network for network in _EMBEDDING):
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address


def is_public(text: str) -> bool:
    """Whether an address is one of the internet at large."""
    address = _inner(ipaddress.ip_address(text))
    return address.is_global and not address.is_multicast and not getattr(address, "is_site_local", False)


def _allowed_networks() -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    texts = [part for part in re.split(r"[,;\s]+", os.environ.get(ALLOWED, "")) if part]
    try:
        return [ipaddress.ip_network(text) for text in texts]
    except ValueError as error:
        raise PveError(f"{ALLOWED}: {error}") from None


def _may_connect(text: str) -> bool:
    address = _inner(ipaddress.ip_address(text))
    return is_public(text) or any(address in network for network in _allowed_networks())


def addresses(host: str, port: int) -> list[str]:
    """Addresses of a host that may be connected to.

    Raises:
        PveError: unknown host. Refused: it has none that is public or allowed.
    """
    try:
        found = [str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PveError(f"can't resolve host name '{host}': {reason}") from None
    usable = [address for address in dict.fromkeys(found) if _may_connect(address)]
    if not usable:
        raise Refused(
            f"'{host}' has the address {found[0]}, which is not public; {ALLOWED} in the environment can allow its"
            " network, such as 10.0.0.0/8"
        )
    return usable


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked; the name is only what the server is asked for."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        super().__init__(host, port, timeout=IDLE_TIMEOUT)
        self.default_port = _PORTS["https" if context else "http"]
        self._context = context

    def connect(self) -> None:
        self.sock = _connected(self.host, self.port)
        if self._context:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)


def _connected(host: str, port: int) -> socket.socket:
    failed: OSError | None = None
    for address in addresses(host, port):
        try:
            made = socket.create_connection((address, port), CONNECT_TIMEOUT)
        except OSError as error:
            failed = error
        else:
            made.settimeout(IDLE_TIMEOUT)
            return made
    reason = getattr(failed, "strerror", None) or failed
    raise PveError(f"can't connect to '{host}' port {port}: {reason}")


# -- requests ----------------------------------------------------------------------------------------------------------


class _Url(NamedTuple):
    secure: bool
    host: str
    port: int
    target: str


def shown(url: str) -> str:
    """An address without the parts that may hold a secret."""
    return _SECRET_FREE.sub("", url)


def _split(url: str) -> _Url:
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (
            (parts.hostname or "").encode("idna").decode() if not (parts.hostname or "").isascii() else parts.hostname
        )
    except ValueError as error:
        raise PveError(f"'{shown(url)}' is not a valid address: {error}") from None
    if parts.scheme not in _PORTS:
        raise Refused(f"'{shown(url)}': only http:// and https:// are served")
    if not host:
        raise Refused(f"'{shown(url)}' names no host")
    if parts.username is not None:
        raise Refused("user names and passwords in addresses are not supported")
    if re.search(r"[\x00-\x20\x7f]", host):
        raise PveError(
            f"'{shown(url)}' is not a valid address: blanks and control characters in the name of the server"
        )
    path = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*[]")
    query = quote(parts.query, safe="/%:=&~+!$,;'@()*[]?")
    return _Url(parts.scheme == "https", host, port or _PORTS[parts.scheme], f"{path}?{query}" if query else path)


class Answer:
    """An answer that is being read."""

    def __init__(self, url: str, response: http.client.HTTPResponse) -> None:
        self.url = url
        self._response = response
        self._deadline = time.monotonic() + LONGEST

    @property
    def headers(self) -> Message:
        return self._response.headers

    @property
    def size(self) -> int | None:
        """Bytes that the server has announced."""
        text = self.headers.get("Content-Length", "")
        return int(text) if re.fullmatch(r"\d{1,20}", text, re.ASCII) else None

    def chunks(self) -> Iterator[bytes]:
        """The content.

        Raises:
            PveError: it ends early, stalls, or takes far too long.
        """
        wanted, done = self.size, 0
        while chunk := self._next():
            done += len(chunk)
            yield chunk
        if wanted is not None and done != wanted:
            raise PveError(f"'{shown(self.url)}' ended after {done} of {wanted} bytes")

    def _next(self) -> bytes:
        if time.monotonic() > self._deadline:
            raise PveError(f"'{shown(self.url)}' took longer than {LONGEST / 3600:g} hours")
        try:
            return self._response.read1(_BLOCK)  # what is there: a slow server may not hold up the clock
        except (OSError, http.client.HTTPException) as error:
            raise PveError(f"reading '{shown(self.url)}' failed: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no data within {IDLE_TIMEOUT:g} seconds"
    if isinstance(error, http.client.IncompleteRead):
        return "it ended early"
    return str(error) or type(error).__name__


class StatusError(PveError):
    """The server answered with another status than 200."""

    def __init__(self, url: str, response: http.client.HTTPResponse) -> None:
        self.code, self.headers = response.status, response.headers
        super().__init__(f"'{shown(url)}': {response.status} {response.reason}")


@contextlib.contextmanager
def opened(
    url: str,
    verb: str = "GET",
    *,
    verify: bool = True,
    downgrade: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Answer]:
    """Ask for an address and follow its redirects.

    Args:
        url: http or https.
        verb: GET or HEAD.
        verify: the server's certificate has to be good.
        downgrade: a redirect may lead from https to http.
        headers: more of them; other servers than the first do not get ``Authorization``.

    Raises:
        StatusError: not there. PveError: not reachable.
        Refused: an address, here or behind a redirect, that is not allowed.
    """
    given, first = url, _split(url)
    for _ in range(REDIRECTS + 1):
        target = _split(url)
        connection = _Connection(target.host, target.port, _context(verify) if target.secure else None)
        own = target[:3] == first[:3]
        more = {name: text for name, text in (headers or {}).items() if own or name != "Authorization"}
        with contextlib.closing(connection):
            response = _asked(connection, target, verb, more)
            if response.status not in _MOVED:
                _check_answer(url, response)
                yield Answer(url, response)
                return
            url = _redirected(url, response, downgrade)
    raise PveError(f"'{shown(given)}': more than {REDIRECTS} redirects")


def _context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _asked(connection: _Connection, target: _Url, verb: str, more: Mapping[str, str]) -> http.client.HTTPResponse:
    headers = {"User-Agent": "pvetools", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
    try:
        connection.request(verb, target.target, headers={**headers, **more})
        return connection.getresponse()
    except ssl.SSLCertVerificationError as error:
        raise PveError(f"the certificate of '{target.host}' is not trusted: {error.verify_message}") from None
    except (OSError, http.client.HTTPException) as error:
        raise PveError(f"asking '{target.host}' failed: {_reason(error)}") from None


def _redirected(url: str, response: http.client.HTTPResponse, downgrade: bool) -> str:
    location = response.headers.get("Location")
    if not location:
        raise PveError(f"'{shown(url)}' redirects to nowhere")
    try:
        there = urljoin(url, location)
    except ValueError as error:
        raise PveError(f"'{shown(url)}' redirects to something that is no address: {error}") from None
    if url.startswith("https:") and not there.startswith("https:") and not downgrade:
        raise Refused(f"'{shown(url)}' redirects to '{shown(there)}', which is not encrypted; give a checksum")
    return there


def _check_answer(url: str, response: http.client.HTTPResponse) -> None:
    if response.status != 200:
        raise StatusError(url, response)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise Refused(f"'{shown(url)}' is sent with the encoding '{encoding}', which nobody asked for")


# -- metadata ----------------------------------------------------------------------------------------------------------


def _file_name(headers: Message) -> str:
    """The name that the server wants a file to be saved under; empty when it says nothing sensible."""
    try:
        return headers.get_filename() or ""
    except ValueError:
        return ""


class Metadata(NamedTuple):
    """What a server tells about a file."""

    filename: str
    size: int | None
    mimetype: str


def metadata(url: str, *, verify: bool = True) -> Metadata:
    """Ask for name, size and type of a file.

    Raises:
        As ``opened``.
    """
    with opened(url, "HEAD", verify=verify, downgrade=True) as answer:
        named = _file_name(answer.headers) or unquote(urlsplit(answer.url).path).rpartition("/")[2]
        kind = answer.headers.get_content_type() if "Content-Type" in answer.headers else ""
        return Metadata(re.sub(r"[\x00-\x1f\x7f]", "", re.split(r"[/\\]", named)[-1]), answer.size, kind)
