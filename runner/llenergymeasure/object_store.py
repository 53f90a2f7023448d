"""Results by URI: a folder or a bucket (S3, Google Cloud, Azure) behind one small interface; nothing is overwritten.

A write that finds its name taken compares digests: the same bytes count as stored, others are an error. So a request
that was carried out although its answer got lost may simply be repeated.
"""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from llenergymeasure.core.errors import BackendMissingError, ConfigError, ResultStoreError, UnreachableError
from llenergymeasure.store import create_atomically, folder_of_uri
from llenergymeasure.waiting import STORE_EXTRA, MayPassError, Patience, RefusedError

if TYPE_CHECKING:
    from obstore.store import ObjectStore, S3Credential

S3_SCHEMES = ("s3", "s3a")
BUCKET_SCHEMES = (*S3_SCHEMES, "gs", "az", "azure", "adl", "abfs", "abfss")
SCHEMES = "a folder, file://, s3://, gs:// or az://"
CREDENTIALS_LAST = timedelta(minutes=1)  # then the files are read again: a Secret may be renewed while a run measures
REQUEST_S, CONNECT_S = 60, 5  # a request that takes longer is given up and made again
PASSING_STATUS = (408, 409, 425, 429)
PASSING_ERRNO = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOTCONN,
)  # fmt: skip
T = TypeVar("T")
INSTANCE_METADATA = "169.254.169.254"  # where the library looks for credentials when nothing else names any


@dataclass(frozen=True)
class Access:
    """How a store is reached; `credentials` is a folder of files named like the AWS_* variables."""

    endpoint: str | None = None
    region: str | None = None
    credentials: Path | None = None


@dataclass(frozen=True)
class Stored:
    """A file in a store."""

    uri: str
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, uri: str, content: bytes) -> "Stored":
        """A file with this content."""
        return cls(uri, hashlib.sha256(content).hexdigest(), len(content))


class _Files(Protocol):
    """What a folder and a bucket can do; raises MayPassError, RefusedError, FileExistsError, FileNotFoundError."""

    def create(self, name: str, content: bytes) -> None:
        """Write a file that is not there yet."""

    def read(self, name: str) -> bytes:
        """Give a file."""

    def names(self) -> list[str]:
        """Paths of all files, relative, sorted."""


@dataclass(frozen=True)
class Place:
    """A folder or a bucket's prefix, named by its URI."""

    uri: str
    _files: _Files
    _prefix: str = ""

    @property
    def is_folder(self) -> bool:
        """It is on this machine, where nothing is worth waiting for."""
        return isinstance(self._files, _Folder)

    def below(self, name: str) -> "Place":
        """A place inside this one."""
        return replace(self, uri=f"{self.uri}/{name}", _prefix=f"{self._prefix}{name}/")

    def put_new(self, name: str, content: bytes, patience: Patience) -> Stored:
        """Store a file under a name that is free, or that already holds the same bytes.

        Raises:
            ResultStoreError: Refused, not taken while the patience lasted, or the name holds something else.

        """
        stored = Stored.of(f"{self.uri}/{name}", content)

        def put() -> None:
            try:
                self._files.create(self._prefix + name, content)
            except FileExistsError:
                self._compare(name, stored)

        self._patiently(put, stored.uri, patience)
        return stored

    def put_if_absent(self, name: str, content: bytes, patience: Patience) -> bool:
        """Store a file unless there is one, whatever it holds; say whether it was stored. Raises ResultStoreError."""

        def put() -> bool:
            try:
                self._files.create(self._prefix + name, content)
            except FileExistsError:
                return False
            return True

        return self._patiently(put, f"{self.uri}/{name}", patience)

    def _patiently(self, put: Callable[[], T], uri: str, patience: Patience) -> T:
        try:
            return patience.call(put)
        except RefusedError as err:
            raise ResultStoreError(f"{uri}: cannot be stored: {err}") from err
        except MayPassError as err:
            raise NotTakenError(f"{uri}: could not be stored in the time given: {err}") from err

    def _compare(self, name: str, wanted: Stored) -> None:
        try:
            found = Stored.of(wanted.uri, self._files.read(self._prefix + name))
        except FileNotFoundError as err:  # a store says "taken" while another write is under way
            raise MayPassError("another write to the same name is under way") from err
        if found != wanted:
            text = f"holds other content (SHA-256 {found.sha256[:12]}…, this run's is {wanted.sha256[:12]}…)"
            raise ResultStoreError(f"{wanted.uri}: {text}; nothing is overwritten")

    def get(self, name: str, patience: Patience) -> bytes | None:
        """Give a file, None if it is not there; raises ResultStoreError, UnreachableError."""
        try:
            return patience.call(lambda: self._files.read(self._prefix + name))
        except FileNotFoundError:
            return None
        except RefusedError as err:
            raise ResultStoreError(f"{self.uri}/{name}: cannot be read: {err}") from err
        except MayPassError as err:
            raise UnreachableError(f"{self.uri}: the store does not answer: {err}") from err

    def names(self, patience: Patience) -> list[str]:
        """Paths of all files here, relative, sorted; raises ResultStoreError, UnreachableError."""
        try:
            found = patience.call(self._files.names)
        except (RefusedError, FileNotFoundError) as err:
            raise ResultStoreError(f"{self.uri}: cannot be read: {err}") from err
        except MayPassError as err:
            raise UnreachableError(f"{self.uri}: the store does not answer: {err}") from err
        return [n.removeprefix(self._prefix) for n in found if n.startswith(self._prefix)]


