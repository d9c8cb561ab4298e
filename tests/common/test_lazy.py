"""The packages of both stages export their public names without importing torch."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["vqgan", "codeprior"])
def test_a_package_is_cheap_to_import_and_exports_its_public_names(package: str) -> None:
    code = f"import sys, {package}; sys.exit(bool(sys.modules.keys() & {{'torch', 'numpy', 'PIL', 'pyarrow'}}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Tokeniser'"):
        _ = module.Tokeniser
