"""Progress bars are shown where a person sees them."""

import os
import pty
import subprocess
import sys
import termios

import pytest

from runkit import progress

BAR = "from runkit.progress import tqdm\nfor _ in tqdm(range(3), desc='work', disable=None): pass\n"
NOTEBOOK = (
    "from IPython.core.interactiveshell import InteractiveShell\n"
    "from traitlets.config import Config\n"
    "InteractiveShell.instance(config=Config(IPKernelApp={'connection_file': 'x'}))\n"
)


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr


def test_a_bar_is_shown_in_a_terminal_and_not_in_a_file():
    assert "work" not in printed(BAR)
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    subprocess.run([sys.executable, "-c", BAR], stderr=terminal, check=True)
    assert b"work" in os.read(controller, 10_000)
    os.close(terminal)
    os.close(controller)


def test_a_bar_is_shown_in_a_notebook():
    pytest.importorskip("IPython")
    assert "work: 100%" in printed(NOTEBOOK + BAR)
    assert "work" not in printed(NOTEBOOK + BAR.replace("disable=None", "disable=True"))


def test_a_bar_in_a_hidden_block_is_not_shown(monkeypatch):
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    assert not progress.tqdm(disable=None).disable
    with progress.hidden():
        assert progress.tqdm(disable=None).disable
    assert not progress.tqdm(disable=None).disable