class NotTakenError(ResultStoreError):
    """The store did not take a file while the patience lasted."""


def open_place(uri: str, access: Access, environ: Mapping[str, str] | None = None) -> Place:
    """The place that a URI or a path names; nothing is asked of it yet.

    Raises:
        ConfigError: An unknown scheme, no bucket, `..` in the path, credentials that are incomplete.
        BackendMissingError: The library for buckets is not installed.

    """
    environ = os.environ if environ is None else environ
    parts = urlsplit(uri)
    if not uri or ".." in parts.path.split("/"):
        raise ConfigError(f"{uri or 'an empty text'} is no place for results; use {SCHEMES}, without ..")
    if parts.scheme in ("", "file"):
        return Place(uri.rstrip("/") or "/", _Folder(folder_of_uri(uri)))
    if parts.scheme not in BUCKET_SCHEMES:
        raise ConfigError(f"{uri}: scheme {parts.scheme} is unknown; use {SCHEMES}")
    signed = parts.password or (parts.username and not parts.scheme.startswith("abfs"))  # abfs://container@account
    if not parts.netloc or signed or parts.query or parts.fragment:
        raise ConfigError(f"{parts.scheme}://: write {parts.scheme}://BUCKET/PATH, with nothing else in it")
    return Place(uri.rstrip("/"), _Bucket(_connect(uri.rstrip("/"), parts.scheme, access, environ)))


@dataclass(frozen=True)
class _Folder:
    """Files of this machine or of a mounted volume."""

    root: Path

    def create(self, name: str, content: bytes) -> None:
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            create_atomically(path, content)
        except FileExistsError:
            if not path.is_file():  # a file stands where a folder should be made
                raise RefusedError("Not a directory") from None
            raise
        except OSError as err:
            raise _translated(err) from err

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            raise
        except NotADirectoryError as err:
            raise FileNotFoundError(name) from err
        except OSError as err:
            raise _translated(err) from err

    def names(self) -> list[str]:
        if not self.root.is_dir():
            raise FileNotFoundError("no such folder")
        found = (Path(folder, file) for folder, _, files in os.walk(self.root) for file in files)
        return sorted(str(p.relative_to(self.root)) for p in found if not p.name.startswith("."))  # half-written


def _translated(err: OSError) -> Exception:
    kind = MayPassError if err.errno in PASSING_ERRNO else RefusedError
    return kind(err.strerror or str(err))


