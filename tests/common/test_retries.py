"""What fails in passing is tried again; what will not pass is raised at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runkit import retries
from runkit.checkpoints import read_object
from runkit.errors import UserError
from runkit.files import write_file
from runkit.retries import is_outage, is_passing, patient, resumed


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(retries._lost_in_a_row, "count", 0)


class Fails:
    """A function that fails so many times."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "content"


def numbered(number: int) -> OSError:
    return OSError(number, os.strerror(number))


S3 = "When reading information for key 'x' in bucket 'b': AWS Error {} during HeadObject operation: No response body."
PASSING = [
    numbered(errno.EIO), numbered(errno.ESTALE), numbered(errno.ETIMEDOUT), numbered(errno.ECONNRESET),
    numbered(errno.EAGAIN), TimeoutError("timed out"), ConnectionResetError("reset"),
    OSError(S3.format("UNKNOWN (HTTP status 503)")), OSError(S3.format("UNKNOWN (HTTP status 429)")),
    OSError(S3.format("SLOW_DOWN")), OSError(S3.format("NETWORK_CONNECTION")),
]  # fmt: skip
LASTING = [
    numbered(errno.ENOENT), numbered(errno.EACCES), numbered(errno.ENOSPC), numbered(errno.EROFS),
    ValueError("decoder"),
    OSError("image file is truncated (12 bytes not processed)"), OSError(S3.format("ACCESS_DENIED")),
    OSError(S3.format("UNKNOWN (HTTP status 400)")), UserError("a setting"), MemoryError(),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_passes_is_tried_again(error: Exception) -> None:
    work = Fails(error, error)
    assert patient(work)() == "content"
    assert work.calls == 3


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_what_does_not_pass_is_raised_at_once(error: Exception) -> None:
    work = Fails(error, error)
    with pytest.raises(type(error)) as raised:
        patient(work)()
    assert raised.value is error
    assert work.calls == 1


def test_there_is_a_last_try_whose_error_is_raised() -> None:
    work = Fails(*(numbered(errno.EIO) for _ in range(99)))
    with pytest.raises(OSError, match="Input/output"):
        patient(work)()
    assert work.calls == 4


def test_what_one_has_tried_in_vain_another_does_not_try_again() -> None:
    work = Fails(*(numbered(errno.ESTALE) for _ in range(99)))

    def blaming() -> str:
        try:
            return patient(work)()
        except OSError as error:
            raise UserError(f"sample 7: {error}") from error

    with pytest.raises(UserError, match="sample 7") as raised:
        patient(blaming)()
    assert work.calls == 4
    assert is_passing(raised.value)
    assert is_outage(raised.value)


@pytest.mark.parametrize("fails_at", [0, 1, 4, 5])
def test_an_iterator_resumes_where_it_failed(fails_at: int) -> None:
    failures = [numbered(errno.ETIMEDOUT), numbered(errno.ECONNRESET)]

    def five() -> Iterator[int]:
        for number in range(6):
            if number == fails_at and failures:
                raise failures.pop()
            if number < 5:
                yield number

    assert list(resumed(five)) == [0, 1, 2, 3, 4]
    assert failures == []


def test_an_iterator_that_fails_for_good_raises() -> None:
    def one() -> Iterator[int]:
        yield 1
        raise numbered(errno.ENOENT)

    found = resumed(one)
    assert next(found) == 1
    with pytest.raises(FileNotFoundError):
        next(found)


def test_a_failing_disk_is_not_waited_for_file_by_file() -> None:
    for _ in range(20):
        lost = Fails(*(numbered(errno.EIO) for _ in range(99)))
        with pytest.raises(OSError, match="Input/output"):
            patient(lost)()
    assert lost.calls == 1
    away = Fails(numbered(errno.ESTALE), numbered(errno.ESTALE))  # another matter
    assert patient(away)() == "content"
    again = Fails(numbered(errno.EIO))  # and after one that could be read it is tried again
    assert patient(again)() == "content"


def test_a_bad_sector_is_no_outage() -> None:
    assert is_passing(numbered(errno.EIO))
    assert not is_outage(numbered(errno.EIO))
    assert not is_outage(numbered(errno.ENOENT))


def test_files_are_written_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, read = os.fsync, Path.read_bytes
    sync, look = Fails(numbered(errno.EIO), numbered(errno.EIO)), Fails(numbered(errno.ESTALE))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (sync(), fsync(descriptor)))
    write_file(tmp_path / "a.json", b"{}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    monkeypatch.setattr(Path, "read_bytes", lambda path: (look(), read(path))[1])
    assert read_object(tmp_path / "a.json") == {}
    assert look.calls == 2
