"""What must not take the machine down or lose anything: bombs, full disks, forbidden folders."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import pytest
import xxhash
from numcodecs import zstd

from interkd.kernels.errors import FingerprintError
from interkd.pipeline.cache.fingerprint import Fingerprint, check_same, require_student_fits
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.sealed import seal
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache.writer import EncodedUtterance, PartPlan, StoreWriter

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import Archive, StoreMaker

GIGABYTE = 1 << 30

# Importing takes seconds: this process does it once, and forks for each piece of code.
SERVER = """
import json, os, pickle, resource, signal, sys, time, traceback
from interkd.kernels.errors import InterkdError
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache.writer import StoreWriter

"".encode("cp437")  # zipfile wants it, and another user may not be let into this library
for line in sys.stdin:
    code, arguments = json.loads(line)
    inlet, outlet = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(outlet, 1)
        status = 0
        try:
            exec(code, globals() | {"arguments": arguments})
        except BaseException:
            print(traceback.format_exc())
            status = 1
        sys.stdout.flush()
        os._exit(status)
    os.close(outlet)
    with os.fdopen(inlet) as said:
        text = said.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text]), flush=True)
"""

READER = """
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 400_000_000,) * 2)
if arguments[1]:
    os.setuid(arguments[1])
start = time.monotonic()
for use in (lambda p: TeacherStore.open(p).load(), verify):
    try:
        report = use(arguments[0])
    except InterkdError as error:
        print(type(error).__name__, error)
    else:
        found = report.problems if report else ()
        print("problems" if found else "nothing found", *found)
print(time.monotonic() - start)
"""


class Elsewhere:
    """Runs code in processes of their own, with their own limits and user."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, *arguments: object) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([code, arguments]) + "\n")
        self._server.stdin.flush()
        status, said = json.loads(self._server.stdout.readline())
        assert status == 0, said
        return str(said)

    def read_within_limits(self, store: Path, *, uid: int = 0) -> list[str]:
        """What reader and verify say where they may take 400 MB more, in a second."""
        *said, seconds = self.run(READER, str(store), uid).splitlines()
        assert float(seconds) < 1
        return said

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    opened = Elsewhere()
    yield opened
    opened.close()


def json_change(**changes: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | changes).encode()


def bomb(size: int, *, declared: bool = True) -> bytes:
    """A chunk of so many zeros, with or without its size in the zstd frame, the CRC right."""
    frame: bytes = zstd.compress(np.zeros(size, np.uint8), 19)
    if not declared:
        frame = b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00"  # one empty block, no content size
    return with_crc(frame)


def with_crc(frame: bytes) -> bytes:
    crc: int = google_crc32c.value(frame)
    return frame + crc.to_bytes(4, "little")


def disguised(size: int, *, as_of: bytes) -> bytes:
    """A bomb whose zstd frame claims the size that another chunk has, and that its shape wants."""
    wanted = len(zstd.decompress(as_of[:-4]))
    frame = bytearray(bomb(size)[:-4])
    assert frame[4] >> 6 == 2  # the size takes four bytes, after the window's
    start = 5 if frame[4] & 0x20 else 6
    frame[start : start + 4] = wanted.to_bytes(4, "little")
    return with_crc(bytes(frame))


def twice(chunk: bytes) -> bytes:
    """Two frames where one fits; the first says the right size."""
    return with_crc(chunk[:-4] * 2)


def shape_of(length: int) -> dict[str, Any]:
    grid = {"name": "regular", "configuration": {"chunk_shape": [length]}}
    return {"shape": [length], "chunk_grid": grid}


