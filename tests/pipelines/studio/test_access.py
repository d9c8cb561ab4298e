"""Who may open the page, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from studio_server import connect, request, running

from imagepriors.cli import main
from imagepriors.studio import guard, server
from imagepriors.studio.guard import Access
from imagepriors.studio.server import make_app
from imagepriors.studio.tokens import OrdersRequest

FOREIGN = "another page"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/", {"Host": "localhost:1"}, 200),
        ("/", {"Host": "[::1]:7860"}, 200),
        ("/", {"Host": "LOCALHOST"}, 200),
        ("/", {"Host": "rebound.example"}, 403),
        ("/", {"Host": "127.0.0.1.rebound.example:80"}, 403),
        ("/", {"Host": ""}, 403),
        ("/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ("/api/contents", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("/api/contents", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/api/contents", {"Sec-Fetch-Site": "same-site"}, 403),
        ("/static/app.js", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/api/contents", {"Origin": "https://evil.example"}, 403),
        ("/api/contents", {"Origin": "null"}, 403),
    ],
)
def test_only_this_machine_and_this_page(studio, path, headers, status):
    assert request(studio, path, headers=headers)[0] == status


def test_what_the_browser_may_do(studio):
    _, headers, _ = request(studio, "/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


def test_a_shared_page_requires_its_key(contents, open_page):
    access = Access.shared()
    with running(make_app(contents, access)) as url:
        for path in ("/", "/api/contents", "/static/app.js", "/?key=", "/?key=wrong", "/?key=%ff"):
            assert request(url, path)[0] == 403, path
        assert request(url, "/api/decode", {"tokenizer": "tokenizer", "codes": [[0] * 64]})[0] == 403
        status, headers, _ = request(url, f"/?key={access.key}", headers={"Host": "10.0.0.7:7860"})
        assert (status, headers["location"]) == (303, "/")
        assert re.search(r"HttpOnly.*SameSite=lax", headers["set-cookie"])
        cookie = {"Cookie": headers["set-cookie"].partition(";")[0]}
        assert request(url, "/api/contents", headers=cookie)[0] == 200
        for others in ("{broken}=1; a b=2; ", "theme=dark; =; "):  # of other pages on this host
            assert request(url, "/api/contents", headers={"Cookie": others + cookie["Cookie"]})[0] == 200
        for key in (access.key, "old"):  # the link once more, or that of an earlier studio
            status, headers, _ = request(url, f"/?key={key}", headers=cookie)
            assert (status, headers["location"]) == (303, "/")
        assert FOREIGN in request(url, "/api/rows", {}, headers={**cookie, "Origin": "https://evil.example"})[2]

        page = open_page(f"{url}/?key={access.key}")
        page.wait_for_selector("[role=tab]")
        assert "key" not in page.url
        page.close()  # before the server


def test_a_public_page_is_open_and_may_be_framed_by_its_space(contents):
    with running(make_app(contents, Access.public())) as url:
        status, headers, _ = request(url, "/", headers={"Host": "owner-name.hf.space"})
        assert status == 200
        assert "frame-ancestors 'self' https://huggingface.co" in headers["content-security-policy"]
        proxied = {"Host": "10.0.0.1", "Origin": "https://owner-name.hf.space", "Sec-Fetch-Site": "same-origin"}
        assert request(url, "/api/contents", headers=proxied)[0] == 200
        assert request(url, "/api/contents", headers={**proxied, "Sec-Fetch-Site": "cross-site"})[0] == 403


def test_a_shared_studio_ends_at_once_while_it_draws(demo_run, tmp_path):
    command = [sys.executable, "-m", "imagepriors", "studio", str(demo_run), "--port", "0", "--share"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stderr
    assert process.stdout
    link = next(found for line in process.stderr if (found := re.search(r"(http://\S+)/\?key=([^\s;]+)", line)))
    assert "knows this link" in process.stderr.readline()
    url, key = link.groups()
    _, headers, _ = request(url, f"/?key={key}")
    cookie = {"Cookie": headers["set-cookie"].partition(";")[0], "Content-Type": "application/json"}
    connection = connect(url)
    connection.request("POST", "/api/jobs/draw", '{"prior": "prior-row_major-depth", "n": 16}', cookie)
    assert b"running" in connection.getresponse().readline()
    upload = connect(url)
    upload.putrequest("POST", "/api/rows")
    for name, value in {**cookie, "Content-Length": "100"}.items():
        upload.putheader(name, value)
    upload.endheaders(b"{")  # and no more
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "has ended" in process.stdout.readline()
    assert time.monotonic() - started < 5
    assert process.wait(60) == 0
    assert "Traceback" not in process.stderr.read()


def test_a_connection_without_a_request_ends(contents, monkeypatch):
    monkeypatch.setattr(guard, "_IDLE_S", 0.2)
    monkeypatch.setitem(server.ANSWERS, "slow", (OrdersRequest, lambda *_: time.sleep(0.4) or {}))
    values = {"tokenizer": "tokenizer"}
    with running(make_app(contents, Access())) as url:
        for begin in (b"", b"GET / HT", b"GET /static/app.js HTTP/1.1\r\nHost: localhost\r\n\r\nGET"):
            with socket.create_connection(url.removeprefix("http://").split(":"), timeout=5) as idle:
                idle.sendall(begin)
                while idle.recv(2**16):
                    pass
        assert request(url, "/api/slow", values)[0] == 200
        connection = connect(url)  # that is used again
        for _ in range(2):
            connection.request("POST", "/api/slow", json.dumps(values), {"Content-Type": "application/json"})
            assert connection.getresponse().read() == b"{}"


def test_a_studio_that_cannot_start_says_why(demo_run, capsys, monkeypatch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["studio", str(demo_run), "--port", port]) == 2
        assert f"port {port} cannot be opened" in capsys.readouterr().err
    assert main(["studio", str(demo_run), "--port", "70000"]) == 2
    assert main(["studio", str(demo_run), "--share", "--public"]) == 2
    assert "choose one" in capsys.readouterr().err
    assert main(["studio", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "does not exist" in capsys.readouterr().err
    for name in ("uvicorn", "starlette"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            assert main(["studio", str(demo_run), "--port", "0"]) == 2
        assert "pip install 'imagepriors[studio]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
