"""The dataset's four idx files: download, verification, installation. Imports no torch.

python -m fashion.data.download [ROOT]        download the data to ROOT (default: data)
"""

import argparse
import errno
import gzip
import hashlib
import http.client
import math
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fashion.config import at_home
from fashion.errors import UserError, cli_errors


class Payload(NamedTuple):
    """Size and hash of a decompressed file of the release of 2017-08-31."""

    size: int  # bytes
    sha256: str


# Of the decompressed files: Debian recompresses them, so its .gz files have other hashes.
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
# seconds; a test compares the two.
MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
TIMEOUT = 10  # seconds without a byte after which a mirror is skipped
FETCH_ERRORS = (
    OSError,
    EOFError,  # a cut .gz
    zlib.error,  # a damaged .gz
    ValueError,  # not the official content
    http.client.HTTPException,
    subprocess.SubprocessError,
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def raw_folder(root: Path, dataset: str = "FashionMNIST") -> Path:
    """Return where torchvision keeps the decompressed files below a data folder."""
    return root / dataset / "raw"


def data_folder(root: str, dataset: str = "FashionMNIST", base: str | None = None) -> Path:
    """Return a data folder as an absolute path, `~` expanded, relative to `base`.

    A path that leads one or two levels too deep (DATA/FashionMNIST, DATA/FashionMNIST/raw) is
    understood: taken literally, it would be filled with a second copy of the data.

    Raises:
        UserError: `~` names a user that does not exist.
    """
    path = Path(base or Path.cwd()) / at_home(root)
    if path.name == "raw" and path.parent.name == dataset:
        return path.parent.parent
    if path.name == dataset and (path / "raw").is_dir():
        return path.parent
    return path


def prepare(root: Path, *, official: bool, dataset: str = "FashionMNIST") -> int:
    """Verify the files of a data folder; download official ones that are missing.

    Args:
        root: the data folder.
        official: whether the files must be those of the release of 2017-08-31.
        dataset: torchvision's name; it is the folder's name below `root`.

    Returns:
        The number of training images.

    Raises:
        UserError: a file is missing and cannot be downloaded, is damaged, or is another one.
    """
    if official:
        ensure(root)
    else:
        ensure_consistent(root, dataset)
    return training_images(root, dataset)


def ensure(root: Path) -> None:
    """Put the four official files into `root`, from the first source that has them; verify each.

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
                f"{path} is missing; python -m fashion.data.download {root} downloads it."
            )
        check(path)


def ensure_consistent(root: Path, dataset: str = "FashionMNIST") -> None:
    """Check that `root` holds four idx files that fit together, official or not.

    Raises:
        UserError: a file is missing, broken or empty, or images and labels differ in number.
    """
    for part in ("train", "t10k"):
        images = raw_folder(root, dataset) / f"{part}-images-idx3-ubyte"
        labels = raw_folder(root, dataset) / f"{part}-labels-idx1-ubyte"
        shape, (count,) = read_header(images, 3), read_header(labels, 1)
        if shape != (count, 28, 28):
            raise UserError(
                f"{images} declares {' x '.join(map(str, shape))} for {count:,} labels; "
                f"{count} x 28 x 28 is needed."
            )
        if not count:
            raise UserError(f"{images} holds no images.")


def check(path: Path) -> None:
    """Verify one official file by SHA-256 (0.05 s for all four).

    Raises:
        UserError: the file is not the official one; the message says in what way.
    """
    try:
        violation = _violation(path.name, path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if violation:
        raise UserError(
            f"{path} is not Fashion-MNIST's official file: {violation}. "
            f"Remove it and run scripts/get_data {_root_of(path)} to download it again "
            "(or set data.official=false to train on other data in this format)."
        )


def training_images(root: Path, dataset: str = "FashionMNIST") -> int:
    """Return the number of training images in `root`, whose files have been verified."""
    return read_header(raw_folder(root, dataset) / "train-images-idx3-ubyte", 3)[0]


def read_header(path: Path, dimensions: int) -> tuple[int, ...]:
    """Return the shape that an idx file of unsigned bytes declares, if it fits the file's length.

    Only 16 bytes are read, so that a wrong header cannot cause a large allocation.
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


def _violation(name: str, path: Path) -> str | None:
    """Return in what way `path` is not the official file `name`; None if it is."""
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
    """Fill `folder` with the missing files, each from the first source that has it intact."""
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
        "Any one of these fixes it:\n"
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
        raise ValueError(f"{compressed.name} is not a file")  # a pipe would block
    with gzip.open(compressed) as source, new.open("wb") as target:
        # One byte beyond the expected size is enough to refuse a decompression bomb.
        target.write(source.read(limit + 1))
    if violation := _violation(name, new):
        raise ValueError(f"{compressed.name}: {violation}")
    new.replace(folder / name)


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
        description="Download and verify Fashion-MNIST's four files.",
    )
    parser.add_argument("root", nargs="?", default="data", help="default: data")
    with cli_errors():
        root = data_folder(parser.parse_args().root)
        ensure(root)
    print(f"Fashion-MNIST is in {raw_folder(root)}, verified.")


if __name__ == "__main__":
    main()
