"""What torch.compile requires."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import threading
from collections import defaultdict

from runkit.errors import UserError


def check_compiler(device: str, error: type[UserError] = UserError) -> None:
    """Refuse torch.compile on a machine without a compiler. Call it before the work.

    Args:
        device: cpu or cuda.
        error: Class of the error.

    Raises:
        UserError: No compiler is found.
    """
    # The same search as that of inductor on CPUs and Triton on GPUs.
    kind, variable, usual = ("C", "CC", ["gcc", "clang"]) if device == "cuda" else ("C++", "CXX", ["g++"])
    if device != "cuda" and sys.platform == "darwin":
        usual = ["clang++"]
    names = shlex.split(os.environ.get(variable, ""))[:1] or usual
    if not any(map(shutil.which, names)):
        raise error(
            f"compile requires a {kind} compiler, and this machine has no {' or '.join(names)}: install one, name it "
            f"in {variable}, or leave compile off"
        )


def allow_cuda_graphs() -> None:
    """Let compiled code capture and replay CUDA graphs in this thread.

    In torch 2.6 to 2.11 only the thread that imports their module can, and others fail with an AssertionError. Each
    thread captures graphs of its own. Later versions make these containers where they are missing and share them with
    backward passes, after which a process may abort if it ends soon after the thread.
    """
    with contextlib.suppress(ImportError, AttributeError):  # a torch with other internals may not require it
        from torch._inductor.cudagraph_trees import local

        if not hasattr(local, "tree_manager_containers"):
            local.tree_manager_containers = {}
            local.tree_manager_locks = defaultdict(threading.Lock)


def allow_programs(count: int) -> None:
    """Let a function have at least this many compiled programs in this thread.

    A function is compiled again for constants that differ, such as settings. Beyond the limit, which is 8 otherwise,
    torch runs it uncompiled.
    """
    import torch._dynamo

    config = torch._dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, count)  # its name in every torch since 2.6
