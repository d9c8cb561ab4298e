"""The page as a folder for containers."""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from studio_server import request, run

import imagepriors as ip
from codeshards.tools.convert import convert
from imagepriors.cli import main
from imagepriors.studio.contents import Contents
from imagepriors.studio.drawing import DrawRequest, draw
from imagepriors.studio.export import export_studio
from runkit.errors import UserError

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is not in the container", name=name)
sys.meta_path.insert(0, Block())
"""


@pytest.fixture(scope="module")
def folder(demo_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "space"
    assert main(["studio", str(demo_run), "--export", str(out)]) == 0
    return out


def test_the_folder_is_a_space(folder, demo_run):
    assert sorted(path.name for path in folder.iterdir()) == [
        ".gitattributes", "Dockerfile", "README.md", "model", "packages", "requirements.txt",
    ]  # fmt: skip
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (front["sdk"], front["app_port"]) == ("docker", 7860)
    for line in (folder / "requirements.txt").read_text().split():
        name, _, version = line.partition("==")
        assert importlib.metadata.version(name).partition("+")[0] == version
    texts = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".md", "", ".txt")]
    assert not any(str(demo_run.parent.parent) in path.read_text() for path in texts)
    stored = ip.open_shards(folder / "model/demo/shards")
    assert {split: stored.rows(split) for split in stored.splits} == {"val": 6}
    assert main(["shards", "verify", str(folder / "model/demo/shards")]) == 0


def test_it_runs_from_its_own_files_alone(folder, contents, tmp_path):
    docker = (folder / "Dockerfile").read_text()
    command = json.loads(re.search(r"^CMD (\[.*\])$", docker, re.MULTILINE)[1])
    assert command[0] == "python"
    assert {"USER user", "EXPOSE 7860"} <= set(docker.splitlines())

    pinned = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()}
    others = ("ray", "lpips", "torchvision", "torch_fidelity", "torchmetrics", "tensorboard", "webdataset", "scipy",
              "requests", "huggingface_hub", "yaml", "transformers")  # fmt: skip
    assert not pinned & set(others)
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(blocked=others))
    paths = [str(folder / "packages"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    arguments = ["0" if argument == "7860" else argument for argument in command[1:]]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    port = next(found[1] for line in process.stderr if (found := re.search(r"http://[^:]+:(\d+)/;", line)))
    url = f"http://127.0.0.1:{port}"
    for prior in ("prior-any-class", "prior-row_major-segmentation"):
        last = run(url, "draw", {"prior": prior, "n": 2})[-1]
        here = draw(contents, DrawRequest(prior=prior, n=2), lambda *_, **__: None)
        assert last["codes"] == here["codes"]
    shown = json.loads(request(url, "/api/contents")[2])
    assert (shown["title"], shown["problems"]) == ("demo", [])
    assert request(url, "/", headers={"Host": "owner-name.hf.space"})[0] == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (-signal.SIGTERM, 0)
    assert "Traceback" not in process.stderr.read()


def test_only_an_earlier_export_is_replaced(folder, demo_run, tmp_path, capsys):
    before = (folder / "model/demo/prior-any-class/model.safetensors").stat().st_ino
    assert main(["studio", str(demo_run), "--export", str(folder)]) == 0
    assert (folder / "model/demo/prior-any-class/model.safetensors").stat().st_ino != before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "mine", tmp_path / "file", demo_run / "out", demo_run.parent):
        capsys.readouterr()
        assert main(["studio", str(demo_run), "--export", str(out)]) == 2
        assert "choose" in capsys.readouterr().err
    (folder / ".git").mkdir()
    assert main(["studio", str(demo_run), "--export", str(folder)]) == 2
    assert ".git" in capsys.readouterr().err
    (folder / ".git").rmdir()


def test_training_rows_are_not_exported(demo_run, tmp_path, caplog):
    run = tmp_path / "🦆 «ducks» \U0001f468\u200d\U0001f469"
    shutil.copytree(demo_run / "prior-any-class", run / "prior-any-class")
    convert(demo_run / "shards", run / "shards", ["parquet"], splits=["train"])
    assert main(["studio", str(run), "--export", str(tmp_path / "space")]) == 0
    assert "shards are left out" in caplog.text
    assert not list((tmp_path / "space").rglob("*.parquet"))
    readme = (tmp_path / "space/README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(readme.split("---")[1])["title"] == f"{run.name}: imagepriors studio"
    assert "shards" not in readme.split("A page on which")[1].split("On this machine")[0].replace("token shards", "")
    docker = (tmp_path / "space/Dockerfile").read_text(encoding="utf-8")
    (model,) = [one for one in json.loads(re.search(r"^CMD (\[.*\])$", docker, re.MULTILINE)[1]) if "model/" in one]
    found = Contents.open([tmp_path / "space" / model])
    assert draw(found, DrawRequest(prior="prior-any-class", n=1), lambda *_, **__: None)["codes"]

    convert(demo_run / "shards", tmp_path / "bare", ["parquet"], splits=["train"])
    for tokenizer in (tmp_path / "bare").glob("tokenizer*"):
        shutil.rmtree(tokenizer)
    with pytest.raises(UserError, match="no validation rows"):
        export_studio([tmp_path / "bare"], tmp_path / "other")
