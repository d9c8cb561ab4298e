"""The studio from Python, in a thread."""

import urllib.error
import urllib.request

import pytest

import imagepriors as ip


def test_a_page_is_open_until_it_is_closed(demo_run):
    with ip.open_studio(demo_run) as studio:
        assert repr(studio) == f"Studio('{studio.url}')"
        with urllib.request.urlopen(f"{studio.url}api/contents") as answer:
            assert b"prior-any-class" in answer.read()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(studio.url)


def test_the_link_of_a_shared_page_has_its_key(demo_run, tmp_path):
    with ip.open_studio(demo_run / "prior-any-class", share=True) as studio:
        address, key = studio.url.split("/?key=")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/api/contents")
        assert len(key) > 20
    with pytest.raises(ip.UserError, match="does not exist"):
        ip.open_studio(tmp_path / "missing")
