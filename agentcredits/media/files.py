"""Files of assets: written beside their place, flushed, then moved there; a half-written one is never seen."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

from agentcredits.errors import InvalidInputError
from agentcredits.media.jobs import MediaJob

#: Writes what a provider gave to a place near ``path`` (an ending may be added), and says where.
Save = Callable[[MediaJob, Any, Path], Path]

MAX_DOWNLOAD_BYTES: Final = 4 * 1024**3
DOWNLOAD_TIMEOUT_SECONDS: Final = 120
_CHUNK: Final = 256 * 1024
_ENDINGS: Final = {
    "image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif",
    "video/mp4": ".mp4", "video/webm": ".webm", "audio/mpeg": ".mp3", "audio/wav": ".wav", "audio/x-wav": ".wav",
    "model/gltf-binary": ".glb",
}  # fmt: skip


def write_atomically(path: Path, data: bytes) -> Path:
    """Write a file that is there whole or not at all, whatever happens meanwhile; an older one is replaced.

    ``sweep_drafts`` with its stem removes what a killed process left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path.parent, path.stem) as folder:
        draft = folder / path.name
        draft.write_bytes(data)
        return _move(draft, path.parent)


def save_atomically(save: Save, job: MediaJob, result: Any, folder: Path, stem: str, batch_id: str) -> Path:
    """Let ``save`` write into a folder of its own, then move what it wrote to its place.

    Raises:
        InvalidInputError: ``save`` says it wrote somewhere else, or nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _beside(folder, batch_id) as drafts:
        written = Path(save(job, result, drafts / stem))
        if written.parent != drafts or not written.is_file():
            raise InvalidInputError(
                "save must write a file beside the path that it is given (another ending is fine) and return its path."
            )
        return _move(written, folder)


def sweep_drafts(folder: Path, batch_id: str) -> None:
    """Remove what a killed process of this batch had begun to write."""
    if folder.is_dir():
        for left in folder.glob(f".{batch_id}-*"):
            shutil.rmtree(left, ignore_errors=True)


def file_stem(number: int, name: str) -> str:
    """``003_asset_three``: sorted as the batch is, and safe on every file system."""
    return f"{number:03d}_{re.sub(r'[^A-Za-z0-9_-]+', '_', name).strip('_')[:80] or 'asset'}"


def save_result(job: MediaJob, result: Any, path: Path) -> Path:
    """The default ``save``: bytes as they are, else the file behind the first address in the result, else its JSON.

    Raises:
        OSError: the file cannot be fetched or written.
        InvalidInputError: it is larger than 4 GiB.
    """
    if isinstance(result, bytes | bytearray):
        target = path.with_name(f"{path.name}.bin")
        target.write_bytes(result)
        return target
    address = find_url(result)
    if address is not None:
        return download(address, path)
    target = path.with_name(f"{path.name}.json")
    target.write_text(json.dumps(result, ensure_ascii=False, indent=2, default=str), encoding="utf-8")
    return target


def find_url(value: Any, depth: int = 0) -> str | None:
    """The first http address in a provider's answer: ``{"images": [{"url": …}]}``, ``{"video": {"url": …}}``."""
    if isinstance(value, str):
        return value if value.startswith(("https://", "http://")) else None
    if depth > 6:
        return None
    items: Any = ()
    if isinstance(value, Mapping):
        items = [value["url"], *value.values()] if "url" in value else value.values()
    elif isinstance(value, list | tuple):
        items = value
    return next((found for item in items if (found := find_url(item, depth + 1)) is not None), None)


def download(url: str, path: Path) -> Path:
    """Fetch a file; its ending comes from its type, else from its address.

    Raises:
        OSError: it cannot be fetched, whole, within the time-out.
        InvalidInputError: not an http address, or larger than 4 GiB.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise InvalidInputError("a result's address must begin with http:// or https://.")
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as answer:  # noqa: S310  # checked above
        ending = _ENDINGS.get(answer.headers.get_content_type()) or Path(parts.path).suffix[:8]
        target = path.with_name(path.name + (ending or ".bin"))
        announced = answer.headers.get("Content-Length")
        size = 0
        with target.open("wb") as file:
            while chunk := answer.read(_CHUNK):
                size += len(chunk)
                if size > MAX_DOWNLOAD_BYTES:
                    raise InvalidInputError(f"the file is larger than {MAX_DOWNLOAD_BYTES:,} bytes.")
                file.write(chunk)
    if announced is not None and announced.isdigit() and int(announced) != size:
        raise ConnectionError(f"the connection ended after {size:,} of {int(announced):,} bytes")
    return target


@contextmanager
def _beside(folder: Path, batch_id: str) -> Iterator[Path]:
    """A folder on the same file system, gone afterwards."""
    drafts = Path(mkdtemp(prefix=f".{batch_id}-", dir=folder))
    try:
        yield drafts
    finally:
        shutil.rmtree(drafts, ignore_errors=True)


def _move(draft: Path, folder: Path) -> Path:
    target = folder / draft.name
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    draft.replace(target)
    if os.name == "posix":
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
    return target
