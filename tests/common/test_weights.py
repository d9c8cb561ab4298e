"""Files of weights: what torch and safetensors wrote is read, nothing is executed, and none becomes a flood."""

import collections
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from runkit.errors import UserError
from runkit.weights import load_weights


class Marker:
    """Unpickled, it leaves a mark in the current folder."""

    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("nesting", [None, "state_dict", "model"])
def test_what_torch_wrote_is_read(tmp_path, form, nesting):
    weights = collections.OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.nn.Parameter(torch.ones(3)))
    weights["shared"] = weights["a"]
    weights["column"] = weights["a"][:, 1]
    torch.save(
        {nesting: weights} if nesting else weights, tmp_path / "w.pth", _use_new_zipfile_serialization=form == "zip"
    )
    found = load_weights(tmp_path / "w.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) and type(found[name]) is torch.Tensor for name, value in weights.items())


def test_safetensors_are_read(tmp_path):
    save_file({"a": torch.arange(6.0)}, tmp_path / "w.safetensors")
    assert load_weights(tmp_path / "w.safetensors")["a"].tolist() == list(range(6))
    (tmp_path / "w.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be read as plain weights"):
        load_weights(tmp_path / "w.safetensors")


def scripted(path, *, traced=False):
    """Write a TorchScript archive, as Cosmos publishes its models; return the module."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).bfloat16().eval()
    module.sides: list[int] = [1, 2]
    picture = torch.ones(1, 3, 2, 2, dtype=torch.bfloat16)
    torch.jit.save(torch.jit.trace(module, picture) if traced else torch.jit.script(module), path)
    return module


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("traced", [False, True])
def test_the_tensors_of_a_torchscript_archive_are_read(tmp_path, traced):
    module = scripted(tmp_path / "w.jit", traced=traced)
    found = load_weights(tmp_path / "w.jit")
    expected = module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name])
        assert value.dtype == expected[name].dtype


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_the_code_of_a_torchscript_archive_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scripted(tmp_path / "w.jit")
    with zipfile.ZipFile(tmp_path / "w.jit") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    changes = {"w/code/__torch__/torch/nn/modules/container.py": b"import os; os.system('touch executed')"}
    changes["w/constants.pkl"] = pickle.dumps(Marker(), 2)
    assert changes.keys() <= records.keys()
    with zipfile.ZipFile(tmp_path / "code.jit", "w") as archive:
        for name, content in {**records, **changes}.items():
            archive.writestr(name, content)
    assert len(load_weights(tmp_path / "code.jit")) == 7
    with zipfile.ZipFile(tmp_path / "bad.jit", "w") as archive:
        for name, content in {**records, "w/data.pkl": pickle.dumps(Marker(), 2)}.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=r"it names \w+\.system, which no weights need"):
        load_weights(tmp_path / "bad.jit")
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_torchscript_archive_that_contains_itself_ends(tmp_path):
    scripted(tmp_path / "w.jit")
    state = b"\x80\x02c__torch__\nLoop\n)\x81q\x00}X\x04\x00\x00\x00loopq\x01h\x00sb."
    with zipfile.ZipFile(tmp_path / "w.jit") as archive, zipfile.ZipFile(tmp_path / "loop.jit", "w") as loop:
        for name in archive.namelist():
            loop.writestr(name, state if name == "w/data.pkl" else archive.read(name))
    with pytest.raises(UserError, match="holds no state_dict of tensors"):
        load_weights(tmp_path / "loop.jit")


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_nothing_is_executed_in_either_form(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    for name, content in (("top", Marker()), ("inside", {"state_dict": {"a": torch.ones(1)}, "callbacks": [Marker()]})):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=form == "zip")
        with pytest.raises(UserError, match=r"it names \w+\.system, which no weights need. Nothing of it was run"):
            load_weights(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_pickle_before_or_after_an_archive_is_not_what_is_looked_at(tmp_path, monkeypatch):
    """One of the two readers must not see another file than the other."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "good.pth")
    torch.save(Marker(), tmp_path / "bad.pth", _use_new_zipfile_serialization=False)
    good, bad = ((tmp_path / name).read_bytes() for name in ("good.pth", "bad.pth"))
    (tmp_path / "both.pth").write_bytes(bad + good)
    with pytest.raises(UserError, match="which no weights need"):
        load_weights(tmp_path / "both.pth")
    (tmp_path / "prefix.pth").write_bytes(good + good)
    with pytest.raises(UserError, match="it has bytes before its first record"):
        load_weights(tmp_path / "prefix.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>not found</html>", b"PK\x03\x04 cut", pickle.dumps([1, 2]), pickle.dumps(Marker()), b"\x80\x02."],
    ids=["empty", "text", "zip", "list", "plain pickle", "nothing"],
)
def test_other_files_are_one_message(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth cannot be read as plain weights"):
        load_weights(tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_truncated_files_are_one_message(tmp_path, form):
    torch.save({"a": torch.ones(1000)}, tmp_path / "w.pth", _use_new_zipfile_serialization=form == "zip")
    whole = (tmp_path / "w.pth").read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "w.pth").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match="cannot be read as plain weights"):
            load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"a": 1},
        {"state_dict": {"a": [1]}},
        [torch.ones(1)],
        {"a": torch.ones(1).to_sparse()},
        {1: torch.ones(1)},
    ],
)
def test_what_is_no_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds no state_dict|cannot be read as plain weights"):
        load_weights(tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not exist"):
        load_weights(tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match="does not exist"):
        load_weights(tmp_path)


def deflated(path):
    """400 MB of zeros in a compressed member of an archive of less than one."""
    torch.save({"a": torch.zeros(100_000_000)}, path.with_suffix(".whole"))
    with (
        zipfile.ZipFile(path.with_suffix(".whole")) as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for member in whole.infolist():
            small.writestr(member.filename, whole.read(member))


def expanded(path):
    """A number that a stride of 0 makes 4 GB."""
    torch.save({"a": torch.zeros(1).expand(1000, 1_000_000)}, path)


def shared(path):
    """A thousand tensors over the same megabyte."""
    one = torch.zeros(250_000)
    torch.save({str(number): one.view(-1) for number in range(1000)}, path)


def claimed(path):
    """A storage that the pickle says to be 4 GB, and that the list of storages leaves out."""
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    small, large = (b"K" + bytes([3]), b"J" + struct.pack("<i", 1_000_000_000))
    path.write_bytes(path.read_bytes().replace(small, large))


def doubled(path):
    """A text that is encoded as hexadecimal digits 30 times."""
    encode = b"c_codecs\nencode\n"
    step = b"X\x03\x00\x00\x00hex\x86R"
    text = b"(" + b"X\x08\x00\x00\x00" + b"a" * 8 + b"X\x06\x00\x00\x00latin1"
    main = b"\x80\x02" + encode * 30 + encode + text[1:] + b"\x86R" + step * 30 + b"."
    heads = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
    path.write_bytes(b"".join(heads) + main + pickle.dumps([], 2))


BOMBS = {
    deflated: "would become 400,",
    expanded: "would become 4,000,000,000, more than 4 times",
    shared: "would become 1,000,000,000, more than 4 times",
    claimed: "more than 4 times|expected",
    doubled: "it names _codecs.encode",
}
CHILD = """
import resource, sys
from pathlib import Path
from runkit.weights import load_weights

load_weights(Path("small.pth"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        load_weights(Path(name))
    except ValueError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_file_that_becomes_a_flood_is_refused_before_the_memory_is_taken(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "small.pth")
    for bomb in BOMBS:
        bomb(tmp_path / f"{bomb.__name__}.pth")
    command = [sys.executable, "-c", CHILD, *(f"{bomb.__name__}.pth" for bomb in BOMBS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    *messages, kilobytes = done.stdout.splitlines()
    for words, message in zip(BOMBS.values(), messages, strict=True):
        assert re.search(words, message)
    assert int(kilobytes) < 50_000