@dataclass(frozen=True)
class _Bucket:
    """Objects below a bucket's prefix."""

    store: "ObjectStore"

    def create(self, name: str, content: bytes) -> None:
        import obstore

        try:  # in one part: the parts of a larger upload cannot be made conditional
            obstore.put(self.store, name, content, mode="create", use_multipart=False)
        except obstore.exceptions.AlreadyExistsError as err:
            raise FileExistsError(name) from err
        except FileNotFoundError as err:
            raise RefusedError("no such bucket") from err
        except obstore.exceptions.BaseError as err:
            raise _reason(err) from err

    def read(self, name: str) -> bytes:
        import obstore

        try:
            return bytes(obstore.get(self.store, name).bytes())
        except FileNotFoundError:
            raise
        except obstore.exceptions.BaseError as err:
            raise _reason(err) from err

    def names(self) -> list[str]:
        import obstore

        try:
            return sorted(meta["path"] for part in obstore.list(self.store, chunk_size=1000) for meta in part)
        except FileNotFoundError as err:
            raise FileNotFoundError("no such bucket") from err
        except obstore.exceptions.BaseError as err:
            raise _reason(err) from err


def _reason(err: Exception) -> Exception:
    """The library's error as one of ours, in a few words: its own text holds the request and is pages long."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = str(err)
    if INSTANCE_METADATA in text:
        return RefusedError("no credentials were found")
    status = re.search(r"status code: (\d{3})([^:\n]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    said = " ".join(filter(None, [status and status[1] + status[2], code and f"({code[1]})"]))
    if isinstance(err, PermissionDeniedError | UnauthenticatedError):
        return RefusedError(f"{said or 'not allowed'}; check the credentials and what they may do")
    if "incorrectly configured region" in text:
        return RefusedError("the bucket is in another region; name it")
    if status and status[1].startswith("4") and int(status[1]) not in PASSING_STATUS:
        return RefusedError(said)
    last = text.partition("\n")[0].rpartition(" - ")[2]
    return MayPassError(said or last[:200])


def _connect(uri: str, scheme: str, access: Access, environ: Mapping[str, str]) -> "ObjectStore":
    try:
        from obstore.store import from_url
    except ModuleNotFoundError as err:
        raise BackendMissingError(f"{uri}: buckets need obstore; run: {STORE_EXTRA}") from err

    endpoint = access.endpoint or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""
    plain = endpoint.startswith("http://")
    options: dict[str, Any] = {
        "client_options": {
            "timeout": timedelta(seconds=REQUEST_S),
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "allow_http": plain,
        },
        "retry_config": {"max_retries": 0},  # trying again is the business of Patience
    }
    if scheme in S3_SCHEMES:
        options |= _s3_options(access, endpoint, environ)
    elif access.endpoint:
        options["config"] = {"endpoint" if scheme != "gs" else "base_url": access.endpoint}
    try:
        return from_url(uri, **options)
    except Exception as err:  # whatever the library finds wrong with names and numbers is the user's to mend
        raise ConfigError(f"{uri}: {str(err).partition(chr(10))[0]}") from err


def _s3_options(access: Access, endpoint: str, environ: Mapping[str, str]) -> dict[str, Any]:
    region = access.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    config: dict[str, Any] = {"region": region}
    if endpoint:  # stores other than Amazon's have no name per bucket in DNS
        config |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    options: dict[str, Any] = {"config": config}
    if access.credentials is not None:
        folder = access.credentials
        read_credentials(folder)
        options["credential_provider"] = lambda: read_credentials(folder)
    return options


def read_credentials(folder: Path) -> "S3Credential":
    """Keys as they are in the files now; raises ConfigError that names the missing one."""

    def read(name: str) -> str | None:
        try:
            return (folder / name).read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError(f"{folder / name}: cannot be read: {type(err).__name__}") from err

    found = {name: read(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise ConfigError(f"{folder}: the Secret of the store has no {' and no '.join(missing)}")
    return {
        "access_key_id": found["AWS_ACCESS_KEY_ID"] or "",
        "secret_access_key": found["AWS_SECRET_ACCESS_KEY"] or "",
        "token": read("AWS_SESSION_TOKEN"),
        "expires_at": datetime.now(UTC) + CREDENTIALS_LAST,
    }
