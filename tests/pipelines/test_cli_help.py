"""What helps a person to find the words: usage, examples, completion, the nearest name."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import imagepriors as ip
from imagepriors.cli import COMMANDS, main, parse
from imagepriors.cli.common import Subcommands, example_of
from imagepriors.experiments.command import load_config
from imagepriors.presets import load_preset
from runkit.configs import from_dict
from runkit.suggestions import choose_one_of
from vqgan.data import open_splits


def _functions() -> dict[str, object]:
    """Words of a command → its function."""
    found: dict[str, object] = {}
    for name, command in COMMANDS.items():
        if isinstance(command, Subcommands):
            found |= {f"{name} {second}": function for second, function in command.commands.items()}
        else:
            found[name] = command
    return found


def test_the_usage_has_one_line_per_command_in_its_group(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line and line[0] != " " and ":" not in line]
    assert titles == ["data", "tokenizer", "shards", "prior", "results", "this machine"]
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(listed) == sorted(COMMANDS)
    assert all(len(line) <= 100 for line in lines if line.startswith("  "))


@pytest.mark.parametrize("words", _functions())
def test_every_example_parses_and_is_in_the_help(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data/photos").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save("data/photos/0.png")
    Image.new("RGB", (32, 32)).save("data/photos/1.png")
    example = example_of(_functions()[words])
    assert "\n" not in example
    assert example.startswith(f"imagepriors {words}")
    assert callable(parse(shlex.split(example)[1:]))
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), "--help"])
    assert stop.value.code == 0
    assert f"Example: {example}" in " ".join(capsys.readouterr().out.split())


def test_examples_without_models_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        path = Path(f"data/photos/{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        planes = [Image.effect_noise((32, 32), 50 + number) for _ in "RGB"]
        Image.merge("RGB", planes).save(path)
    for words in ("inspect", "train-palette", "completion"):
        assert main(shlex.split(example_of(COMMANDS[words]))[1:]) == 0
    assert Path("runs/photos/palette/config.json").is_file()


def test_version_and_completion_load_no_torch():
    code = (
        "import sys; from imagepriors.cli import main; assert main(['--version']) == main(['completion', 'bash']) == 0;"
        "print([m for m in ('torch', 'ray', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"imagepriors {ip.__version__}\n")
    assert done.stdout.endswith("[]\n")


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "imagepriors.bash"
    with path.open("w") as file:
        subprocess.run([sys.executable, "-m", "imagepriors", "completion", "bash"], stdout=file, check=True)
    return path


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("tr", {"train-vqgan", "train-palette", "train-prior"}),
        ("shards ve", {"verify"}),
        ("train-prior --order z", {"zcurve"}),
        ("train-prior --model.n-l", {"--model.n-layer"}),
        ("shards verify --reen", {"--reencode"}),
    ],
)
def test_bash_completes_commands_flags_and_choices(bash_script, typed, found):
    script = f"""
        source {bash_script}
        COMP_WORDS=(imagepriors {typed})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        $(complete -p imagepriors | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == found, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_scripts_with_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert {"zsh": "compdef", "fish": "--command 'imagepriors'"}[shell] in script


def test_a_near_name_is_suggested_and_a_far_one_is_not():
    assert choose_one_of("zcurv", ["zcurve", "row_major"]) == "did you mean zcurve? Choose one of zcurve, row_major"
    assert choose_one_of(7, [1, 2]) == "choose one of 1, 2"


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["tokenise"], "tokenize"),
        (["shards", "verfy"], "verify"),
        (["train-prior", "--preset", "demoo"], "demo"),
        (["train-prior", "--order", "zcurv"], "zcurve"),
        (["train-prior", "--model.position", "rotory"], "rotary"),
        (["train-prior", "--condition", "clas"], "class"),
        (["train-vqgan", "--preset", "demo", "--dataset", "imagenette"], "imagenet"),
        (["experiment", "ordres"], "orders"),
        (["train-prior", "--preset", "mine.toml"], "learning_rate"),
    ],
)
def test_commands_suggest_the_nearest_name(argv, near, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data/demo").mkdir(parents=True)
    Path("mine.toml").write_text("[prior]\nlearning_rat = 1e-3\n")
    assert main(argv) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"did you mean {near}?" in message


@pytest.mark.parametrize(("flag", "near"), [("--stepz", "--steps"), ("--model.n-layr", "--model.n-layer")])
def test_the_parser_suggests_the_nearest_flag(flag, near, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train-prior", "--preset", "demo", flag, "3"])
    assert stop.value.code == 2
    assert near in capsys.readouterr().err


def test_python_callers_and_files_get_the_nearest_name(tmp_path):
    for call, near in (
        (lambda: ip.train_prior(tmp_path, preset="demo", model={"n_layr": 2}), "n_layer"),
        (lambda: load_preset("photos-46", "vqgan"), "photos-64"),
        (lambda: load_config("smal"), "small"),
        (lambda: open_splits("cifar-10", tmp_path), "cifar10"),
        (lambda: from_dict(ip.PriorConfig, {"model": {"n_hed": 2}}), "n_head"),
        (lambda: from_dict(ip.PriorConfig, {"schedule": "cosin"}), "cosine"),
    ):
        with pytest.raises(ip.UserError, match=f"did you mean {near}"):
            call()
