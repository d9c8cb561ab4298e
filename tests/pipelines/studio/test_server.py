"""What the server answers to requests that no page sends."""

import base64
import dataclasses
import http.client
import io
import itertools
import json
import struct
import threading
import time
import zlib

import pytest
from PIL import Image
from studio_server import connect, request, run

from imagepriors.studio import server
from imagepriors.studio.jobs import message_of
from imagepriors.studio.pictures import MAX_BYTES, read_picture
from imagepriors.studio.server import ANSWERS, JOBS
from runkit.errors import UserError
from vqgan.tokenizer import Tokenizer

NAMES = [
    "../prior-row_major-class", "..%2fshards", "/etc/passwd", "shards/../../demo", "a\0b", "hf://datasets/owner/name",
    "os:getcwd", "\ud800", "x" * 100_000,
]  # fmt: skip
PLAIN = {"int": 0, "float": 0.5, "bool": False, "str": "val", "list[int]": [0], "list[list[int]]": [[0]]}


def request_of(cls, name):
    """A request in which every text without a default is a name."""
    values = {}
    for field in dataclasses.fields(cls):
        kind = getattr(field.type, "__name__", str(field.type)) if field.type in (int, float, bool, str) else field.type
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            values[field.name] = name if kind == "str" else PLAIN.get(str(kind), {})
    return values


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_is_never_a_path(studio, name):
    for table, path in ((ANSWERS, "/api/"), (JOBS, "/api/jobs/")):
        for request_name, (cls, _) in table.items():
            values = request_of(cls, name)
            if name not in values.values():
                continue
            status, _, text = request(studio, path + request_name, values)
            error = json.loads(text.splitlines()[-1])["error"]
            assert status == 400 or (status == 200 and path == "/api/jobs/"), (request_name, text)
            assert "fault in the program" not in error, (request_name, error)
            assert len(error) < 500
            assert "root:" not in error


def test_no_value_of_a_field_is_a_fault_of_the_program(studio):
    known = {"prior": "prior-any-class", "tokenizer": "tokenizer", "shards": "shards", "split": "val"}
    for table, path in ((ANSWERS, "/api/"), (JOBS, "/api/jobs/")):
        for name, (cls, _) in table.items():
            fields = [field.name for field in dataclasses.fields(cls)]
            good = request_of(cls, "val") | {field: value for field, value in known.items() if field in fields}
            for field, value in itertools.product(
                fields, (None, -1, 2**62, "", [], [None], [2**62] * 64, {"class": -1})
            ):
                status, _, text = request(studio, path + name, {**good, field: value})
                said = json.loads(text.splitlines()[-1])
                assert status < 500, (name, field, value, text)
                assert "fault in the program" not in said.get("error", ""), (name, field, value)


@pytest.mark.parametrize(
    "path",
    ["/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static//etc/passwd", "/static/%00",
     "/static/", "/etc/passwd", "/api/..%2fcontents", "/server.py"],
)  # fmt: skip
def test_only_the_static_files_are_served(studio, path):
    status, _, text = request(studio, path)
    assert status in (404, 405)
    assert set(json.loads(text)) == {"error"}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"n": NaN}', b'{"n": -Infinity}', b'{"n": 1e999}', b'{"n": 1%s}' % (b"0" * 30),
     b'{"n": %s}' % (b"9" * 10_000), b'{"n": ' + b"[" * 90_000, b'{"n": "\xff"}', b'{"n": ' * 5_000 + b"}" * 5_000],
    ids=range(11),
)  # fmt: skip
def test_other_json_is_one_sentence(studio, body):
    status, _, text = request(studio, "/api/rows", body)
    assert status == 400
    assert "JSON object" in json.loads(text)["error"]


def test_a_request_of_many_values_is_refused_before_they_are_read(studio):
    body = b'{"tokenizer": "tokenizer", "codes": [%s]}' % b",".join([b"[]"] * 4_000_000)
    started = time.monotonic()
    status, _, text = request(studio, "/api/decode", body)
    assert (status, "more than 100,000 values" in text) == (400, True)
    assert time.monotonic() - started < 5


