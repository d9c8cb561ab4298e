"""xformers where it has no kernel, no library or no runtime: the run is refused in one message."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codeprior.attention import check_attention
from codeprior.config import ModelConfig, PriorError


def test_heads_without_a_kernel_of_xformers_are_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*_: Tensor) -> Tensor:
        raise NotImplementedError("a dozen lines")

    monkeypatch.setattr("codeprior.attention.attend_xformers", no_kernel)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0.99")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    model = ModelConfig(attention="xformers", n_head=6, n_embd=192)
    with pytest.raises(PriorError, match=r"xformers 0.0.99 has no kernel for heads of 32 channels in bfloat16 on GPU"):
        check_attention(model, torch.device("cpu"), "bfloat16")
    check_attention(replace(model, attention="sdpa"), torch.device("cpu"), "bfloat16")


LOAD_XFORMERS = """
import logging, sys
from codeprior.attention import load_xformers
from codeprior.config import PriorError
try:
    load_xformers()
except PriorError as error:
    sys.exit(str(error))
finally:
    assert logging.getLogger("xformers").isEnabledFor(logging.WARNING)
"""


def load_xformers(folder: Path, files: dict[str, str]) -> str:
    """What :func:`codeprior.attention.load_xformers` says where these modules have other content."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", LOAD_XFORMERS], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode in (0, 1)
    return done.stderr.strip()


def test_xformers_without_its_library_is_refused_in_one_line(tmp_path: Path) -> None:
    """Of the six lines that xformers logs, nothing is left; later ones are logged."""
    module = """
import logging
logging.getLogger("xformers").warning("six lines")
class _cpp_lib:
    _cpp_library_load_exception = ValueError("unfit\\nfor this torch")
    _cpp_library_load_exception.__cause__ = OSError("libcudart.so.12: no such file")
__version__, _has_cpp_library = "0.0.99", False
"""
    message = load_xformers(tmp_path, {"xformers.py": module})
    assert message.startswith("attention = 'xformers': the library of xformers 0.0.99 cannot be loaded with torch 2.")
    assert "(libcudart.so.12: no such file): use 'sdpa', or pip install 'imagepriors[cuda]' again" in message
    assert len(message.splitlines()) == 1
    message = load_xformers(tmp_path, {"xformers.py": "raise ImportError('no xformers')"})
    assert message == "attention = 'xformers': no xformers; pip install 'imagepriors[cuda]', or use 'sdpa'"


@pytest.mark.skipif((torch.version.cuda or "12.").startswith("12."), reason="torch has the runtime of CUDA 12")
def test_the_runtime_of_cuda_12_is_loaded_before_xformers(tmp_path: Path) -> None:
    """A library of that name stands for it: a process can load it from the package's folder only."""
    package, record = "nvidia/cuda_runtime/lib/libcudart.so.12", "nvidia_cuda_runtime_cu12-12.9.dist-info"
    (library,) = (Path(torch.__file__).parent / "lib").glob("libshm.so")
    module = """
from pathlib import Path
_has_cpp_library = "libcudart.so.12" in Path("/proc/self/maps").read_text()
assert _has_cpp_library, "not loaded"
"""
    files = {f"{record}/METADATA": "Name: nvidia-cuda-runtime-cu12\n", f"{record}/RECORD": f"{package},,\n"}
    (tmp_path / package).parent.mkdir(parents=True)
    shutil.copy(library, tmp_path / package)
    assert load_xformers(tmp_path, {**files, "xformers.py": module}) == ""
