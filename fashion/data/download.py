"""The dataset's four idx files: found, fetched, verified, put in place. Imports no torch.

python -m fashion.data.download [ROOT]        bring the data to ROOT (default: data)
"""

import argparse
import contextlib
import errno
import gzip
import hashlib
import http.client
import json
import math
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fashion.errors import UserError, cli_errors


class Payload(NamedTuple):
    """What a decompressed file of the release of 2017-08-31 must hold."""

    size: int  # bytes
    sha256: str


# Of the decompressed payload: Debian compresses anew, so sums of the .gz files do not carry over.
PAYLOADS = {
    "train-images-idx3-ubyte": Payload(
        47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte": Payload(
        60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte": Payload(
        7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte": Payload(
        10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the package installs
# `torchvision.datasets.FashionMNIST.mirrors`, named here because importing torchvision takes
# seconds; a test holds the two together.
MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
TIMEOUT = 10  # seconds without a byte before a mirror is given up
FETCH_ERRORS = (
    OSError,
    EOFError,  # a cut .gz
    zlib.error,  # a damaged .gz
    ValueError,  # not the official content
    http.client.HTTPException,
    subprocess.SubprocessError,
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
VERIFIED = (
    ".verified.json"  # {file name: [size, modification time in ns]} of files that once passed
)


def raw_folder(root: Path) -> Path:
    """Where torchvision keeps the decompressed files below a data folder."""
    return root / "FashionMNIST" / "raw"


def ensure(root: Path) -> None:
    """Bring the four official files to `root`, from the first source that has them; verify each.

    Sources, in order: `root` itself (decompressed or .gz), what Debian's package has installed,
    torchvision's mirrors, the Debian package fetched and unpacked without root.

    Raises:
        UserError: a file in `root` is not the official one, `root` cannot be written to, or no
            source had a file.
    """
    folder = raw_folder(root)
    missing = []
    for name in PAYLOADS:
        if (folder / name).exists():
            check(folder / name)
        else:
            missing.append(name)
    if not missing:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            _fetch(missing, folder, Path(scratch))
    except OSError as error:
        raise UserError(
            f"{folder}: the data cannot be written there ({error.strerror or error}). "
            "Name a folder you can write to with data.root=FOLDER."
        ) from error


def verify(root: Path) -> None:
    """Check that `root` holds the four official files, and write nothing.

    Raises:
        UserError: a file is missing, or is not the official one.
    """
    for name in PAYLOADS:
        path = raw_folder(root) / name
        if not path.exists():
            raise UserError(
                f"{path} is missing. python -m fashion.data.download {root} brings the data there."
            )
        check(path, remember=False)


def ensure_consistent(root: Path) -> None:
    """Check that `root` holds four idx files that fit together, official or not.

    Raises:
        UserError: a file is missing, broken, empty, or does not fit its partner.
    """
    for part in ("train", "t10k"):
        images = raw_folder(root) / f"{part}-images-idx3-ubyte"
        labels = raw_folder(root) / f"{part}-labels-idx1-ubyte"
        shape, (count,) = read_header(images, 3), read_header(labels, 1)
        if shape != (count, 28, 28):
            raise UserError(
                f"{images} declares {' x '.join(map(str, shape))} for {count:,} labels; "
                f"{count} x 28 x 28 is needed."
            )
        if not count:
            raise UserError(f"{images} holds no pictures.")


def check(path: Path, *, remember: bool = True) -> None:
    """Verify one official file by SHA-256, or by size and modification time if it passed before.

    Args:
        path: of the file.
        remember: whether to write down that it passed, beside it.

    Raises:
        UserError: the file is not the official one; the message says in what way.
    """
    memory = path.parent / VERIFIED
    try:
        stat = path.stat()
        fingerprint = [stat.st_size, stat.st_mtime_ns]
        if _read_verified(memory).get(path.name) == fingerprint:
            return
        fault = _fault(path.name, path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if fault:
        raise UserError(
            f"{path} is not Fashion-MNIST's official file: {fault}. "
            f"Remove it and run scripts/get_data {_root_of(path)} to get it anew "
            "(or set data.official=false to train on other data in this format)."
        )
    if remember:
        _remember(memory, path.name, fingerprint)


def training_pictures(root: Path) -> int:
    """How many there are below `root`, whose files have been checked."""
    return read_header(raw_folder(root) / "train-images-idx3-ubyte", 3)[0]


def read_header(path: Path, dimensions: int) -> tuple[int, ...]:
    """The shape that an idx file of unsigned bytes declares, proven to fit the file's length.

    Reads 16 bytes at most, so that a lying header allocates nothing.
    Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, type 0x08, number of dimensions,
    then their sizes, big-endian).

    Raises:
        UserError: not such a file, or its length is not what it declares.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} is {'not a file' if path.exists() else 'missing'}.")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if head[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(
            f"{path} is not an idx file of unsigned bytes with {dimensions} dimension(s): "
            f"it begins {head[:4].hex(' ') or 'with nothing'}."
        )
    start = 4 + 4 * dimensions
    if len(head) < start:
        raise UserError(f"{path} ends within its header: {size} bytes.")
    shape = tuple(int.from_bytes(head[i : i + 4], "big") for i in range(4, start, 4))
    declared = start + math.prod(shape)
    if size != declared:
        raise UserError(
            f"{path} holds {size:,} bytes, but its header declares {' x '.join(map(str, shape))}: "
            f"{declared:,} bytes. It is cut, or not what it says."
        )
    return shape


def _root_of(path: Path) -> Path:
    return path.parent.parent.parent


def _read_verified(memory: Path) -> dict[str, Any]:
    try:
        # A pipe would keep its reader waiting.
        content = json.loads(memory.read_text()) if memory.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(memory: Path, name: str, fingerprint: list[int]) -> None:
    # A read-only data folder is fine: its files are then hashed each time.
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=memory.parent) as scratch:
        new = Path(scratch) / memory.name
        new.write_text(json.dumps(_read_verified(memory) | {name: fingerprint}))
        new.replace(memory)


def _fault(name: str, path: Path) -> str | None:
    """In what way `path` is not the official file `name`; None if it is."""
    if not path.is_file():
        return "it is not a file"
    expected = PAYLOADS[name]
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == expected.sha256:
        return None
    twin = next((other for other, payload in PAYLOADS.items() if payload.sha256 == digest), None)
    if twin:
        return f"it holds the content of {twin}"
    if size != expected.size:
        return f"it has {size:,} bytes instead of {expected.size:,}"
    return (
        "it has the right size but another content (SHA-256 "
        f"{digest[:12]}... instead of {expected.sha256[:12]}...): a damaged file, "
        "or that of another dataset with the same file names, such as MNIST or KMNIST"
    )


def _fetch(missing: list[str], folder: Path, scratch: Path) -> None:
    """Fill `folder` with the missing files, each from the first source that has it whole."""
    debian_package = scratch / "debian"
    sources: list[tuple[str, Callable[[str], Path]]] = [
        (str(folder), lambda name: folder / f"{name}.gz"),
        (f"Debian's package {DEBIAN_PACKAGE}", lambda name: DEBIAN_FOLDER / f"{name}.gz"),
        *(
            (mirror, lambda name, mirror=mirror: _download(mirror, f"{name}.gz", scratch))
            for mirror in MIRRORS
        ),
        (
            f"apt-get download {DEBIAN_PACKAGE}",
            lambda name: _unpack_debian_package(debian_package) / f"{name}.gz",
        ),
    ]
    reports = []
    for source, locate in sources:
        try:
            for name in list(missing):
                _install(name, locate(name), folder, scratch)
                missing.remove(name)
        except FETCH_ERRORS as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise  # another source would not help
            reports.append(f"  {source}: {_reason(error)}")
        if not missing:
            return
    raise UserError(
        f"Fashion-MNIST is not in {folder} and no source had it whole:\n"
        + "\n".join(reports)
        + "\n"
        "Any one of these mends it:\n"
        f"  apt-get install {DEBIAN_PACKAGE}            (Debian, Ubuntu)\n"
        "  scripts/get_data                                  (once this machine has a network)\n"
        f"  put the four files into {folder}\n"
        "  data.root=FOLDER                                  (FOLDER/FashionMNIST/raw holds them)"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return str((error.stderr.strip().splitlines() or [error])[-1])
    if isinstance(error, OSError):
        # urllib keeps the socket's own words in `reason`.
        return str(getattr(error, "reason", None) or error.strerror or error)
    return str(error)


def _install(name: str, compressed: Path, folder: Path, scratch: Path) -> None:
    """Decompress, verify, then move into place: `folder` never holds a partial or a wrong file.

    Raises:
        ValueError: the content is not the official file's.
        OSError, EOFError: it cannot be read.
    """
    new = scratch / name
    limit = PAYLOADS[name].size
    if compressed.exists() and not compressed.is_file():
        raise ValueError(f"{compressed.name} is not a file")  # a pipe would keep us waiting
    with gzip.open(compressed) as source, new.open("wb") as target:
        # One byte beyond the expected size is enough to know, whatever a hostile file expands to.
        target.write(source.read(limit + 1))
    if fault := _fault(name, new):
        raise ValueError(f"{compressed.name}: {fault}")
    stat = new.stat()
    new.replace(folder / name)
    _remember(folder / VERIFIED, name, [stat.st_size, stat.st_mtime_ns])


def _download(mirror: str, filename: str, scratch: Path) -> Path:
    target = scratch / filename
    with (
        urllib.request.urlopen(mirror + filename, timeout=TIMEOUT) as response,  # noqa: S310
        target.open("wb") as file,
    ):
        shutil.copyfileobj(response, file)
    return target


def _unpack_debian_package(folder: Path) -> Path:
    """Fetch and unpack Debian's package below `folder` without root; once is enough."""
    if not folder.exists():
        (folder / "lists" / "partial").mkdir(parents=True)
        bounds = [f"-oAcquire::http::Timeout={TIMEOUT}", "-oAcquire::Retries=0"]
        own = [f"-oDir::State::Lists={folder / 'lists'}", f"-oDir::Cache={folder}"]
        try:
            _run(["apt-get", *bounds, "download", DEBIAN_PACKAGE], folder)
        except subprocess.CalledProcessError:
            # This machine has no package lists yet: anyone may fetch them into their own folder.
            _run(["apt-get", *bounds, *own, "update"], folder)
            _run(["apt-get", *bounds, *own, "download", DEBIAN_PACKAGE], folder)
        archive = next(folder.glob("*.deb"))
        _run(["dpkg-deb", "-x", archive.name, "."], folder)
    return folder / DEBIAN_FOLDER.relative_to("/")


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=120)  # noqa: S603


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashion.data.download",
        description="Bring Fashion-MNIST's four files, verified.",
    )
    parser.add_argument("root", nargs="?", type=Path, default="data", help="default: data")
    root = parser.parse_args().root
    with cli_errors():
        ensure(root)
    print(f"Fashion-MNIST is in {raw_folder(root)}, verified.")


if __name__ == "__main__":
    main()
