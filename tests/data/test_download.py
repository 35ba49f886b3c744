"""Every source in turn, with small stand-ins for the four files and nothing but this machine."""

import gzip
import hashlib
import http.server
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision
from conftest import Command, write_idx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fashion.data import download
from fashion.errors import UserError

NAMES = tuple(download.PAYLOADS)
# Shaped like the official ones; the test part is a fifth of the size.
CONTENTS = {
    name: bytes([number])
    * (20 if name.startswith("train") else 4)
    * (784 if "images" in name else 1)
    for number, name in enumerate(NAMES)
}
NO_APT = "echo 'Temporary failure resolving deb.debian.org' >&2; exit 100"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no source but the data folder, and let stand-ins be the official files."""
    payloads = {
        name: download.Payload(len(content), hashlib.sha256(content).hexdigest())
        for name, content in CONTENTS.items()
    }
    monkeypatch.setattr(download, "PAYLOADS", payloads)
    monkeypatch.setattr(download, "DEBIAN_FOLDER", tmp_path / "usr/share/datasets/fashion-mnist")
    monkeypatch.setattr(download, "MIRRORS", ())
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    program(tmp_path, "apt-get", NO_APT)


def program(tmp_path: Path, name: str, body: str) -> None:
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def put(folder: Path, contents: dict[str, bytes], *, compress: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def files(root: Path) -> set[str]:
    return {path.name for path in download.raw_folder(root).iterdir()}


def assert_complete(root: Path) -> None:
    assert files(root) - {f"{name}.gz" for name in NAMES} == set(NAMES)
    for name, content in CONTENTS.items():
        assert (download.raw_folder(root) / name).read_bytes() == content


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Return a function that starts a mirror here and returns the list of files it is asked for."""
    servers = []

    def start(contents: dict[str, bytes], *, cut: int = 0) -> list[str]:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                asked.append(name)
                if name not in contents:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(contents[name])))
                self.end_headers()
                self.wfile.write(contents[name][: len(contents[name]) - cut])

            def log_message(self, *_: object) -> None: ...

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(
            download, "MIRRORS", (*download.MIRRORS, f"http://127.0.0.1:{server.server_port}/")
        )
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def compressed(contents: dict[str, bytes] = CONTENTS) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}


def test_the_data_folder_itself(root: Path) -> None:
    put(download.raw_folder(root), CONTENTS)
    download.ensure(root)
    assert_complete(root)


def test_compressed_in_the_data_folder(root: Path) -> None:
    put(download.raw_folder(root), CONTENTS, compress=True)
    download.ensure(root)
    assert_complete(root)


def test_files_that_debian_has_installed(root: Path) -> None:
    put(download.DEBIAN_FOLDER, CONTENTS, compress=True)
    download.ensure(root)
    assert_complete(root)


def test_a_mirror(root: Path, serve: Callable[..., list[str]]) -> None:
    asked = serve(compressed())
    download.ensure(root)
    assert_complete(root)
    assert asked == [f"{name}.gz" for name in NAMES]
    download.ensure(root)
    assert len(asked) == len(NAMES)  # nothing is fetched twice


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "no lists yet"])
def test_debian_s_package_without_root(root: Path, tmp_path: Path, lists: bool) -> None:  # noqa: FBT001
    put(tmp_path / "package", CONTENTS, compress=True)
    # Without package lists the download fails until an update has filled the caller's own.
    program(
        tmp_path,
        "apt-get",
        'case "$*" in\n'
        f"  *Dir::State::Lists=*update) echo >{tmp_path}/updated ;;\n"
        f"  *download*) [ -e {tmp_path}/updated ] || {str(lists).lower()} || exit 100\n"
        "    echo >dataset-fashion-mnist_0.0_all.deb ;;\n"
        "  *) exit 100 ;;\n"
        "esac",
    )
    inside = download.DEBIAN_FOLDER.relative_to("/")
    program(
        tmp_path, "dpkg-deb", f'mkdir -p "$3/{inside}" && cp {tmp_path}/package/* "$3/{inside}"'
    )
    download.ensure(root)
    assert_complete(root)
    assert (tmp_path / "updated").exists() != lists


def test_each_file_comes_from_the_first_source_that_has_it_whole(
    root: Path, serve: Callable[..., list[str]]
) -> None:
    first, second, third, fourth = NAMES
    put(download.raw_folder(root), {first: CONTENTS[first]})
    put(download.raw_folder(root), {second: CONTENTS[second]}, compress=True)
    put(download.DEBIAN_FOLDER, {third: b"another"}, compress=True)
    broken = serve({**compressed(), f"{third}.gz": b"<html>no such page</html>"})
    good = serve(compressed())
    download.ensure(root)
    assert_complete(root)
    assert (broken, good) == ([f"{third}.gz"], [f"{third}.gz", f"{fourth}.gz"])


