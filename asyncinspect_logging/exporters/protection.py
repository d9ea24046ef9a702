"""Who may read the metrics: TLS and client certificates, a token or a password, and the names a server answers to.

Secrets are kept as digests, compared in constant time, and stand in no message, no `repr` and no log. Files are looked
at again when they change: certificates and tokens are renewed while a server runs.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, TypedDict

from ..config import SERVER_VARIABLES
from ..diagnostics import warn_once
from ..errors import ConfigError

if TYPE_CHECKING:
    import ssl

__all__ = ["Protection", "ServerOptions", "is_loopback"]

#: Seconds between two looks at whether the files have changed.
_LOOK: Final = 1.0
_MAX_SECRETS: Final = 100
_MAX_FILE: Final = 64 * 1024
#: What a token may be made of (RFC 6750, section 2.1, but for its order).
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+")
_AUTHORITY: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@/\s]*))(?::[0-9]{0,5})?")
_PREFIX: Final = "ASYNC_INSPECT_METRICS_"
#: Variables that somebody has set so that not everybody reads.
_PROTECTING: Final = ("CLIENT_CAFILE", "BEARER_TOKEN", "BEARER_TOKEN_FILE", "BASIC_AUTH", "BASIC_AUTH_FILE")


class ServerOptions(TypedDict, total=False):
    """What `PrometheusExporter.start_server` takes beside an address.

    Each that is not given is what the environment variable ASYNC_INSPECT_METRICS_<OPTION> says; `basic_auth` is
    USER:PASSWORD there, and `allowed_hosts` has commas.

    certfile, keyfile: PEM files with the server's certificate (chain) and its key, which may be in the first, too.
    key_password_file: a file with the password of the key.
    client_cafile: clients must show a certificate that one in this PEM file has signed.
    bearer_token, bearer_token_file: the token that clients must send, or a file with one on each line.
    basic_auth, basic_auth_file: passwords by user, or a file with USER:PASSWORD on each line.
    allowed_hosts: names that requests may call the server by, beside localhost and IP addresses; "*" is any.
        Where the server listens on the loopback interface alone, others are refused also if it is not given.
    ready_lag: seconds from which on an event loop that does not come back makes `/-/ready` say no.
    """

    certfile: str | os.PathLike[str] | None
    keyfile: str | os.PathLike[str] | None
    key_password_file: str | os.PathLike[str] | None
    client_cafile: str | os.PathLike[str] | None
    bearer_token: str | None
    bearer_token_file: str | os.PathLike[str] | None
    basic_auth: Mapping[str, str] | None
    basic_auth_file: str | os.PathLike[str] | None
    allowed_hosts: Iterable[str] | None
    ready_lag: float | None


def _digest(secret: bytes) -> bytes:
    return sha256(secret).digest()


def _read(option: str, path: str | os.PathLike[str]) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        # What cannot be decoded is in the error, and may be a secret.
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(
            f"{option}={os.fspath(path)!r} cannot be read: {why}; give a file that this user can read"
        ) from None
    if len(text) > _MAX_FILE:
        raise ConfigError(f"{option}={os.fspath(path)!r} is longer than {_MAX_FILE} bytes; it holds one secret a line")
    return text


def _lines(option: str, path: str | os.PathLike[str]) -> list[str]:
    lines = [line.strip() for line in _read(option, path).splitlines() if line.strip()]
    if not 0 < len(lines) <= _MAX_SECRETS:
        # An empty file must not mean that anybody may read.
        raise ConfigError(
            f"{option}={os.fspath(path)!r} has {len(lines)} lines with something on them; write a secret on each, "
            f"1 to {_MAX_SECRETS} of them"
        )
    return lines


def _tokens(option: str, tokens: Iterable[object]) -> list[bytes]:
    found = []
    for token in tokens:
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ConfigError(
                f"{option} has a token that no client could send (not shown here); write letters, digits and ._~+/=- "
                "such as \"python -c 'import secrets; print(secrets.token_urlsafe(32))'\" prints"
            )
        found.append(_digest(b"bearer " + token.encode()))
    return found


def _users(option: str, pairs: Iterable[tuple[object, object]]) -> list[bytes]:
    found = []
    for user, password in pairs:
        if not isinstance(user, str) or not isinstance(password, str) or not user or not password or ":" in user:
            raise ConfigError(
                f"{option} has an entry (not shown here) that is not USER:PASSWORD; write both, with one colon"
            )
        found.append(_digest(b"basic " + f"{user}:{password}".encode()))
    return found


class _Watched:
    """What is made of files, made again when they change. What cannot be made of them then is told, and the old stays.

    `make` raises ConfigError.
    """

    def __init__(self, files: Iterable[str | os.PathLike[str] | None], make: Callable[[], Any]) -> None:
        self._files = [file for file in files if file is not None]
        self._make = make
        self._seen = self._look()
        self._looked_at = time.monotonic()
        self._made = make()

    def _look(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                stat = os.stat(file)
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
            except (OSError, ValueError):
                found.append(None)
        return found

    def get(self) -> Any:
        now = time.monotonic()
        if self._files and now - self._looked_at >= _LOOK:
            self._looked_at = now
            seen = self._look()
            if seen != self._seen:
                try:
                    self._made, self._seen = self._make(), seen
                except ConfigError as error:
                    # Perhaps one of two files is renewed and the other one is about to be: the next look tells.
                    message = "what protects the metrics server has changed and cannot be used; the former stays: %s"
                    warn_once("metrics server", f"reload {error}", message, error)
        return self._made


class _KeyIsEncrypted(Exception):
    pass


class Protection:
    """How a server is protected, by the options of `ServerOptions` and the environment.

    Raises ConfigError for options that cannot be used, or not together; the message holds no secret.
    """

    def __init__(self, options: ServerOptions, environ: Mapping[str, str] | None = None) -> None:
        unknown = sorted(options.keys() - ServerOptions.__annotations__)
        if unknown:
            takes = ", ".join(ServerOptions.__annotations__)
            message = f"start_server() got an unexpected keyword argument {unknown[0]!r}; it takes an address, such as"
            raise TypeError(f"{message} '127.0.0.1:9090' or a port, and {takes}")
        env = os.environ if environ is None else environ
        given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        self._called = {key: key for key in given}
        for variable in SERVER_VARIABLES:
            option, text = variable.lower(), env.get(_PREFIX + variable, "").strip()
            if not text and variable in _PROTECTING and _PREFIX + variable in env and option not in given:
                # Most likely what it was to be made of is missing, and the metrics would be open.
                raise ConfigError(
                    f"{_PREFIX}{variable} is empty, which would leave the metrics open; give it a value, or unset it"
                )
            if text and option not in given:
                given[option] = text
                self._called[option] = _PREFIX + variable
        self._given = given
        for one, other in (("bearer_token", "bearer_token_file"), ("basic_auth", "basic_auth_file")):
            if one in given and other in given:
                raise ConfigError(f"{self._name(one)} and {self._name(other)} are both given; give one of them")
        for needy in ("keyfile", "key_password_file", "client_cafile"):
            if needy in given and "certfile" not in given:
                raise ConfigError(
                    f"{self._name(needy)}={given[needy]!r} is of no use without a certificate; give certfile= too"
                )
        self.client_certificates = "client_cafile" in given
        self._tls: _Watched | None = None
        if "certfile" in given:
            files = [given.get(option) for option in ("certfile", "keyfile", "key_password_file", "client_cafile")]
            self._tls = _Watched(files, self._make_context)
        self._secrets: _Watched | None = None
        self._schemes = [
            scheme
            for scheme, option in (("Bearer", "bearer_token"), ("Basic", "basic_auth"))
            if option in given or f"{option}_file" in given
        ]
        if self._schemes:
            self._fixed = self._digests_of_given()
            files = [given.get("bearer_token_file"), given.get("basic_auth_file")]
            self._secrets = _Watched(files, self._make_secrets)
        self._hosts = self._allowed_hosts(given.get("allowed_hosts"))
        self.ready_lag = self._seconds(given.get("ready_lag"))

    def __repr__(self) -> str:
        parts = ["TLS"] * self.tls + ["client certificates"] * self.client_certificates + self._schemes
        return f"<Protection: {', '.join(parts) or 'none'}>"

    def _name(self, option: str) -> str:
        return self._called.get(option, option)

    @property
    def tls(self) -> bool:
        return self._tls is not None

    @property
    def authenticates(self) -> bool:
        """Whether a client must show who it is."""
        return self._secrets is not None or self.client_certificates

    def context(self) -> ssl.SSLContext | None:
        """What the next connection is secured with; None without TLS."""
        return None if self._tls is None else self._tls.get()

    def challenges(self) -> list[tuple[str, str]]:
        """The headers of a 401."""
        ways = {"Bearer": 'Bearer realm="metrics"', "Basic": 'Basic realm="metrics", charset="UTF-8"'}
        return [("WWW-Authenticate", ways[scheme]) for scheme in self._schemes]

    def admits(self, authorization: str) -> bool:
        """Whether a header Authorization has one of the secrets, or none is needed. It takes as long whichever is
        right, and whatever is wrong.
        """
        if self._secrets is None:
            return True
        scheme, _, rest = authorization.partition(" ")
        rest = rest.strip(" ")
        # A header is read as latin-1.
        told = rest.encode("latin-1", "replace")
        if scheme.lower() == "basic":
            try:
                told = base64.b64decode(told, validate=True)
            except (binascii.Error, ValueError):
                told = b""
        digest = _digest(scheme.lower().encode("latin-1", "replace") + b" " + told)
        found = False
        for secret in self._secrets.get():
            found |= hmac.compare_digest(digest, secret)
        return found

    def answers_to(self, host: str, *, loopback: bool) -> bool:
        """Whether a request may call the server that.

        A web page of somebody else's can have its own name lead to 127.0.0.1 or into a private network, and then read
        what a browser there gets (DNS rebinding). It cannot have an IP address lead elsewhere, nor localhost.
        """
        if self._hosts is None and not loopback:
            return True
        found = _AUTHORITY.fullmatch(host)
        if found is None:
            return False
        name = (found[1] or found[2] or "").lower().removesuffix(".")
        if not host or name == "localhost" or name.endswith(".localhost"):
            return True  # a browser names a host always
        allowed = self._hosts or frozenset()
        return "*" in allowed or name in allowed or _address(name) is not None

    def _make_context(self) -> ssl.SSLContext:
        # Here, since most servers speak plain HTTP and the import takes its time.
        import ssl

        given = self._given
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        # Raises a clear error where one cannot be read, of which OpenSSL would not say the name.
        for option in ("certfile", "keyfile", "client_cafile"):
            if option in given:
                _read(self._name(option), given[option])
        password = None
        if "key_password_file" in given:
            password = _read(self._name("key_password_file"), given["key_password_file"]).rstrip("\r\n")

        def ask() -> str:
            # Without this, OpenSSL asks at the terminal, and waits.
            if password is None:
                raise _KeyIsEncrypted
            return password

        certfile, keyfile = given["certfile"], given.get("keyfile")
        key = f"{self._name('certfile')}={certfile!r}" if keyfile is None else f"{self._name('keyfile')}={keyfile!r}"
        try:
            context.load_cert_chain(certfile, keyfile, ask)
        except _KeyIsEncrypted:
            raise ConfigError(
                f"the key in {key} is encrypted; give key_password_file= too, a file with its password"
            ) from None
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or ""
            if reason == "KEY_VALUES_MISMATCH":
                fix = f"it is not the key of the certificate in {certfile!r}"
            elif password is not None and ("DECRYPT" in reason or reason == "" or "PKCS" in reason):
                fix = f"it cannot be decrypted with the password in {self._name('key_password_file')}"
            else:
                fix = "give PEM files with a certificate and its key"
            raise ConfigError(f"{key} cannot be used ({reason or type(error).__name__}): {fix}") from None
        if self.client_certificates:
            try:
                context.load_verify_locations(given["client_cafile"])
            except (ssl.SSLError, ValueError) as error:
                why = getattr(error, "reason", None) or type(error).__name__
                raise ConfigError(
                    f"{self._name('client_cafile')}={given['client_cafile']!r} cannot be used ({why}): give a PEM file "
                    "with the certificates that have signed those of clients"
                ) from None
            # Not CERT_REQUIRED: those who ask for the server's health have none. See `server`.
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _digests_of_given(self) -> list[bytes]:
        """Of the secrets that stand in options or variables, of which no more is kept."""
        found = list[bytes]()
        if "bearer_token" in self._given:
            found += _tokens(self._name("bearer_token"), [self._given.pop("bearer_token")])
        if "basic_auth" in self._given:
            users = self._given.pop("basic_auth")
            if isinstance(users, str):
                users = dict([users.partition(":")[::2]])
            if not isinstance(users, Mapping) or not users:
                raise ConfigError('basic_auth is no table of passwords by user; write basic_auth={"user": password}')
            found += _users(self._name("basic_auth"), users.items())
        return found

    def _make_secrets(self) -> tuple[bytes, ...]:
        given, found = self._given, list(self._fixed)
        if "bearer_token_file" in given:
            option = self._name("bearer_token_file")
            found += _tokens(option, _lines(option, given["bearer_token_file"]))
        if "basic_auth_file" in given:
            option = self._name("basic_auth_file")
            found += _users(option, [line.partition(":")[::2] for line in _lines(option, given["basic_auth_file"])])
        return tuple(found)

    def _allowed_hosts(self, hosts: Any) -> frozenset[str] | None:
        if hosts is None:
            return None
        if isinstance(hosts, str):
            hosts = [part.strip() for part in hosts.split(",") if part.strip()]
        names = list(hosts) if isinstance(hosts, Iterable) else [hosts]
        for name in names:
            if not isinstance(name, str) or (name != "*" and not re.fullmatch(r"[A-Za-z0-9._-]+", name)):
                raise ConfigError(
                    f"{self._name('allowed_hosts')} has {name!r}, which is no name of a host; write them without port, "
                    'such as ["metrics.example.com"], or ["*"] for any'
                )
        return frozenset(name.lower().removesuffix(".") for name in names)

    def _seconds(self, value: Any) -> float | None:
        if value is None:
            return None
        try:
            seconds = float(value) if not isinstance(value, bool) else 0.0
        except (TypeError, ValueError):
            seconds = 0.0
        if not 0 < seconds <= 1e6:
            raise ConfigError(
                f"{self._name('ready_lag')}={value!r} is not a number of seconds above 0; write for example 5.0"
            )
        return seconds


def _address(host: str) -> Any:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether what listens on this IP address is reached from the same machine only."""
    address = _address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and (mapped or address).is_loopback
