"""Where the keys of a Zarr group live: a folder (version 1), or one uncompressed ZIP file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from interkd.kernels.errors import CorruptStoreError, StoreError

# Any day fits, as long as it is always the same: equal columns then make equal files.
_DATE = (1980, 1, 1, 0, 0, 0)
MAX_FILE_BYTES = 1 << 30


class MissingKeyError(KeyError):
    """A key that the container does not hold."""


def forbidden(path: Path, error: PermissionError) -> StoreError:
    """What is there and may not be read: nothing to delete or to make again."""
    return StoreError(
        f"{path} cannot be read",
        got=error.strerror,
        remedy="make it readable for this user, or run as one who may read it",
    )


class Container(Protocol):
    """Read access to the files of one Zarr group."""

    def read(self, key: str, *, at_most: int) -> bytes:
        """The bytes under a key.

        Raises:
            MissingKeyError: If there is none.
            CorruptStoreError: If they cannot be read, or are more than `at_most`.
            StoreError: If this user may not read them.
        """
        ...


class FolderContainer:
    """A group as a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, key: str, *, at_most: int) -> bytes:
        """See `Container.read`."""
        file = self.path / key
        try:
            size = file.stat().st_size
            if size > at_most:
                raise CorruptStoreError(
                    f"size of {key}", expected=f"at most {at_most:,} bytes", got=f"{size:,}"
                )
            return file.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingKeyError(key) from error
        except PermissionError as error:
            raise forbidden(file, error) from error
        except OSError as error:
            raise CorruptStoreError(f"cannot read {key}", got=error.strerror) from error


class ZipContainer:
    """A group as a ZIP file, read into memory at once.

    Raises:
        CorruptStoreError: If it is no ZIP file, or larger than any part.
        OSError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CorruptStoreError(
                "size of its file", expected=f"at most {MAX_FILE_BYTES:,} bytes", got=f"{size:,}"
            )
        content = path.read_bytes()
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(content))
        # zipfile raises a dozen unrelated types on damaged directories
        except Exception as error:
            raise CorruptStoreError(
                "its ZIP directory cannot be read", got=f"{type(error).__name__}: {error}"
            ) from error

    def read(self, key: str, *, at_most: int) -> bytes:
        """See `Container.read`; the ZIP's own CRC-32 is checked on the way."""
        try:
            with self._archive.open(key) as member:
                content = member.read(at_most + 1)
        except KeyError as error:
            raise MissingKeyError(key) from error
        except Exception as error:
            raise CorruptStoreError(
                f"cannot read {key}", got=f"{type(error).__name__}: {error}"
            ) from error
        if len(content) > at_most:
            raise CorruptStoreError(
                f"size of {key}", expected=f"at most {at_most:,} bytes", got="more"
            )
        return content


def pack_zip(files: Mapping[str, bytes]) -> bytes:
    """A ZIP file of those files: JSON deflated, all else stored, the same bytes every time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key in sorted(files):
            entry = zipfile.ZipInfo(key, date_time=_DATE)
            entry.create_system = 3  # Unix, on every platform
            entry.external_attr = 0o644 << 16
            is_json = key.endswith(".json")
            entry.compress_type = zipfile.ZIP_DEFLATED if is_json else zipfile.ZIP_STORED
            archive.writestr(entry, files[key])
    return buffer.getvalue()
