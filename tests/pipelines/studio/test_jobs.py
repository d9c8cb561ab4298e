"""The queue: how several people share a studio."""

import asyncio
import dataclasses
import json
import threading
import time

import pytest
import torch
from studio_server import connect, request, run, running

from imagepriors.studio import server
from imagepriors.studio.guard import Access
from imagepriors.studio.jobs import MAX_WAITING, BusyError, JobQueue
from imagepriors.studio.server import make_app
from runkit.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    steps: int
    name: str = ""


@pytest.fixture
def counting(contents, monkeypatch):
    """A studio with a job that counts, in hundredths of a second; what the jobs have done; and an event.

    A job that is named first ends after the event.
    """
    done, queued = [], threading.Event()

    def count(_, job, report):
        done.append(f"{job.name} begins")
        for step in range(job.steps):
            report(step, job.steps)
            time.sleep(0.01)
        if job.name == "first":
            assert queued.wait(30)
        if job.name == "bad":
            raise UserError("this one fails")
        done.append(f"{job.name} ends")
        return {"name": job.name}

    monkeypatch.setitem(server.JOBS, "count", (Count, count))
    with running(make_app(contents, Access())) as url:
        yield url, done, queued


def begin(url, **values):
    """Start a job; returns its open answer after its first event, and that event."""
    connection = connect(url)
    connection.request("POST", "/api/jobs/count", json.dumps(values), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return connection, response, json.loads(response.readline())


def rest(response):
    return [json.loads(line) for line in response.read().splitlines()]


def test_several_people_queue(counting):
    url, done, queued = counting
    first = begin(url, steps=3, name="first")
    second, third = begin(url, steps=3, name="second"), begin(url, steps=3, name="third")
    assert first[2]["state"] == "running"
    assert [second[2]["ahead"], third[2]["ahead"]] == [1, 2]
    queued.set()
    for _, response, _ in (first, second, third):
        assert rest(response)[-1]["state"] == "done"
    assert done == [f"{name} {what}" for name in ("first", "second", "third") for what in ("begins", "ends")]


def test_who_leaves_or_fails_does_not_block_the_others(counting):
    url, done, _ = counting
    leaves, waits = begin(url, steps=100_000, name="leaves"), begin(url, steps=9, name="waits")
    bad, good = begin(url, steps=1, name="bad"), begin(url, steps=1, name="good")
    waits[1].close()
    waits[0].close()  # while it waits
    leaves[1].close()
    leaves[0].close()  # while it runs
    assert rest(bad[1])[-1] == {"state": "failed", "error": "this one fails"}
    assert rest(good[1])[-1]["name"] == "good"
    assert done == ["leaves begins", "bad begins", "good begins", "good ends"]


def test_a_full_queue_says_so(counting):
    url, *_ = counting
    opened = []
    threads = [
        threading.Thread(target=lambda: opened.append(begin(url, steps=100_000))) for _ in range(MAX_WAITING + 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status, _, text = request(url, "/api/jobs/count", {"steps": 1})
    assert (status, json.loads(text)) == (503, {"error": f"{MAX_WAITING} jobs wait already: try again in a minute"})
    for connection, response, _ in opened:
        response.close()
        connection.close()
    assert run(url, "count", {"steps": 1})[-1]["state"] == "done"


def test_jobs_and_answers_compute_with_as_many_threads_as_the_command_line(contents, monkeypatch):
    """Sums over another number of threads round differently, and a near tie of two codes is another picture."""

    def threads(*_):
        return {"threads": torch.get_num_threads()}

    before = torch.get_num_threads()
    for table in (server.JOBS, server.ANSWERS):
        monkeypatch.setitem(table, "threads", (Count, threads))
    try:
        with running(make_app(contents, Access())) as url:
            for count in (before, before + 1, before + 2, before):
                torch.set_num_threads(count)
                assert run(url, "threads", {"steps": 1})[-1]["threads"] == count
                assert json.loads(request(url, "/api/threads", {"steps": 1})[2]) == {"threads": count}
    finally:
        torch.set_num_threads(before)


def test_a_closed_queue_ends_its_jobs():
    ended = []

    async def scene():
        queue, events = JobQueue(), []

        def forever(report):
            while True:
                report(0, 1)
                time.sleep(0.001)

        async def watch():
            async for event in queue.stream(forever):
                events.append(event["state"])

        watched = [asyncio.create_task(watch()) for _ in range(3)]
        await asyncio.sleep(0.1)
        queue.close()
        await asyncio.wait_for(asyncio.gather(*watched), 5)
        assert "failed" not in events
        with pytest.raises(BusyError, match="ending"):
            await anext(queue.stream(forever))

    thread = threading.Thread(target=lambda: ended.append(asyncio.run(scene()) is None))
    thread.start()
    thread.join(30)
    assert ended == [True]
