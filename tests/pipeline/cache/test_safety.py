"""What must not take the machine down or lose anything: bombs, full disks, forbidden folders."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
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

# Everything is imported before the limit: what is left is less than any of the bombs.
READER = """
import resource, sys, time
from interkd.kernels.errors import InterkdError
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify

in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 400_000_000,) * 2)
start = time.monotonic()
for use in (lambda p: TeacherStore.open(p).load(), verify):
    try:
        report = use(sys.argv[1])
    except InterkdError as error:
        print(type(error).__name__, error)
    else:
        print("problems" if report and report.problems else "nothing found")
print(f"{time.monotonic() - start:.2f}")
"""


def read_within_limits(store: Path) -> list[str]:
    """What reader and verify say in a process that may take 400 MB more."""
    process = subprocess.run(
        [sys.executable, "-c", READER, str(store)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    *said, seconds = process.stdout.splitlines()
    assert float(seconds) < 5
    return said


def json_change(**changes: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | changes).encode()


def bomb(size: int, *, declared: bool = True) -> bytes:
    """A chunk of so many zeros, with or without its size in the zstd frame, the CRC right."""
    frame: bytes = zstd.compress(np.zeros(size, np.uint8), 19)
    if not declared:
        frame = b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00"  # one empty block, no content size
    crc: int = google_crc32c.value(frame)
    return frame + crc.to_bytes(4, "little")


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
        ("token/c/0", lambda _: bomb(2 * GIGABYTE), "decompressed bytes"),
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
) -> None:
    archive(store / "part-00000.zip").edit(**{member.replace("/", "__"): change})
    said, verified = read_within_limits(store)
    assert said.startswith("CorruptStoreError")
    assert "part-00000" in said
    assert words in said
    assert verified == "problems"


def test_a_bomb_whose_metadata_agrees(store: Path, archive: type[Archive]) -> None:
    """One gigabyte declared by metadata and by the zstd frame alike: more than any column."""
    archive(store / "part-00000.zip").edit(
        **{
            "token__zarr.json": json_change(**shape_of(GIGABYTE)),
            "token__c__0": lambda _: bomb(GIGABYTE),
        }
    )
    said, verified = read_within_limits(store)
    assert "at most 536,870,912" in said
    assert verified == "problems"


def test_a_member_that_claims_another_size(store: Path) -> None:
    """The ZIP directory says 4 GB where 60 bytes stand."""
    path = store / "part-00000.zip"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        size = opened.getinfo("blank/c/0").compress_size
    directory = content.rindex(b"blank/c/0") - 46  # of the central directory
    assert int.from_bytes(content[directory + 20 : directory + 24], "little") == size
    content[directory + 20 : directory + 28] = b"\xf0\xff\xff\xff" * 2
    path.write_bytes(content)
    said, verified = read_within_limits(store)
    assert said.startswith("CorruptStoreError")
    assert "part-00000" in said
    assert verified == "problems"


@pytest.mark.parametrize("parts", [1 << 31, 1 << 62, -1, 0, 1.5, True])
def test_absurd_counts_in_the_root(store: Path, parts: object) -> None:
    group = json.loads((store / "zarr.json").read_text())
    attributes = {k: v for k, v in group["attributes"].items() if k != "checksum"}
    attributes["plan"]["parts"] = parts
    group["attributes"] = seal(attributes, what="root")
    (store / "zarr.json").write_text(json.dumps(group))
    for said in read_within_limits(store):
        assert said.startswith("CorruptStoreError")
        assert "parts of the plan" in said


@pytest.mark.parametrize("name", ["zarr.json", "index.zip", "part-00000.zip"])
def test_a_file_of_eight_gigabytes(store: Path, name: str) -> None:
    os.truncate(store / name, 8 * GIGABYTE)
    said, verified = read_within_limits(store)
    assert said.startswith("CorruptStoreError")
    assert name.removesuffix(".zip") in said
    assert verified != "nothing found"


WRITER = """
import os, pickle, resource, signal, sys

path, job, limit, uid = sys.argv[1:]
from interkd.pipeline.cache.writer import StoreWriter
from interkd.kernels.errors import InterkdError

with open(job, "rb") as file:
    fingerprint, plan, utterances = pickle.load(file)
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit),) * 2)
if int(uid):
    os.setuid(int(uid))
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

    def __init__(self, folder: Path, maker: StoreMaker) -> None:
        self.fingerprint = maker.fingerprint()
        self.utterances = maker.utterances(self.fingerprint, [400] * 12)
        self.plan = maker.plan(self.utterances, 4)
        self.calm = maker.write(folder / "calm", self.utterances, self.fingerprint, parts=4)
        self.file = folder / "job"
        self.file.write_bytes(pickle.dumps((self.fingerprint, self.plan, self.utterances)))
        self.file.chmod(0o644)

    def run(self, path: Path, *, limit: int = 0, uid: int = 0) -> str:
        process = subprocess.run(
            [sys.executable, "-c", WRITER, str(path), str(self.file), str(limit), str(uid)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    def assert_finished(self, path: Path) -> None:
        for file in self.calm.iterdir():
            if file.name == "zarr.json":
                continue  # the calm one has another summary
            assert (path / file.name).read_bytes() == file.read_bytes()
        assert verify(path).problems == ()
        assert [p.name for p in path.iterdir() if p.name.startswith(".")] == []


@pytest.fixture
def job(tmp_path: Path, maker: StoreMaker) -> Job:
    return Job(tmp_path, maker)


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


NOBODY = 65534


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[int]:
    """A user whom permissions bind, for a process of root; 0, this user, for any other."""
    if os.geteuid() != 0:
        yield 0
        return
    opened = []
    for folder in [tmp_path, *tmp_path.parents][:-2]:
        if not folder.stat().st_mode & 0o005:
            opened.append((folder, folder.stat().st_mode))
            folder.chmod(0o755)
    yield NOBODY
    for folder, mode in opened:
        folder.chmod(mode & 0o777)


def test_a_folder_that_may_not_be_written(job: Job, tmp_path: Path, as_nobody: int) -> None:
    store = tmp_path / "store"
    StoreWriter.open(store, job.fingerprint, job.plan)
    before = (store / "zarr.json").read_bytes()
    store.chmod(0o555)
    said = job.run(store, uid=as_nobody)
    assert said.startswith(f"StoreError: cannot write the teacher cache {store}; ")
    assert "check the folder's permissions" in said
    store.chmod(0o755)
    assert (store / "zarr.json").read_bytes() == before
    assert job.run(store) == ""
    job.assert_finished(store)


def test_a_store_that_may_not_be_made(job: Job, tmp_path: Path, as_nobody: int) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    said = job.run(closed / "store", uid=as_nobody)
    assert said.startswith(f"StoreError: cannot write the teacher cache {closed / 'store'}; ")
    assert list(closed.iterdir()) == []


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
