"""Data parallelism: two gloo processes compute what one does, and leave one run folder."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

from imagepriors.demo.layouts import write_demo_data
from vqgan.checkpoint import load_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.errors import InputError

PREAMBLE = """
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from runkit.ranks import process_group, rank
from runkit.signals import StoppedError
from vqgan.batches import prefetched
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.data import open_splits
from vqgan.modalities import to_input
from vqgan.train import train_tokenizer
from vqgan.trainer import Trainer

torch.set_num_threads(1)
data, out = Path(sys.argv[1]), Path(sys.argv[2])
model = ModelConfig(
    resolution=32, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=16, embed_dim=8,
    codebook_size=32,
)
def config(**changes):
    loss = dict(perceptual="none", disc_start=0, disc_ramp=1, disc_ch=8, disc_layers=1) | changes.pop("loss", {})
    values = dict(batch_size=8, steps=4, learning_rate=1e-3, precision="float32", device="cpu", crop_scale=0.7)
    return TrainConfig(model=model, loss=LossConfig(**loss), **(values | changes))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=16, n_val=5, size=32)
    return out


def launch(tmp_path, data, code, processes):
    """Run `code` in so many processes, as torchrun does; returns the output."""
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + textwrap.dedent(code))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(script), str(data), str(tmp_path / f"out-{processes}")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return tmp_path / f"out-{processes}"


GRADIENTS = """
def gradients(accumulate):
    trainer = Trainer(config(accumulate=accumulate))
    found = {}
    def keep(name, module):
        def copy():
            grads = {f"{name}.{key}": p.grad.contiguous().clone() for key, p in module.named_parameters()}
            found.update(grads)
        return copy
    trainer.optimizer.step = keep("model", trainer.model)
    trainer.disc_optimizer.step = keep("disc", trainer.disc)
    pictures = next(prefetched(open_splits("demo", data)["train"], trainer.config, 0))
    batch = to_input(pictures, trainer.config.model)
    terms = trainer.step(batch)
    return found | {"terms": torch.tensor(list(terms.values()))}

with process_group():
    found = gradients(1)
    parts = gradients(2)
    # λ is a ratio of norms, so that of a part differs from that of the whole batch; the discriminator's does not.
    for name in found:
        if name.startswith("disc."):
            torch.testing.assert_close(parts[name], found[name], rtol=1e-3, atol=1e-6)
    if rank() == 0:
        save_file(found, out.with_suffix(".safetensors"))
"""


def test_two_processes_compute_the_gradients_of_one(tmp_path, data):
    one, two = (load_file(launch(tmp_path, data, GRADIENTS, n).with_suffix(".safetensors")) for n in (1, 2))
    assert one.keys() == two.keys()
    assert sum(name.startswith("model.") for name in one) > 50
    for name in one:
        scale = float(one[name].abs().max())
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=name)


RUN = """
changes = dict(restart_every=2, checkpoint_every=2, ema_decay=0.9, clip_grad=1.0, accumulate=2)
result = train_tokenizer(config(loss={"codebook_decay": 0.9}, **changes), open_splits("demo", data), out)
"""


def test_a_run_of_two_processes_leaves_one_folder(tmp_path, data):
    out = launch(tmp_path, data, RUN, 2)
    summary = json.loads((out / "summary.json").read_text())
    assert sum(summary["code_counts"]) == 5 * 64  # every validation image once, although 5 is odd
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 4]  # the metrics of the training and of the evaluation
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert all(value.isfinite().all() for value in load_model(out)[1].state_dict().values())
    alone = json.loads((launch(tmp_path, data, RUN, 1) / "summary.json").read_text())
    assert abs(alone["val_loss"] - summary["val_loss"]) < 0.1


STOP = """
def stop_once_it_trains():
    while not list(out.glob("checkpoints/step-*")):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)

if int(os.environ["RANK"]) == 1:  # one of the processes only
    threading.Thread(target=stop_once_it_trains, daemon=True).start()
try:
    train_tokenizer(config(steps=10**6, checkpoint_every=3, keep_checkpoints=1), open_splits("demo", data), out)
except StoppedError as stopped:
    print(stopped, flush=True)
    (out / f"exit-{rank()}-{os.environ['RANK']}").write_text(str(stopped.exit_code))
"""


def test_sigterm_to_one_of_two_processes_stops_both_with_a_checkpoint(tmp_path, data):
    out = launch(tmp_path, data, STOP, 2)
    assert [(out / f"exit-0-{number}").read_text() for number in (0, 1)] == ["143", "143"]
    assert len(list((out / "checkpoints").glob("step-*"))) == 1
    assert not (out / "summary.json").exists()


def test_a_batch_that_cannot_be_shared_out_is_refused():
    from vqgan.trainer import Trainer

    model = ModelConfig(resolution=32, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=())
    with pytest.raises(InputError, match="batch_size is 5: choose a multiple of 2"):
        Trainer(TrainConfig(model=model, loss=LossConfig(perceptual="none"), batch_size=5, accumulate=2))