@pytest.mark.parametrize(
    ("member", "change", "words"),
    [
        ("token/zarr.json", json_change(**shape_of(1 << 60)), "decompressed bytes"),
        ("token/zarr.json", json_change(**shape_of(1 << 29)), "decompressed bytes"),
        ("token/zarr.json", json_change(shape=[-1]), "shape"),
        ("token/zarr.json", json_change(shape=[1e300]), "shape"),
        ("token/zarr.json", json_change(data_type="float64"), "data_type"),
        ("token/zarr.json", lambda _: b"[" * 100_000, "truncated or corrupt"),
        ("token/zarr.json", lambda _: b" " * 100_000_000, "at most 16,777,216 bytes"),
        ("zarr.json", lambda _: b" " * 100_000_000, "at most 16,777,216 bytes"),
        ("token/c/0", lambda _: bomb(2 * GIGABYTE), "size of token/c/0"),
        ("token/c/0", lambda _: bomb(10_000_000), "decompressed bytes"),
        ("token/c/0", lambda chunk: disguised(GIGABYTE // 128, as_of=chunk), "decompressed"),
        ("token/c/0", lambda chunk: twice(chunk), "decompressed"),
        ("token/c/0", lambda _: bomb(1, declared=False), "decompressed bytes"),
        ("token/c/0", lambda _: b"", "is not what was written"),
    ],
)
def test_bombs_in_a_part(
    store: Path,
    member: str,
    change: Callable[[bytes], bytes],
    words: str,
    archive: type[Archive],
    elsewhere: Elsewhere,
) -> None:
    archive(store / "part-00000.zip").edit(**{member.replace("/", "__"): change})
    said, verified = elsewhere.read_within_limits(store)
    assert said.startswith("CorruptStoreError")
    assert "part-00000" in said
    assert words in said
    assert verified.startswith("problems part-00000")


def test_a_bomb_whose_metadata_agrees(
    store: Path, archive: type[Archive], elsewhere: Elsewhere
) -> None:
    """One gigabyte declared by metadata and by the zstd frame alike: more than any column."""
    archive(store / "part-00000.zip").edit(
        **{
            "token__zarr.json": json_change(**shape_of(GIGABYTE)),
            "token__c__0": lambda _: bomb(GIGABYTE),
        }
    )
    said, verified = elsewhere.read_within_limits(store)
    assert "at most 536,870,912" in said
    assert verified.startswith("problems part-00000")


def test_a_deflated_bomb_in_a_chunks_place(store: Path, elsewhere: Elsewhere) -> None:
    """Half a megabyte that the ZIP itself inflates to 500 MB."""
    path = store / "part-00000.zip"
    with zipfile.ZipFile(path) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    del members["token/c/0"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as changed:
        for name, content in members.items():
            changed.writestr(name, content)
        with changed.open("token/c/0", "w") as member:
            for _ in range(50):
                member.write(bytes(10_000_000))
    assert path.stat().st_size < 600_000
    said, verified = elsewhere.read_within_limits(store)
    assert "part-00000, column 'token'" in said
    assert "size of token/c/0; expected at most" in said
    assert verified.startswith("problems part-00000")


def test_a_member_that_claims_another_size(store: Path, elsewhere: Elsewhere) -> None:
    """The ZIP directory says 4 GB where 60 bytes stand."""
    path = store / "part-00000.zip"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        size = opened.getinfo("blank/c/0").compress_size
    directory = content.rindex(b"blank/c/0") - 46  # of the central directory
    assert int.from_bytes(content[directory + 20 : directory + 24], "little") == size
    content[directory + 20 : directory + 28] = b"\xf0\xff\xff\xff" * 2
    path.write_bytes(content)
    said, verified = elsewhere.read_within_limits(store)
    assert said.startswith("CorruptStoreError")
    assert "part-00000" in said
    assert verified.startswith("problems part-00000")


@pytest.mark.parametrize("parts", [1 << 31, 1 << 62, -1, 0, 1.5, True])
def test_absurd_counts_in_the_root(store: Path, parts: object, elsewhere: Elsewhere) -> None:
    group = json.loads((store / "zarr.json").read_text())
    attributes = {k: v for k, v in group["attributes"].items() if k != "checksum"}
    attributes["plan"]["parts"] = parts
    group["attributes"] = seal(attributes, what="root")
    (store / "zarr.json").write_text(json.dumps(group))
    for said in elsewhere.read_within_limits(store):
        assert said.startswith("CorruptStoreError")
        assert "parts of the plan" in said


@pytest.mark.parametrize("name", ["zarr.json", "index.zip", "part-00000.zip"])
def test_a_file_of_eight_gigabytes(store: Path, name: str, elsewhere: Elsewhere) -> None:
    os.truncate(store / name, 8 * GIGABYTE)
    said, verified = elsewhere.read_within_limits(store)
    assert said.startswith("CorruptStoreError")
    assert name.removesuffix(".zip") in said
    assert not verified.startswith("nothing found")


WRITER = """
path, job, limit, uid = arguments
with open(job, "rb") as file:
    fingerprint, plan, utterances = pickle.load(file)
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit,) * 2)
if uid:
    os.setuid(uid)
try:
    writer = StoreWriter.open(path, fingerprint, plan)
    for index in writer.missing_parts():
        writer.write_part(index, [utterances[i] for i in plan.parts[index]])
    writer.finish({})
except InterkdError as error:
    print(f"{type(error).__name__}: {error}")
"""


class Job:
    """A store to write, in another process."""

    def __init__(self, folder: Path, maker: StoreMaker, elsewhere: Elsewhere) -> None:
        self._elsewhere = elsewhere
        self.fingerprint = maker.fingerprint()
        self.utterances = maker.utterances(self.fingerprint, [400] * 12)
        self.plan = maker.plan(self.utterances, 4)
        self.calm = maker.write(folder / "calm", self.utterances, self.fingerprint, parts=4)
        self.file = folder / "job"
        self.file.write_bytes(pickle.dumps((self.fingerprint, self.plan, self.utterances)))
        self.file.chmod(0o644)

    def run(self, path: Path, *, limit: int = 0, uid: int = 0) -> str:
        return self._elsewhere.run(WRITER, str(path), str(self.file), limit, uid)

    def assert_finished(self, path: Path) -> None:
        for file in self.calm.iterdir():
            if file.name == "zarr.json":
                continue  # the calm one has another summary
            assert (path / file.name).read_bytes() == file.read_bytes()
        assert verify(path).problems == ()
        assert [p.name for p in path.iterdir() if p.name.startswith(".")] == []


@pytest.fixture
def job(tmp_path: Path, maker: StoreMaker, elsewhere: Elsewhere) -> Job:
    return Job(tmp_path, maker, elsewhere)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(job: Job, small_disk: Path) -> None:
    store = small_disk / "store"
    said = job.run(store)
    assert said.startswith(f"StoreError: cannot write the teacher cache {store}; ")
    assert "No space left on device" in said
    assert "space on its disk, then run it again" in said
    standing = [p.name for p in store.iterdir()]
    assert [name for name in standing if name.startswith(".")] == []
    assert 0 < len([name for name in standing if name.startswith("part-")]) < 4
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert job.run(store) == ""
    job.assert_finished(store)


def test_a_limit_on_file_sizes(job: Job, tmp_path: Path) -> None:
    """As a quota: writing fails with another error, and at another place."""
    store = tmp_path / "store"
    said = job.run(store, limit=4000)
    assert said.startswith(
        f"StoreError: cannot write the teacher cache {store}; got File too large"
    )
    assert sorted(p.name for p in store.iterdir()) == ["zarr.json"]
    assert job.run(store) == ""
    job.assert_finished(store)


NOBODY = 65534 if os.geteuid() == 0 else 0
"""A user whom permissions bind, for a process of root; 0, this user, for any other."""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that NOBODY may reach, as pytest's own are not; nobody else's tests use it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_a_folder_that_may_not_be_written(
    maker: StoreMaker, elsewhere: Elsewhere, public: Path
) -> None:
    job = Job(public, maker, elsewhere)
    store = public / "store"
    StoreWriter.open(store, job.fingerprint, job.plan)
    before = (store / "zarr.json").read_bytes()
    store.chmod(0o555)
    said = job.run(store, uid=NOBODY)
    assert said.startswith(f"StoreError: cannot write the teacher cache {store}; ")
    assert "check the folder's permissions" in said
    store.chmod(0o755)
    assert (store / "zarr.json").read_bytes() == before
    assert job.run(store) == ""
    job.assert_finished(store)


def test_a_store_that_may_not_be_made(
    maker: StoreMaker, elsewhere: Elsewhere, public: Path
) -> None:
    job = Job(public, maker, elsewhere)
    closed = public / "closed"
    closed.mkdir(mode=0o555)
    said = job.run(closed / "store", uid=NOBODY)
    assert said.startswith(f"StoreError: cannot write the teacher cache {closed / 'store'}; ")
    assert list(closed.iterdir()) == []


@pytest.mark.parametrize("name", ["part-00000.zip", "index.zip", "zarr.json", ".", ".."])
def test_what_may_not_be_read(store: Path, name: str, public: Path, elsewhere: Elsewhere) -> None:
    """Nothing is damaged, so nothing is to be deleted or made again."""
    folder = public / "parent"
    folder.mkdir()
    store = shutil.copytree(store, folder / store.name)
    closed = (store / name).resolve()
    mode = closed.stat().st_mode & 0o777
    closed.chmod(0)
    try:
        said, verified = elsewhere.read_within_limits(store, uid=NOBODY)
    finally:
        closed.chmod(mode)
    for text in (said, verified):
        assert "cannot be read; got Permission denied; make it readable for this user" in text
        assert "delete" not in text
        assert "again" not in text
    assert said.startswith(f"StoreError {store}")
    if name == "part-00000.zip":
        assert "with it 3 utterances, 'utterance-0' to 'utterance-2'" in verified
    assert verify(store).problems == ()


def test_a_part_packed_by_another_tool(store: Path) -> None:
    """Deflated, in another order, with other dates: the same columns."""
    expected = TeacherStore.open(store)
    ids = expected.utterance_ids
    path = store / "part-00000.zip"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    before = expected.targets(ids)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members, reverse=True):
            archive.writestr(name, members[name])
    found = TeacherStore.open(store).targets(ids)
    assert found.tokens.equal(before.tokens)
    assert found.log_probs.equal(before.log_probs)
    assert verify(store).problems == ()


def test_another_teacher_tokenizer_or_frame_shift(
    tmp_path: Path,
    maker: StoreMaker,
    store: Path,
    utterances: list[EncodedUtterance],
    fingerprint: Fingerprint,
) -> None:
    plan: PartPlan = maker.plan(utterances, 2)
    other = maker.fingerprint(weights_sha256="ef" * 32)
    with pytest.raises(FingerprintError, match=r"weights_sha256 differs; expected ab.*, got ef"):
        StoreWriter.open(store, other, plan)
    opened = TeacherStore.open(store)
    student: dict[str, Any] = {
        "tokens": opened.fingerprint.tokens,
        "blank_index": 0,
        "sample_rate": 16_000,
        "frame_shift_samples": 320,
    }
    require_student_fits(opened.fingerprint, **student)
    for change, words in (
        ({"tokens": (*student["tokens"][:5], "x", *student["tokens"][6:])}, "differ at index 5"),
        ({"frame_shift_samples": 640}, "frame shift in samples differs; expected 320, got 640"),
        ({"sample_rate": 8_000}, "sample rate differs; expected 16000, got 8000"),
        ({"blank_index": 28}, "blank_index differs; expected 0, got 28"),
    ):
        with pytest.raises(FingerprintError, match=words) as raised:
            require_student_fits(opened.fingerprint, **(student | change))
        assert "\n" not in str(raised.value)
    with pytest.raises(FingerprintError, match="tokens differ at index 1"):
        check_same(opened.fingerprint, maker.fingerprint(tokens=("<blk>", "zz")))
    assert xxhash.xxh3_64_hexdigest(b"") == "2d06800538d394c2"  # the library is the spec's XXH3
