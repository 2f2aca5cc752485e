"""The command line: what it makes, and the one clear line and exit code 2 it gives for everything that is wrong."""
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from zerodiff.cli import main, parser
from zerodiff.data import garden, save_image
from zerodiff.film import read_film, read_sprite
from zerodiff.pipeline import new_denoiser
from zerodiff.sampling import samplers
from zerodiff.training import header, load_network, save_network, save_weights
from zerodiff.vae import VAE, psnr

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
    assert next(a.choices for a in actions if a.dest == "sampler") == tuple(samplers)


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


# ---------------------------------------------------------------- sweep, switch, restyle

@pytest.fixture(scope="module")
def awake(tmp_path_factory):
    "The same model, shaken, so that its pictures depend on class and weight."
    denoiser = new_denoiser(garden(4, 16), channels=8, multipliers=(1, 2), data="garden")
    torch.manual_seed(1)
    for p in denoiser.network.parameters():
        if p.abs().sum() == 0: torch.nn.init.normal_(p, std=.05)
    path = tmp_path_factory.mktemp("weights") / "awake.safetensors"
    save_weights(path, denoiser)
    return str(path)


@pytest.fixture
def photo(tmp_path):
    save_image(garden(1, 64, seed=2)[0][0], tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def knob(weights, *argv): return main([*map(str, argv), "--weights", weights, "--zoom", "2", "--device", "cpu", "--precision", "fp32"])


SWEEP = ["sweep", "guidance", "--from", "-4", "--to", "8", "--frames", "5", "--class", "red round", "blue round", "-n", "3", "--steps", "2"]
SWITCH = ["switch", "--from-class", "red round", "--to-class", "blue round", "white round", "--steps", "8", "--frames", "5", "-n", "3"]


@pytest.mark.parametrize("command", [SWEEP, SWITCH], ids=["sweep", "switch"])
@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_films_of_knobs_have_every_frame_and_a_caption_each(awake, tmp_path, capsys, command, ending):
    out = tmp_path / f"film.{ending}"
    assert knob(awake, *command, "--out", out) == 0
    film = read_film(out)
    assert len(film) == 5 and film.shape[-1] == 2 * 32 + 3 * 2 and film.shape[-2] >= 3 * 32 + 4 * 2 + 17        # a column a class, a row a noise
    bars = film[:, :, :17]
    assert all((bars[i] - bars[j]).abs().max() > .5 for i in range(5) for j in range(i))
    assert not torch.allclose(film[0, :, 20:], film[-1, :, 20:], atol=.1)
    assert [f.name for f in tmp_path.iterdir()] == [out.name] and "red round" in capsys.readouterr().out


def test_sweeps_end_where_sample_is(awake, tmp_path):
    "The last frame of a sweep to 5 is the picture at --scale 5."
    assert knob(awake, *SWEEP[:4], "--to", "5", "--frames", "3", "--class", "red round", "-n", "1", "--steps", "2", "--out", tmp_path / "x.gif") == 0
    assert knob(awake, "sample", "--class", "red round", "-n", "1", "--steps", "2", "--scale", "5", "--out", tmp_path / "x.png") == 0
    picture = torch.from_numpy(__import__("numpy").array(Image.open(tmp_path / "x.png"))).permute(2, 0, 1) / 127.5 - 1
    film = read_film(tmp_path / "x.gif")[:, :, -picture.shape[1]:]
    errors = (film - picture).abs().mean((1, 2, 3))
    assert errors[-1] < .1 and errors[-1] < .3 * errors[0], errors                # (a GIF has but 256 colours)


def test_sliders_say_what_each_frame_is(awake, tmp_path):
    out = tmp_path / "x.webp"
    assert knob(awake, *SWEEP, "--out", out) == 0
    assert read_sprite(out)["labels"] == ["w = -4", "w = -1", "w = 2", "w = 5", "w = 8"]
    assert knob(awake, "sweep", "rescale", *SWEEP[2:], "--out", out) == 0
    assert read_sprite(out)["labels"][0] == "w = 6, phi = -4"
    assert knob(awake, "sweep", "rescale", *SWEEP[2:], "--scale", "2", "--out", out) == 0
    assert read_sprite(out)["labels"][-1] == "w = 2, phi = 8"
    assert knob(awake, *SWEEP, "--rescale", ".5", "--out", out) == 0
    assert read_sprite(out)["labels"][-1] == "w = 8, phi = 0.5"
    assert knob(awake, *SWITCH, "--out", out) == 0
    assert read_sprite(out)["labels"] == [f"k = {k} of 8" for k in (0, 2, 4, 6, 8)]


def test_every_option_of_guidance_changes_the_film(awake, tmp_path):
    films = []
    for i, more in enumerate(([], ["--rescale", ".7"], ["--interval", "500", "999"], ["--project"], ["--no-clip"], ["--rescale", ".7", "--output", "eps"])):
        assert knob(awake, *SWEEP, *more, "--out", tmp_path / f"{i}.webp") == 0
        films.append((tmp_path / f"{i}.webp").read_bytes())
    assert len(set(films)) == len(films)


@pytest.mark.parametrize("more", [[], ["--invert"]], ids=["noised", "inverted"])
def test_restyle_draws_and_films(awake, photo, capsys, more):
    out = photo.parent / "x.png"
    assert knob(awake, "restyle", photo, "--class", "red round", "blue round", "--steps", "6", *more, "--out", out) == 0
    assert Image.open(out).size == (2 * 32 + 3 * 2, 32 + 2 * 2) and "photo.jpg -> red round, blue round" in capsys.readouterr().out
    out = photo.parent / "x.mp4"
    assert knob(awake, "restyle", photo, "--class", "red round", "--steps", "6", "--strength", "1", "--frames", "4", *more, "--out", out) == 0
    film = read_film(out)[..., 20:-4, 4:-4]
    moved = (film - film[0]).abs().mean((1, 2, 3))
    assert len(film) == 4 and moved[0] == 0 < moved[1] < moved[3]
    assert sorted(f.name for f in photo.parent.iterdir()) == ["photo.jpg", "x.mp4", "x.png"]


def test_all_classes_at_once(awake, tmp_path):
    assert knob(awake, "sweep", "guidance", "--frames", "2", "--class", "all", "-n", "1", "--steps", "1", "--out", tmp_path / "x.gif") == 0
    assert read_film(tmp_path / "x.gif").shape[-1] == 5 * 32 + 6 * 2             # 21 classes in rows of five


@pytest.mark.parametrize("argv, says", [
    (["sweep", "guidance", "--class", "tulip"], "class: got 'tulip'"),
    (["sweep", "guidance", "--class", "red round", "--frames", "1"], "frames: got 1"),
    (["sweep", "guidance", "--class", "red round", "--scale", "3"], "--from and --to"),
    (["sweep", "rescale", "--class", "red round", "--rescale", "3"], "--from and --to"),
    (["sweep", "guidance", "--class", "red round", "--fps", "0"], "fps"),
    (["sweep", "guidance", "--class", "red round", "--to", "nan"], "finite"),
    (["sweep", "guidance", "--class", "red round", "--interval", "9", "3"], "interval"),
    (["sweep", "guidance", "--class", "red round", "--out", "x.avi"], "x.avi"),
    (["sweep", "guidance", "--class", "red round", "--out", "no/x.mp4"], "no folder"),
    (["sweep", "guidance", "--class", "red round", "--zoom", "0"], "zoom"),
    (["switch", "--from-class", "red round", "--to-class", "tulip", "--frames", "2"], "class: got 'tulip'"),
    (["switch", "--from-class", "0", "1", "--to-class", "0", "1", "2", "--frames", "2"], "2 to begin with and 3 to end with"),
    (["switch", "--from-class", "0", "--to-class", "1", "--frames", "9"], "frames: got 9, expected 2..4"),
    (["restyle", "none.jpg", "--class", "0"], "photo: there is no file none.jpg"),
    (["restyle", "text.jpg", "--class", "0"], "text.jpg cannot be read: not a picture"),
    (["restyle", "photo.jpg", "--class", "tulip"], "class: got 'tulip'"),
    (["restyle", "photo.jpg", "--class", "0", "--strength", "1.5"], "strength: got 1.5"),
    (["restyle", "photo.jpg", "--class", "0", "--invert", "-n", "2"], "n: got 2"),
])
def test_knobs_refuse(awake, photo, capsys, monkeypatch, argv, says):
    monkeypatch.chdir(photo.parent)
    monkeypatch.setattr("zerodiff.film.save_film", lambda *a, **k: pytest.fail("found only after the work"))
    (photo.parent / "text.jpg").write_text("not a picture")
    before = sorted(photo.parent.iterdir())
    assert says in refused(capsys, *argv, "--weights", awake, "--steps", 3)
    assert sorted(photo.parent.iterdir()) == before


def test_an_ffmpeg_that_fails_is_found_before_the_work(awake, tmp_path, capsys, monkeypatch):
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\necho 'error while loading shared libraries' >&2\nexit 127\n")
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    monkeypatch.setattr("zerodiff.pipeline.Pipeline.load", lambda *a: pytest.fail("the weights were loaded first"))
    assert "ffmpeg failed with exit code 127: error while loading shared" in refused(capsys, *SWEEP, "--weights", awake, "--out", tmp_path / "x.mp4")
    assert [f.name for f in tmp_path.iterdir()] == ["ffmpeg"]


def test_an_ffmpeg_that_fails_at_the_film_leaves_the_old_one(awake, tmp_path, capsys, monkeypatch):
    fake, out = tmp_path / "ffmpeg", tmp_path / "x.mp4"
    fake.write_text('#!/bin/sh\ncase "$*" in *-version*) exit 0;; esac\nfor last; do :; done\necho half > "$last"\necho "No space left on device" >&2\nexit 1\n')
    fake.chmod(0o755)
    out.write_bytes(b"old")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    assert "No space left" in refused(capsys, *SWEEP, "--weights", awake, "--out", out)
    assert out.read_bytes() == b"old" and sorted(f.name for f in tmp_path.iterdir()) == ["ffmpeg", "x.mp4"]


def test_ctrl_c_in_a_film_leaves_the_old_one(awake, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.gif"
    out.write_bytes(b"old")
    def interrupted(*a, **k):
        yield -4., torch.zeros(6, 3, 16, 16)
        raise KeyboardInterrupt
    monkeypatch.setattr("zerodiff.pipeline.Pipeline.sweep", interrupted)
    assert main([*SWEEP, "--weights", awake, "--out", str(out)]) == 130
    assert out.read_bytes() == b"old" and [f.name for f in tmp_path.iterdir()] == ["x.gif"]


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


def test_a_run_in_a_folder_with_a_dot_goes_on(tmp_path, capsys):
    run = tmp_path / "v1.5"
    run.mkdir()
    train = ["train", "--data", "garden", *SMALL]
    assert main([*train, "--out", str(run), "--steps", "2"]) == 0
    assert main([*train, "--resume", str(run), "--steps", "3", "--precision", "bf16", "--lr", "0.5"]) == 0
    about = header(run / "checkpoint.safetensors")["info"]
    assert about["progress"]["step"] == 3 and about["recipe"]["precision"] == "bf16" and about["recipe"]["lr"] == .001
    assert "lr: a run that goes on keeps its 0.001" in capsys.readouterr().err
    (run / "checkpoint.safetensors").rename(run / "early.safetensors")
    assert main([*train, "--resume", str(run / "early.safetensors"), "--steps", "4"]) == 0
    later = (run / "checkpoint.safetensors").read_bytes()
    capsys.readouterr()
    assert "would write over" in refused(capsys, *train, "--resume", run / "early.safetensors", "--steps", 5) and (run / "checkpoint.safetensors").read_bytes() == later


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


# ---------------------------------------------------------------- latents

@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    "A tiny untrained VAE: of 2x2 pixels it makes one of 4 channels."
    path = tmp_path_factory.mktemp("vae") / "tiny.safetensors"
    torch.manual_seed(0)
    save_network(path, VAE(4, 8, (1, 2), (1, 1), patch=1), data="garden")
    return str(path)


def test_reconstruct_shows_photo_reconstruction_and_difference(vae, photo, capsys):
    import numpy as np
    from zerodiff.pipeline import open_photo
    out, net = photo.parent / "x.png", load_network(vae, VAE, "cpu")
    assert main(["reconstruct", str(photo), "--vae", vae, "--size", "32", "--zoom", "1", "--device", "cpu", "--out", str(out)]) == 0
    assert Image.open(out).size == (3 * 32 + 4 * 2, 32 + 2 * 2) and sorted(f.name for f in photo.parent.iterdir()) == ["photo.jpg", "x.png"]
    x = open_photo(photo, 32)
    again = net.decode(net.encode(x).mean).clamp(-1, 1)
    cells = [torch.from_numpy(np.array(Image.open(out)))[2:34, 2 + i * 34:34 + i * 34].permute(2, 0, 1) / 127.5 - 1 for i in range(3)]
    for cell, want in zip(cells, (x, again, again - x)): assert (cell - want[0].clamp(-1, 1)).abs().max() < .02
    said = capsys.readouterr().out
    assert "3072 numbers as 1024, 3 to 1" in said and f"PSNR {psnr(again, x).item():.1f} dB" in said
    assert main(["reconstruct", str(photo), "--vae", vae, "--size", "16", "--device", "cpu", "--out", str(out)]) == 0
    assert Image.open(out).size == (3 * 64 + 4 * 2, 64 + 2 * 2) and "768 numbers as 256, 3 to 1" in capsys.readouterr().out


@pytest.mark.parametrize("options, says", [
    (["--out", "x.gif"], "expected a name ending in .png"), (["--out", "x.bmp"], "x.bmp"), (["--out", "no/x.png"], "no folder"), (["--zoom", "0"], "zoom: got 0"),
    (["--size", "33"], "size: got 33 pixels, expected a multiple of 2"), (["--size", "0"], "size: got 0"), (["--size", "-2"], "size: got -2"),
    (["--vae", "vae7"], "got 'vae7', but zerodiff comes with"), (["--vae", "none.safetensors"], "none.safetensors"), (["--vae", "flowers"], "holds a ClassConditional, expected a VAE"),
    (["--vae", "broken.safetensors"], "no whole safetensors"), (["--device", "abacus"], "abacus")])
def test_reconstruct_refuses(vae, photo, capsys, monkeypatch, options, says):
    monkeypatch.chdir(photo.parent)
    (photo.parent / "broken.safetensors").write_bytes(b"broken" * 9)
    before = sorted(photo.parent.iterdir())
    assert says in refused(capsys, "reconstruct", photo, "--vae", vae, "--size", 32, *options)
    assert sorted(photo.parent.iterdir()) == before


@pytest.mark.parametrize("ending", ["bmp", "gif"])
def test_reconstruct_offers_no_ending_that_it_refuses(vae, photo, capsys, ending):
    said = refused(capsys, "reconstruct", photo, "--vae", vae, "--out", photo.parent / f"x.{ending}").replace(f"x.{ending}", "")
    assert ".png" in said and ".gif" not in said and ".mp4" not in said


def test_reconstruct_refuses_photos(vae, photo, capsys):
    out = photo.parent / "x.png"
    assert "photo: there is no file" in refused(capsys, "reconstruct", photo.parent / "none.jpg", "--vae", vae, "--out", out)
    (photo.parent / "text.jpg").write_text("not a picture")
    assert "text.jpg cannot be read: not a picture" in refused(capsys, "reconstruct", photo.parent / "text.jpg", "--vae", vae, "--out", out)
    assert not out.exists()


def fewer(monkeypatch):
    "A garden of 64 pictures in the place of 4096."
    monkeypatch.setattr("zerodiff.pipeline.garden", lambda n, size: garden(64, size))


@pytest.mark.parametrize("size", [16, 32])
def test_train_on_latents_sample_resume(vae, tmp_path, capsys, monkeypatch, size):
    "The life of a latent model: its file knows the VAE, in this process and in another, and so does the run that goes on."
    fewer(monkeypatch)
    run, out = tmp_path / "run", tmp_path / "x.png"
    file, command = run / "checkpoint.safetensors", ["train", "--data", "garden", *SMALL, "--size", str(size)]
    assert main([*command, "--latent", vae, "--out", str(run), "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert f"64 pictures of {size}x{size} as latents of {vae}" in said and "2 steps" in said
    about = header(file)
    assert about["info"]["latent"]["weights"] == vae and about["clip"] is None and about["info"]["size"] == size
    assert about["network"]["args"]["network"]["args"]["in_channels"] == 4 and about["info"]["progress"]["pictures"] == 128
    argv = ["sample", "--weights", str(file), "--class", "red round", "-n", "2", "--steps", "2", "--zoom", "1", "--device", "cpu", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", "from zerodiff.cli import main; raise SystemExit(main())", *argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Image.open(out).size == (2 * size + 3 * 2, size + 2 * 2)
    assert main([*command, "--resume", str(run), "--steps", "4"]) == 0
    said, after = capsys.readouterr().out, header(file)
    assert f"as latents of {vae}" in said and "from step 2" in said
    assert after["info"]["progress"]["step"] == 4 and after["info"]["latent"] == about["info"]["latent"]
    assert main(["info", "--weights", str(file)]) == 0
    assert f"{size} px, 21 classes, latents of {vae}, v-prediction" in capsys.readouterr().out


def stopping(at):
    "A step that at step `at` is interrupted once it is done, as by Ctrl-C."
    from zerodiff.training import Stepper
    real = Stepper.train_step
    def step(self):
        loss = real(self)
        if self.step == at: signal.raise_signal(signal.SIGINT)
        return loss
    return step


def test_resuming_is_the_run_that_was_not_stopped(vae, tmp_path, monkeypatch):
    from safetensors.torch import load_file
    fewer(monkeypatch)
    command = ["train", "--data", "garden", *SMALL, "--latent", vae, "--precision", "fp32"]
    assert main([*command, "--out", str(tmp_path / "a"), "--steps", "4"]) == 0
    whole = load_file(tmp_path / "a" / "checkpoint.safetensors")
    with monkeypatch.context() as m:
        m.setattr("zerodiff.training.Stepper.train_step", stopping(2))
        assert main([*command, "--out", str(tmp_path / "b"), "--steps", "4"]) == 130
    assert header(tmp_path / "b" / "checkpoint.safetensors")["info"]["progress"]["step"] == 2
    assert main(["train", "--data", "garden", *SMALL, "--resume", str(tmp_path / "b")]) == 0
    again = load_file(tmp_path / "b" / "checkpoint.safetensors")
    assert whole.keys() == again.keys() and all(torch.allclose(whole[k], again[k], atol=1e-6) for k in whole)


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_a_resumed_run_keeps_its_size(vae, tmp_path, capsys, monkeypatch, kind):
    "Without --size the pictures are those that the run began with, or it is refused: never silently others."
    fewer(monkeypatch)
    unsized, run = [w for w in SMALL if w not in ("--size", "16")], tmp_path / "run"
    assert main(["train", "--data", "garden", *SMALL, *(["--latent", vae] if kind == "latents" else []), "--out", str(run), "--steps", "1"]) == 0
    capsys.readouterr()
    code = main(["train", "--data", "garden", *unsized, "--resume", str(run), "--steps", "2"])
    captured = capsys.readouterr()
    assert "64 pictures of 16x16" in captured.out if code == 0 else "size" in captured.err


def test_a_vae_that_is_gone_or_another_is_named(vae, tmp_path, capsys, monkeypatch):
    fewer(monkeypatch)
    mine, run = tmp_path / "mine.safetensors", tmp_path / "run"
    mine.write_bytes(open(vae, "rb").read())
    assert main(["train", "--data", "garden", *SMALL, "--latent", str(mine), "--out", str(run), "--steps", "1"]) == 0
    capsys.readouterr()
    torch.manual_seed(1)
    save_network(mine, VAE(4, 8, (1, 2), (1, 1), patch=1))
    draw = ["sample", "--weights", run / "checkpoint.safetensors", "--out", tmp_path / "x.png"]
    go_on = ["train", "--data", "garden", *SMALL, "--resume", run, "--steps", 2]
    for argv in (draw, go_on): assert "mine.safetensors is not the VAE whose latents this model was trained on" in refused(capsys, *argv)
    mine.unlink()
    for argv in (draw, go_on): assert "mine.safetensors" in refused(capsys, *argv)
    assert header(run / "checkpoint.safetensors")["info"]["progress"]["step"] == 1


def test_the_command_in_a_file_holds_no_folders(vae, tmp_path, monkeypatch):
    fewer(monkeypatch)
    assert main(["train", "--data", "garden", *SMALL, "--latent", vae, "--out", str(tmp_path / "run"), "--steps", "1"]) == 0
    command = header(tmp_path / "run" / "checkpoint.safetensors")["info"]["command"]
    assert command.startswith("zerodiff train --data garden --size 16") and "--latent tiny.safetensors" in command and "/" not in command
    assert main(["train", "--data=garden", *SMALL, f"--latent={vae}", f"--out={tmp_path / 'again'}", "--steps=1"]) == 0
    command = header(tmp_path / "again" / "checkpoint.safetensors")["info"]["command"]
    assert "--latent=tiny.safetensors --out=again --steps=1" in command and "/" not in command


def test_train_on_latents_refuses(vae, tmp_path, capsys, monkeypatch):
    fewer(monkeypatch)
    train = ["train", "--data", "garden", *SMALL, "--out", tmp_path / "run", "--steps", 1]
    assert "got 'vae7', but zerodiff comes with" in refused(capsys, *train, "--latent", "vae7")
    assert "none.safetensors" in refused(capsys, *train, "--latent", tmp_path / "none.safetensors")
    assert "holds a ClassConditional, expected a VAE" in refused(capsys, *train, "--latent", "flowers")
    assert "17x17 pixels, expected multiples of 2" in refused(capsys, *train, "--latent", vae, "--size", 17)
    assert "size: got 18 pixels, expected a multiple of 4" in refused(capsys, *train, "--latent", vae, "--size", 18)
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_train_takes_no_size_of_nothing(vae, tmp_path, capsys, monkeypatch, kind):
    fewer(monkeypatch)
    assert "size" in refused(capsys, "train", "--data", "garden", *SMALL, "--size", 0, "--out", tmp_path / "run", "--steps", 1, *(["--latent", vae] if kind == "latents" else []))


@pytest.fixture
def cheap(monkeypatch):
    "An extractor that needs no network, in the place of EfficientNet-Lite0."
    from zerodiff import metrics
    def squint(size=224, device="cpu"): return metrics.Extractor("squint", 4, "area", lambda x: F.adaptive_avg_pool2d(x, 4).flatten(1))
    monkeypatch.setattr(metrics, "extractors", dict(lite0=squint, inception=squint, inception75=squint))


def album(folder, pictures):
    "A folder with these pictures."
    folder.mkdir()
    for i, image in enumerate(pictures.images): save_image(image, folder / f"{i:03}.png")
    return str(folder)


def test_evaluate_weights(weights, cheap, tmp_path, capsys):
    asked = ["evaluate", "--weights", weights, "-n", "12", "--steps", "2", "--seeds", "0", "1", "--scale", "2", "--features", str(tmp_path / "kept"), "--out", str(tmp_path / "report.md")]
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("12 samples", "12 held", "FID-squint", "KID-squint", "precision", "nearer", "copied", "weights: tiny.safetensors", "data: garden", "seeds: 0 1",
                                         "steps: 2", "scale: 2.0", "sampler: dpmpp_2m", "16x16 pixels", "4096 pictures", "over 2 seeds", "denoising error: ", "denoising error, told the class: "))
    assert (tmp_path / "report.md").read_text() == told
    assert main(asked) == 0 and capsys.readouterr().out == told        # from kept features: the same


def test_evaluate_tells_thieves_from_strangers(cheap, tmp_path, capsys):
    folders = {name: album(tmp_path / name, garden(40, 16, seed=s)) for name, s in (("learned", 0), ("unseen", 1), ("new", 2))}
    def told(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert main(["evaluate", "--folder", folder, "--data", folders["learned"], "--held", folders["unseen"], "--size", "16", "--features", str(tmp_path / "kept")]) == 0
        head, _, row, *_ = (line.split("|") for line in capsys.readouterr().out.splitlines())
        figures = dict(zip((c.strip() for c in head), row))
        return [float(figures[k].split("±")[0]) for k in ("nearer", "copied")]
    (thief, stolen), (stranger, taken) = told(folders["learned"]), told(folders["new"])
    assert thief == stolen == 1 and .2 < stranger < .8 and taken < .6


def test_evaluate_looks_behind_the_decoder_of_a_latent_model(vae, cheap, tmp_path, capsys, monkeypatch):
    fewer(monkeypatch)
    assert main(["train", "--data", "garden", *SMALL, "--latent", vae, "--out", str(tmp_path), "--steps", "1"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--weights", str(tmp_path / "checkpoint.safetensors"), "-n", "8", "--steps", "1", "--features", str(tmp_path / "kept")]) == 0
    assert "- behind: copies are looked for among reference and held pictures that went through the VAE" in capsys.readouterr().out


@pytest.mark.parametrize("options, says", [
    (["-n", "3"], "n: got 3, expected at least 5"), (["--folder", "nowhere"], "there is no folder"), (["--out", "no/such/report.md"], "there is no folder"),
    (["--scale", "nan", "-n", "6"], "scale: got nan"), (["--steps", "0", "-n", "6"], "steps: got 0"), (["--weights", "tulips"], "'tulips'")])
def test_evaluate_refuses(weights, cheap, tmp_path, capsys, options, says):
    known = [] if "--folder" in options or "--weights" in options else ["--weights", weights]
    data = ["--data", "garden"] if "--folder" in options else []
    assert says in refused(capsys, "evaluate", *known, *data, *options, "--features", tmp_path / "kept")


def test_evaluate_asks_where_a_folder_is_of_which_weights_know_the_name(weights, cheap, tmp_path, capsys, monkeypatch):
    "A folder of that name in the working directory may be another."
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.safetensors"
    save_weights(mine, new_denoiser(garden(4, 16), channels=8, multipliers=(1, 2), data="train"))
    album(tmp_path / "train", garden(6, 16))
    assert "data: these weights learned from a folder called 'train'; give its place by --data" in refused(capsys, "evaluate", "--weights", mine, "-n", 6)


def test_evaluate_draws_nothing_if_it_could_not_judge(weights, cheap, tmp_path, capsys, monkeypatch):
    "What can fail comes before the minutes of drawing."
    from zerodiff import metrics
    from zerodiff.pipeline import Pipeline
    drawn = []
    monkeypatch.setattr(Pipeline, "draw", lambda *args, **options: drawn.append(args))
    def missing(device): raise ImportError("install the extra `metrics`")
    monkeypatch.setattr(metrics, "extractors", dict(lite0=missing))
    ask = ["evaluate", "--weights", weights, "-n", 6, "--features", tmp_path / "kept"]
    assert "install the extra" in refused(capsys, *ask)
    assert "is a folder, expected a file" in refused(capsys, *ask, "--out", tmp_path) and not drawn


@pytest.mark.filterwarnings("ignore:.*only")
def test_evaluate_tells_held_pictures_no_classes_of_others(weights, cheap, tmp_path, capsys):
    "Classes of a folder are its own: the first of them is not the model's first."
    held = album(tmp_path / "held", garden(12, 16, seed=1))
    assert main(["evaluate", "--weights", weights, "-n", "6", "--steps", "1", "--held", held, "--features", str(tmp_path / "kept")]) == 0
    told = capsys.readouterr().out
    assert "denoising error: " in told and "told the class" not in told


def test_evaluate_takes_weights_or_a_folder(weights, cheap, tmp_path, capsys):
    assert "weights, folder: got both" in refused(capsys, "evaluate", "--weights", weights, "--folder", tmp_path)


def test_evaluate_by_the_protocol_of_keras(weights, cheap, tmp_path, capsys):
    "Held pictures are the reference, and the settings are the protocol's whatever else is asked for."
    assert main(["evaluate", "--weights", weights, "-n", "10", "--protocol", "keras-ddim", "--steps", "40", "--features", str(tmp_path / "kept")]) == 0
    told = capsys.readouterr().out
    assert "1000 pictures" in told and "steps: 5" in told and "sampler: ddim" in told and "held" not in told.splitlines()[3]


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
    for argv in (["--help"], *([c, "--help"] for c in ("sample", "sweep", "switch", "restyle", "reconstruct", "train", "info"))):
        with pytest.raises(SystemExit) as e: main(argv)
        assert e.value.code == 0 and "examples:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as e: main(["smaple"])
    assert e.value.code == 2
