"""Samples are read ahead by threads, in order."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from codeshards.job.encode import WorkerResources, fix_arithmetic, read_ahead


@pytest.mark.parametrize(("total", "step"), [(0, 4), (3, 4), (100, 32), (100, 1), (300, 128)])
def test_lists_are_read_ahead_in_order(total, step):
    with ThreadPoolExecutor(3) as pool:
        lists = list(read_ahead(str, total, step, pool))
    assert [len(one) for one in lists] == [min(step, total - start) for start in range(0, total, step)]
    assert [int(item) for one in lists for item in one] == list(range(total))


def test_an_error_of_a_sample_is_raised_with_its_list():
    def read(index):
        if index == 70:
            raise OSError("gone")
        return index

    with ThreadPoolExecutor(2) as pool:
        lists = read_ahead(read, 100, 32, pool)
        assert [next(lists), next(lists)] == [list(range(32)), list(range(32, 64))]
        with pytest.raises(OSError, match="gone"):
            next(lists)


def test_many_threads_all_read():
    """They wait for a slow store, and the first batch already has a sample for each."""
    everyone = threading.Barrier(32, timeout=30)
    with ThreadPoolExecutor(32) as pool:
        assert next(read_ahead(lambda _: everyone.wait() >= 0, 32, 32, pool)) == [True] * 32


def in_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_threads_that_read_have_one_torch_thread_and_others_keep_theirs():
    """torch gives a thread that computes for the first time the latest number of any thread."""
    before = torch.get_num_threads()

    def encode(pool):
        fix_arithmetic(3)
        assert pool.submit(torch.get_num_threads).result() == 1
        return torch.get_num_threads()

    try:
        fix_arithmetic(2)
        pool = WorkerResources(1).decode_pool
        assert pool.submit(torch.get_num_threads).result() == 1
        assert in_thread(torch.get_num_threads) == 2
        assert in_thread(lambda: encode(WorkerResources(1).decode_pool)) == 3
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
