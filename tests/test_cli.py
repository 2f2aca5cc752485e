"""The command line: what it makes, and the one clear line and exit code 2 it gives for everything that is wrong."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from zerodiff.cli import main, parser
from zerodiff.data import garden, save_image
from zerodiff.pipeline import new_denoiser
from zerodiff.sampling import samplers
from zerodiff.training import header, save_weights

SMALL = ["--size", "16", "--channels", "8", "--multipliers", "1", "2", "--batch", "4", "--warmup", "1", "--preview-every", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "A tiny untrained model of the garden's classes."
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, new_denoiser(garden(4, 16), channels=8, multipliers=(1, 2), data="garden"))
    return str(path)


def refused(capsys, *argv):
    "The one line that `zerodiff ARGV` writes to the error stream before it returns 2."
    assert main([str(a) for a in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("zerodiff: ")
    return captured.err


def sample(weights, out, *more): return main(["sample", "--weights", weights, "--steps", "3", "-n", "2", "--out", str(out), *more])


def test_the_samplers_offered_are_those_there_are():
    actions = parser()._subparsers._group_actions[0].choices["sample"]._actions
    assert next(a.choices for a in actions if a.dest == "sampler") == list(samplers)


@pytest.mark.parametrize("ending, frames", [("png", 1), ("gif", 3), ("mp4", None)])
def test_sample_writes_pictures_and_films(weights, tmp_path, capsys, ending, frames):
    out = tmp_path / f"flowers.{ending}"
    assert sample(weights, out, "--class", "red round", "--zoom", "2") == 0
    assert "red round" in capsys.readouterr().out
    if frames:
        im = Image.open(out)
        assert im.size == (2 * 32 + 3 * 2, 32 + 2 * 2) and getattr(im, "n_frames", 1) == frames
    else: assert out.stat().st_size > 500
    assert [f.name for f in tmp_path.iterdir()] == [out.name]


def test_same_seed_same_file_another_seed_another(weights, tmp_path):
    a, b, c = (tmp_path / f"{n}.png" for n in "abc")
    for path, seed in ((a, "1"), (b, "1"), (c, "2")): sample(weights, path, "--seed", seed)
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()


def test_classes_by_name_part_number_and_all(weights, tmp_path, capsys):
    assert sample(weights, tmp_path / "x.png", "--class", "Blue Pointed", "white r", "3") == 0
    assert "blue pointed, white round, yellow round" in capsys.readouterr().out
    assert sample(weights, tmp_path / "x.png", "--class", "all", "-n", "1", "--zoom", "1") == 0


@pytest.mark.parametrize("options, says", [
    (["--class", "blau round"], "did you mean 'blue round'"), (["--class", "round"], "did you mean"), (["--class", "99"], "expected 0..20"),
    (["--class", "-1"], "expected 0..20"), (["--steps", "0"], "steps: got 0, expected 1..1000"), (["--steps", "1001"], "steps: got 1001"),
    (["-n", "0"], "n: got 0"), (["--zoom", "0"], "zoom: got 0"), (["--columns", "0"], "columns: got 0"), (["--out", "x.bmp"], "x.bmp"),
    (["--out", "no/such/folder/x.png"], "no folder"), (["--weights", "roses"], "roses"), (["--weights", "no.safetensors"], "no.safetensors"),
    (["--device", "abacus"], "abacus"),
])
def test_sample_refuses(weights, tmp_path, capsys, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, "sample", "--weights", weights, "--steps", 2, "-n", 1, *options)
    assert list(tmp_path.iterdir()) == []


def test_sample_refuses_broken_and_foreign_weights(weights, tmp_path, capsys):
    from pathlib import Path
    from safetensors.torch import save_file
    whole = Path(weights).read_bytes()
    for name, content in dict(cut=whole[:len(whole) // 2], empty=b"", garbage=os.urandom(5000), pickled=b"\x80\x04\x95").items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        assert name in refused(capsys, "sample", "--weights", path, "--out", tmp_path / "x.png")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    assert "not written by zerodiff" in refused(capsys, "sample", "--weights", tmp_path / "foreign.safetensors", "--out", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_a_full_disk_leaves_the_old_picture(weights, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.png"
    out.write_bytes(b"old")
    def full(*a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr(Image.Image, "save", full)
    assert "No space left" in refused(capsys, "sample", "--weights", weights, "--steps", 1, "-n", 1, "--out", out)
    assert out.read_bytes() == b"old" and list(tmp_path.iterdir()) == [out]


@pytest.mark.filterwarnings("ignore:.*only 40 pictures")
def test_train_kill_resume_sample(tmp_path, capsys):
    "The whole life of a model: trained on a folder, killed without warning, resumed, sampled from."
    pictures, data = tmp_path / "pictures", garden(40, 20)
    for i in range(40):
        (pictures / f"kind {i % 2}").mkdir(parents=True, exist_ok=True)
        save_image(data[i][0], pictures / f"kind {i % 2}" / f"{i}.png")
    run = tmp_path / "run"
    command = ["train", "--data", str(pictures), *SMALL, "--out", str(run), "--save-every", "0.1"]
    child = subprocess.Popen([sys.executable, "-c", "from zerodiff.cli import main; raise SystemExit(main())", *command, "--minutes", "5"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 90
        while not (run / "checkpoint.safetensors").exists() and time.monotonic() < deadline: time.sleep(.05)
        time.sleep(.5)
    finally: child.send_signal(signal.SIGKILL); child.wait()
    before = header(run / "checkpoint.safetensors")["info"]["progress"]["step"]
    assert before > 0
    assert main(["train", "--data", str(pictures), *SMALL, "--resume", str(run), "--steps", str(before + 5)]) == 0
    assert header(run / "checkpoint.safetensors")["info"]["progress"]["step"] == before + 5
    assert header(run / "checkpoint.safetensors")["info"]["command"].startswith("zerodiff train --data pictures --size 16")
    assert "kind 1" in str(header(run / "checkpoint.safetensors")["info"]["classes"]) and str(tmp_path) not in str(header(run / "checkpoint.safetensors"))
    assert sample(str(run / "checkpoint.safetensors"), tmp_path / "x.png", "--class", "kind 1") == 0


def test_train_refuses(tmp_path, capsys, weights):
    run = tmp_path / "run"
    train = ["train", *SMALL, "--out", run]
    assert "no-such-folder" in refused(capsys, *train, "--data", tmp_path / "no-such-folder")
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, *train, "--data", tmp_path / "empty")
    assert "steps, minutes" in refused(capsys, *train, "--data", "garden", "--steps", 1, "--minutes", 1)
    assert "steps: got 0" in refused(capsys, *train, "--data", "garden", "--steps", 0)
    assert "batch: got 4" in refused(capsys, *train, "--data", "garden", "--steps", 1, "--accumulate", 3)
    assert "multiple of" in refused(capsys, *train, "--data", "garden", "--steps", 1, "--size", 17)
    assert "no checkpoint" in refused(capsys, *train, "--data", "garden", "--resume")
    assert "no run" in refused(capsys, *train, "--data", "garden", "--resume", weights)
    run.mkdir(exist_ok=True); (run / "checkpoint.safetensors").write_bytes(b"precious")
    assert "--resume" in refused(capsys, *train, "--data", "garden", "--steps", 1)
    assert (run / "checkpoint.safetensors").read_bytes() == b"precious"


def test_ctrl_c_leaves_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", "from zerodiff.cli import main; raise SystemExit(main())", "train", "--data", "garden", *SMALL, "--out", str(run), "--minutes", "5", "--save-every", "0.1"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not (run / "checkpoint.safetensors").exists() and time.monotonic() < deadline: time.sleep(.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "--resume" in err and "Traceback" not in err
    assert header(run / "checkpoint.safetensors")["info"]["progress"]["step"] > 0


def test_info(weights, capsys):
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out
    assert main(["info", "--weights", weights]) == 0
    assert "garden" in capsys.readouterr().out
    assert "nothing" in refused(capsys, "info", "--weights", "nothing")


def test_help_is_there_for_each_command(capsys):
    for argv in (["--help"], ["sample", "--help"], ["train", "--help"], ["info", "--help"]):
        with pytest.raises(SystemExit) as e: main(argv)
        assert e.value.code == 0 and "examples:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as e: main(["smaple"])
    assert e.value.code == 2
