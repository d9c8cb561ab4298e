"""Checkpoints, and the files and folders of a run: written whole, removed by name, set aside where damaged."""

import json
import logging

import pytest
import torch

from runkit.checkpoints import (
    DamagedError,
    checkpoints,
    newest_intact,
    read_tensors,
    read_values,
    remove_unfinished,
    save_checkpoint,
)
from runkit.configs import check_fields
from runkit.errors import UserError
from runkit.files import remove_made

FILES = ["config.json", "model.safetensors", "state.json", "state.safetensors"]


def save(run, step, keep=2, weight=1.0):
    weights = {"w": torch.full((4,), weight)}
    return save_checkpoint(
        run, step, config={"a": 1}, weights=weights, tensors={"m": torch.ones(2)}, scalars={"b": 0.5}, keep=keep
    )


def check(path):
    read_values(path)
    read_tensors(path)


def test_checkpoints_are_whole_and_the_oldest_go(tmp_path):
    for step in (1, 2, 99_999_999, 100_000_000):
        path = save(tmp_path, step)
    assert [found.name for found in checkpoints(tmp_path)] == ["step-99999999", "step-100000000"]
    assert sorted(found.name for found in path.iterdir()) == FILES
    assert read_values(path)[0] == {"a": 1}
    assert read_values(path)[1].items() >= {"step": 100_000_000, "b": 0.5}.items()
    assert newest_intact(tmp_path, check) == path


def test_what_could_not_be_used_is_not_saved(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(UserError, match="w has values that are NaN or infinite after step 2: nothing was saved"):
        save(tmp_path, 2, weight=float("nan"))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def damages(content):
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return [b"", content[:-1], bytes(len(content)), bytes(flipped), None]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", range(5), ids=["empty", "cut", "zeros", "bit", "missing"])
def test_damaged_checkpoints_are_set_aside_and_named(tmp_path, caplog, name, kind):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    for step in (2, 3):
        path = tmp_path / "checkpoints" / f"step-{step:08d}" / name
        damage = damages(path.read_bytes())[kind]
        path.unlink() if damage is None else path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert newest_intact(tmp_path, check).name == "step-00000001"
    assert len(caplog.messages) == 2
    assert f"step-00000003/{name}" in caplog.messages[0]
    assert "was renamed to damaged-step-00000003" in caplog.messages[0]
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["damaged-step-00000002", "damaged-step-00000003", "step-00000001"]
    save(tmp_path, 3)
    (tmp_path / "checkpoints" / "step-00000003" / name).unlink()
    newest_intact(tmp_path, check)
    assert (tmp_path / "checkpoints" / "damaged-step-00000003-2").is_dir()


def test_every_flipped_byte_of_the_plain_values_is_noticed(tmp_path):
    path = save(tmp_path, 1)
    for name in ("config.json", "state.json"):
        whole = (path / name).read_bytes()
        for place in range(len(whole)):
            content = bytearray(whole)
            content[place] ^= 1 << place % 7
            (path / name).write_bytes(content)
            try:
                assert read_values(path)[1].items() >= {"step": 1, "b": 0.5}.items()  # in the name of a sha256
            except DamagedError:
                continue
            assert b"sha25" in whole[max(0, place - 14) : place + 14], place
        (path / name).write_bytes(whole)


def test_without_an_intact_one_the_message_names_those_set_aside(tmp_path):
    (save(tmp_path, 1) / "state.json").unlink()
    for _ in range(2):  # also when they were set aside before
        with pytest.raises(UserError, match="no intact checkpoint to continue from: damaged-step-00000001"):
            newest_intact(tmp_path, check)
    assert newest_intact(tmp_path / "another", check) is None


def test_what_is_no_damage_renames_nothing(tmp_path):
    def refuse(path):
        raise UserError("another config")

    save(tmp_path, 1)
    with pytest.raises(UserError, match="another config"):
        newest_intact(tmp_path, refuse)
    assert len(checkpoints(tmp_path)) == 1


def test_only_files_that_were_made_are_removed(tmp_path, caplog):
    mine, mixed = save(tmp_path, 1), save(tmp_path, 2)
    (mixed / "notes.txt").write_text("keep me")
    (tmp_path / "link").symlink_to(mine)
    for folder in (tmp_path / "link", mixed, tmp_path / "missing"):
        remove_made(folder, FILES)
    assert mine.is_dir()
    assert not mixed.exists()
    assert [path.name for path in (tmp_path / "checkpoints" / "leftover-step-00000002").iterdir()] == ["notes.txt"]
    assert "notes.txt, which is a foreign file" in caplog.text
    remove_made(mine, FILES)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["leftover-step-00000002"]


def test_half_written_files_of_ours_go_and_others_stay(tmp_path):
    (tmp_path / "checkpoints" / ".step-00000003.tmp-7-ab").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-00000003.tmp-7-ab" / ".model.safetensors.tmp-7-cd").write_text("half")
    (tmp_path / ".best.tmp-7-ab").mkdir()
    others = [tmp_path / name for name in (".notes.tmp-1", "checkpoints/.mine", ".log.txt.tmp-7-ab")]
    for path in (tmp_path / ".log.tmp-7-ab", *others):
        path.write_text("")
    remove_unfinished(tmp_path, ("log",), {"best": FILES})
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)


def test_numbers_beyond_a_float_are_refused():
    import dataclasses

    @dataclasses.dataclass
    class Config:
        rate: float

    check_fields(Config(rate=1))
    for value in (10**400, -(10**400), float("nan"), float("inf"), json.loads("1e999")):
        with pytest.raises(UserError, match="choose a finite number"):
            check_fields(Config(rate=value))
