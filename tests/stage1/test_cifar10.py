"""The reader `cifar10`."""

import pickle

import numpy as np
import pytest
from tiny_pictures import put, put_tar

from vqgan.data import open_splits
from vqgan.errors import InputError


def cifar(form: str) -> dict[str, bytes]:
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    rows = np.zeros((6, 2, 3, 32, 32), np.uint8)
    rows[:, :, 0] = np.arange(12).reshape(6, 2, 1, 1)
    rows[:, :, 1, 5, 9] = 200
    files = {}
    for index, name in enumerate(names):
        flat, labels = rows[index].reshape(2, -1), [index % 10, (index + 1) % 10]
        if form == "bin":
            files[f"{name}.bin"] = b"".join(bytes([c]) + r.tobytes() for c, r in zip(labels, flat, strict=True))
        else:
            files[name] = pickle.dumps({b"data": flat, b"labels": labels}, protocol=2)
    classes = [f"class{n}" for n in range(10)]
    meta = {"batches.meta.txt": "\n".join(classes).encode()} if form == "bin" else {
        "batches.meta": pickle.dumps({b"label_names": [name.encode() for name in classes]}, protocol=2)
    }  # fmt: skip
    return files | meta


@pytest.mark.parametrize("form", ["py", "bin"])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_official_versions(tmp_path, form, packed):
    folder = f"cifar-10-batches-{form}"
    if packed:
        members = {f"{folder}/{name}": data for name, data in cifar(form).items()}
        put_tar(tmp_path / f"cifar-10-{'python' if form == 'py' else 'binary'}.tar.gz", members, mode="w:gz")
    else:
        for name, data in cifar(form).items():
            put(tmp_path / folder / name, data)
    splits = open_splits("cifar10", tmp_path)
    assert (len(splits["train"]), len(splits["val"])) == (10, 2)
    assert splits["train"].class_names[3] == "class3"
    sample = splits["train"].read(3, 32)
    assert (sample.key, sample.label, sample.image[0, 0, 0], sample.image[5, 9, 1]) == ("data_batch_2/00001", 2, 3, 200)


def test_cifar10_never_runs_code_of_a_pickle(tmp_path):
    class Evil:
        def __reduce__(self):
            return (eval, ("1 / 0",))

    for name, data in (cifar("py") | {"data_batch_2": pickle.dumps(Evil())}).items():
        put(tmp_path / name, data)
    with pytest.raises(InputError, match=r"builtins\.eval"):
        open_splits("cifar10", tmp_path)
    put(tmp_path / "data_batch_2", b"")
    with pytest.raises(InputError, match="missing or broken"):
        open_splits("cifar10", tmp_path)


def test_a_pickle_of_cifar_takes_no_more_memory_than_its_bytes(tmp_path):
    """In C, an object's number makes the unpickler allocate a table of that size."""
    put(tmp_path / "test_batch", b"")
    put(tmp_path / "batches.meta", b"\x80\x02K\x01r\xff\xff\xff\x7f.")
    with pytest.raises(InputError, match="CIFAR-10 cannot be read"):
        open_splits("cifar10", tmp_path)