def test_answers_decode_a_few_pictures_at_a_time_and_one_after_the_other(studio, monkeypatch):
    calls, lock, decode = [], threading.Lock(), Tokenizer._decode

    def watched(self, codes_Nhw):
        is_alone = lock.acquire(blocking=False)
        calls.append((len(codes_Nhw), is_alone))
        try:
            time.sleep(0.01)
            return decode(self, codes_Nhw)
        finally:
            if is_alone:
                lock.release()

    monkeypatch.setattr(Tokenizer, "_decode", watched)
    values = {"shards": "shards", "split": "train", "count": 12}
    threads = [threading.Thread(target=request, args=(studio, "/api/rows", values)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [(4, True)] * 9
    codes = {"tokenizer": "tokenizer", "codes": [[0] * 16] * 5}
    assert "send 1 to 4 grids" in request(studio, "/api/decode", codes)[2]


def test_fields_are_checked(studio):
    good = {"shards": "shards", "split": "val"}
    assert request(studio, "/api/rows", good)[0] == 200
    for values, word in (
        ({**good, "path": "/etc"}, "unknown field path"),
        ({**good, "first": "0"}, "first"),
        ({**good, "first": -1}, "first"),
        ({**good, "count": 10**6}, "count"),
        ({**good, "count": True}, "count"),
        ({"shards": "shards"}, "split"),
        ({**good, "split": ["val"]}, "split"),
    ):
        status, _, text = request(studio, "/api/rows", values)
        assert status == 400
        assert word in json.loads(text)["error"]
    sampling = [{"batch_size": 0}, {"compile": True}, {"precision": "bfloat16"}, {"drafts": 3}, {"top_k": 0}]
    for fields in sampling:
        (last,) = run(studio, "draw", {"prior": "prior-any-class", "sampling": fields})[-1:]
        assert next(iter(fields)) in last["error"]
    assert "n is 17" in run(studio, "draw", {"prior": "prior-any-class", "n": 17})[-1]["error"]
    codes = {"prior": "prior-any-class", "codes": [2**62] * 64, "known": [0]}
    assert "fault" not in run(studio, "draw", codes)[-1]["error"]


def test_a_request_is_json_and_has_a_limit(studio):
    status, _, text = request(studio, "/api/rows", b"{}", headers={"Content-Type": "text/plain"})
    assert (status, "send JSON" in text) == (415, True)
    connection = connect(studio)  # in chunks, without a length
    chunks = iter([b" " * 2**20] * (MAX_BYTES // 2**20 + 1))
    try:
        connection.request("POST", "/api/rows", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, "16 MiB" in response.read().decode()) == (413, True)
    except (ConnectionError, http.client.HTTPException):
        pass  # the server has closed the connection before all was sent
    assert request(studio, "/api/contents")[0] == 200
    assert request(studio, "/api/rows", {}, method="GET")[0] == 405


def test_a_slow_request_ends(studio, monkeypatch):
    monkeypatch.setattr(server, "_UPLOAD_S", 0.1)
    connection = connect(studio)
    connection.putrequest("POST", "/api/rows")
    for name, value in (("Content-Type", "application/json"), ("Content-Length", "100")):
        connection.putheader(name, value)
    connection.endheaders(b"{")
    assert connection.getresponse().status == 408


def test_messages_name_no_folder_of_the_machine(contents, demo_run):
    prior = demo_run / "prior-any-class"
    said = message_of(UserError(f"{prior}/model.safetensors is damaged: see '/srv/notes/log.txt'"), contents.places)
    assert said == "prior-any-class/model.safetensors is damaged: see 'log.txt'"
    missing = FileNotFoundError(2, "No such file or directory", "/home/someone/runs/x.parquet")
    assert message_of(missing).startswith("x.parquet: No such file")
    assert "hf://owner/name" in message_of(UserError("hf://owner/name is unknown"))
    assert "Secret" not in message_of(KeyError("Secret"))
    assert len(message_of(UserError("x" * 10**6))) < 500


# Pictures


def uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    small = encoded(Image.new("RGB", (8, 8)), "JPEG")
    start = small.index(b"\xff\xc0") + 5
    return small[:start] + struct.pack(">HH", height, width) + small[start + 4 :]


def gif_of(width: int, height: int) -> bytes:
    small = encoded(Image.new("P", (8, 8)), "GIF")
    return small[:6] + struct.pack("<HH", width, height) + small[10:]


def jpeg_of_scans(count: int) -> bytes:
    head, mark, scan = encoded(Image.effect_noise((64, 64), 50), "JPEG", progressive=True).rpartition(b"\xff\xda")
    return head + (mark + scan.removesuffix(b"\xff\xd9")) * count + b"\xff\xd9"


def tiff_of(side: int) -> bytes:
    small = encoded(Image.new("RGB", (8, 8)), "TIFF")
    entry = struct.pack("<HHI", 256, 4, 1)
    found = small.find(entry)
    assert found > 0
    small = small[: found + 8] + struct.pack("<I", side) + small[found + 12 :]
    found = small.find(struct.pack("<HHI", 257, 4, 1))
    return small[: found + 8] + struct.pack("<I", side) + small[found + 12 :]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (png_of(9000, 9000), "megapixels"),
        (png_of(60_000, 60_000), "bomb"),
        (jpeg_of(9000, 9000), "megapixels"),
        (jpeg_of(65_000, 65_000), "bomb"),
        (gif_of(60_000, 60_000), "bomb"),
        (jpeg_of_scans(600), "scans"),
        (tiff_of(9000), "megapixels"),
        (b"P6 9000 9000 255\n", "megapixels"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG")[:1500], "cannot be read"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:600], "cannot be read"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "cannot identify"),
        (b"", "cannot be read"),
    ],
    ids=range(13),
)
def test_pictures_that_are_too_large_or_broken_are_refused_before_they_are_decoded(content, word):
    started = time.monotonic()
    with pytest.raises(UserError, match=word):
        read_picture(uri(content))
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "text",
    ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/x.png", "data:,x", "é;base64,é", "data:image/png;base64,é",
     "data:image/png;base64,#"],
)  # fmt: skip
def test_a_picture_is_a_data_uri(text):
    with pytest.raises(UserError):
        read_picture(text)


def test_a_usual_progressive_picture_is_read():
    assert read_picture(uri(jpeg_of_scans(1))).size == (64, 64)


def test_the_first_of_many_frames_and_the_orientation_are_kept():
    frames = [Image.new("RGB", (16, 8), color) for color in ("red", "blue")] * 200
    picture = read_picture(uri(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert (picture.size, picture.getpixel((0, 0))) == ((16, 8), (255, 0, 0))
    sideways = Image.new("RGB", (16, 8), "white")
    sideways.paste("red", (0, 0, 4, 8))  # the left part is the upper one when it is turned clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_picture(uri(encoded(sideways, "PNG", exif=exif)))
    assert (picture.size, picture.getpixel((4, 0)), picture.getpixel((4, 15))) == ((8, 16), (255, 0, 0), (255,) * 3)