def test_a_file_is_kept_when_the_others_cannot_be_downloaded(root: Path) -> None:
    put(download.raw_folder(root), {NAMES[0]: CONTENTS[NAMES[0]]})
    with pytest.raises(UserError):
        download.ensure(root)
    assert files(root) == {NAMES[0]}


def test_no_source_at_all(
    root: Path, serve: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve({})
    monkeypatch.setattr(download, "MIRRORS", (*download.MIRRORS, "http://127.0.0.1:1/"))
    with pytest.raises(UserError) as caught:
        download.ensure(root)
    message = str(caught.value)
    for part in (
        str(download.raw_folder(root)),
        "No such file",
        "Not Found",
        "refused",
        "Temporary failure resolving",
        "apt-get install dataset-fashion-mnist",
        "scripts/get_data",
        "put the four files",
        "data.root=FOLDER",
    ):
        assert part in message
    assert files(root) == set()


def test_a_machine_without_apt(root: Path, tmp_path: Path) -> None:
    (tmp_path / "bin/apt-get").unlink()
    with pytest.raises(UserError, match="apt-get download dataset-fashion-mnist: No such file"):
        download.ensure(root)


def test_a_mirror_that_does_not_respond_times_out(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(download, "MIRRORS", (f"http://127.0.0.1:{silent.getsockname()[1]}/",))
        monkeypatch.setattr(download, "TIMEOUT", 0.1)
        with pytest.raises(UserError, match=r"127\.0\.0\.1:\d+/: timed out"):
            download.ensure(root)


FIRST = NAMES[0]
TWIN = next(name for name in NAMES if name != FIRST and "images" in name)
WRONG = {
    "cut": (CONTENTS[FIRST][:-1], "15,679 bytes instead of 15,680"),
    "longer": (CONTENTS[FIRST] + b"\0", "15,681 bytes instead of 15,680"),
    "empty": (b"", "0 bytes instead of 15,680"),
    "swapped": (CONTENTS[TWIN], f"content of {TWIN}"),
    "flipped": (b"\xff" + CONTENTS[FIRST][1:], "SHA-256"),
    "another dataset's": (b"\x07" * len(CONTENTS[FIRST]), "MNIST or KMNIST"),
}


@pytest.mark.parametrize(("content", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_by_name(root: Path, content: bytes, reason: str) -> None:
    folder = put(download.raw_folder(root), CONTENTS | {FIRST: content})
    with pytest.raises(UserError) as caught:
        download.ensure(root)
    assert str(folder / FIRST) in str(caught.value)
    assert reason in str(caught.value)
    assert (folder / FIRST).read_bytes() == content  # somebody's file is not ours to delete


@pytest.mark.parametrize(("content", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_not_installed(root: Path, content: bytes, reason: str) -> None:
    put(download.DEBIAN_FOLDER, CONTENTS | {FIRST: content}, compress=True)
    # Of longer content no more is read than is needed to know.
    with pytest.raises(UserError, match=f"{FIRST}.gz: .*{reason}"):
        download.ensure(root)
    assert files(root) == set()


CUT = gzip.compress(np.random.default_rng(0).bytes(20_000))[:10_000]
BAD_GZ = {
    "cut": (CUT, "ended before"),
    "garbage": (b"<html>captive portal</html>", "Not a gzipped file"),
    "damaged": (CUT[:100] + b"\0\0\0\0" + gzip.compress(mtime=0, data=b"")[10:], ""),
    "empty": (b"", "0 bytes instead"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_GZ.values(), ids=BAD_GZ)
def test_a_bad_gz_is_refused(root: Path, content: bytes, reason: str) -> None:
    put(download.DEBIAN_FOLDER, CONTENTS, compress=True)
    (download.DEBIAN_FOLDER / f"{FIRST}.gz").write_bytes(content)
    with pytest.raises(UserError, match=rf"Debian's package dataset-fashion-mnist: .*{reason}"):
        download.ensure(root)
    assert files(root) == set()


@pytest.mark.slow
def test_a_download_that_breaks_off(root: Path, serve: Callable[..., list[str]]) -> None:
    serve(compressed(), cut=10)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:\d+/: ."):
        download.ensure(root)
    assert files(root) == set()


@pytest.mark.slow
def test_a_gz_that_expands_without_end(root: Path) -> None:
    put(download.DEBIAN_FOLDER, CONTENTS | {FIRST: bytes(200_000_000)}, compress=True)
    tracemalloc.start()
    with pytest.raises(UserError, match=f"{FIRST}.gz: .* instead of"):
        download.ensure(root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
    assert files(root) == set()


def test_what_cannot_be_written_or_read(tmp_path: Path, root: Path) -> None:
    put(download.DEBIAN_FOLDER, CONTENTS, compress=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written there .*data\.root=FOLDER"):
        download.ensure(tmp_path / "file")
    (download.raw_folder(root) / FIRST).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{FIRST} is not .*not a file"):
        download.ensure(root)


def test_a_full_disk(root: Path, largest_file: Callable[[int | None], None]) -> None:
    """One message that says so, not one per source, and nothing half-written."""
    folder = put(download.raw_folder(root), CONTENTS, compress=True)
    before = files(root)
    largest_file(4)
    with pytest.raises(UserError, match=r"data cannot be written there \(File too large\)"):
        download.ensure(root)
    largest_file(None)
    assert files(root) == before
    assert {path.name for path in folder.iterdir()} == before


def test_the_mirrors_are_torchvision_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert list(download.MIRRORS) == torchvision.datasets.FashionMNIST.mirrors


def test_the_command(root: Path, command: Command) -> None:
    put(download.DEBIAN_FOLDER, CONTENTS, compress=True)
    done = command("data.download", root)
    assert (done.status, done.err) == (0, "")
    assert str(download.raw_folder(root)) in done.out
    (download.raw_folder(root) / FIRST).write_bytes(b"")
    done = command("data.download", root)
    assert (done.status, done.out) == (1, "")
    assert FIRST in done.err


@settings(max_examples=50)
@given(
    arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9)),
    st.binary(max_size=3),
)
def test_round_trip_of_an_idx_file(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, more: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "idx"
    write_idx(path, array)
    assert download.read_header(path, array.ndim) == array.shape
    path.write_bytes(path.read_bytes() + more)
    if more:
        with pytest.raises(UserError, match="its header declares"):
            download.read_header(path, array.ndim)


def header(*sizes: int, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "begins with nothing"),
        (b"\0", "begins 00"),
        (header(2, 28, 28)[:10], "ends within its header: 10 bytes"),
        (header(2, 28), "3 dimension"),
        (header(2, 28, 28, kind=13), "unsigned bytes"),
        (gzip.compress(mtime=0, data=b"picture"), "begins 1f 8b"),
        (header(2, 28, 28) + bytes(2 * 784 - 1), "holds 1,583 bytes, .* 2 x 28 x 28: 1,584 bytes"),
        (header(2**31, 28, 28) + bytes(784), "2147483648 x 28 x 28"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1), "It is cut, or not what it says"),
    ],
)
def test_a_header_that_declares_something_else(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=f"{path} .*{reason}"):
        download.read_header(path, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a file"):
        download.read_header(tmp_path, 3)
    with pytest.raises(UserError, match="missing"):
        download.read_header(tmp_path / "none", 3)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/none is missing"):
        download.read_header(tmp_path / "file/none", 3)


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ("~/x", "HOME/x"),
        ("data", "HERE/data"),
        ("data/FashionMNIST", "HERE/data"),
        ("data/FashionMNIST/raw", "HERE/data"),
        ("data/FashionMNIST/raw/", "HERE/data"),
        ("new/FashionMNIST", "HERE/new/FashionMNIST"),  # which holds no data: taken literally
    ],
)
def test_a_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, folder: str
) -> None:
    """A second copy of the data must not come from a path one or two levels too deep."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    put(download.raw_folder(tmp_path / "data"), CONTENTS)
    expected = folder.replace("HOME", str(tmp_path / "home")).replace("HERE", str(tmp_path))
    assert str(download.data_folder(given)) == expected


@pytest.mark.parametrize(
    ("images", "labels"), [((3, 28, 28), 2), ((2, 28, 27), 2), ((2, 32, 32), 2)]
)
def test_other_data_must_fit_together(
    root: Path, images: tuple[int, int, int], labels: int
) -> None:
    folder = put(download.raw_folder(root), {})
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte", np.zeros((2, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.zeros(2))
    download.ensure_consistent(root)
    write_idx(folder / "t10k-images-idx3-ubyte", np.zeros(images))
    write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(labels))
    with pytest.raises(UserError, match=f"t10k-images.* for {labels} labels; {labels} x 28 x 28"):
        download.ensure_consistent(root)
