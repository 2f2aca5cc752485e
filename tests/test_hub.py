"""Giving weights away and taking them: folders, model cards, and the Hub, played by a folder."""
import inspect
import re
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file

from zerodiff.cli import main
from zerodiff.clip import CLIP, ImageTower, TextTower, digest, load_clip, save_clip
from zerodiff.data import Pictures, garden
from zerodiff.latent import latents_of
from zerodiff.pipeline import COMPANIONS, MODEL, Pipeline, facts, model_card, new_denoiser
from zerodiff.schedule import cosine_schedule
from zerodiff.text import ClassOrVector
from zerodiff.training import Denoiser, WeightsError, header, load_network, save_network, save_weights
from zerodiff.unet import UNet
from zerodiff.vae import VAE

GARDEN = garden(24, 16)
WORDS = "a red blue flower with petals".split()
HOW = dict(n=2, steps=3, seed=4)


def awake(network):
    "The network with weights that say something, as float16 has them."
    torch.manual_seed(1)
    for p in network.parameters():
        if p.abs().sum() == 0: torch.nn.init.normal_(p, std=.05)
        p.data = p.data.half().float()
    return network


def made(folder: Path, kind: str) -> Path:
    "A tiny weights file in `folder`: of pixels, of latents of a VAE of its own, or that follows a CLIP of its own."
    folder.mkdir()
    about = dict(data="garden", command="zerodiff train --data garden --out tiny")
    if kind == "words":
        torch.manual_seed(0)
        clip = CLIP(ImageTower(8, [8, 8]), TextTower(len(WORDS), 8, width=16, layers=1), WORDS, size=16).eval()
        clip.image_mean.copy_(F.normalize(torch.randn(8), dim=0))
        save_clip(folder / "mine.safetensors", clip)
        denoiser = Denoiser(ClassOrVector(UNet(8, (1, 2), cond_dim=16), 3, 8), cosine_schedule(), "v", clip=1.)
        encoder = dict(weights=str(folder / "mine.safetensors"), digest=digest(load_clip(folder / "mine.safetensors", "cpu")))
        denoiser.info = about | dict(size=16, classes=["rose", "daisy", "tulip"], encoder=encoder)
    elif kind == "latent":
        torch.manual_seed(0)
        save_network(folder / "mine.safetensors", VAE(latent=4, channels=8, multipliers=(1, 2), blocks=(1, 1), patch=1))
        file = str(folder / "mine.safetensors")
        space = latents_of(load_network(file, VAE, "cpu"), GARDEN, file)[1]
        denoiser = new_denoiser(GARDEN, channels=8, multipliers=(1, 2), space=space, **about)
    else: denoiser = new_denoiser(GARDEN, channels=8, multipliers=(1, 2), **about)
    awake(denoiser.network)
    save_weights(folder / "tiny.safetensors", denoiser)
    return folder / "tiny.safetensors"


@pytest.fixture(params=["pixels", "latent", "words"])
def file(request, tmp_path): return made(tmp_path / "secret place", request.param)


@pytest.fixture
def pixels(tmp_path): return Pipeline.load(made(tmp_path / "pixels", "pixels"), "cpu")


class Hub:
    "The Hub, as far as zerodiff calls it: a folder with a folder for each repository. Calls must fit the real functions."
    def __init__(self, root: Path, monkeypatch):
        self.root, self.calls, hub, real, download = root, [], self, huggingface_hub.HfApi, huggingface_hub.snapshot_download
        def noted(original, name, *args, **given):
            inspect.signature(original).bind(*args, **given)
            hub.calls.append((name, given))
        class HfApi:
            def __init__(self, **given): noted(real, "HfApi", **given)
            def create_repo(self, repo_id, **given):
                noted(real.create_repo, "create_repo", self, repo_id, **given)
                (root / repo_id).mkdir(parents=True, exist_ok=given.get("exist_ok", False))
                return f"https://huggingface.co/{repo_id}"
            def file_exists(self, repo_id, name):
                noted(real.file_exists, "file_exists", self, repo_id, name)
                return (root / repo_id / name).is_file()
            def upload_folder(self, **given):
                noted(real.upload_folder, "upload_folder", self, **given)
                for path in Path(given["folder_path"]).iterdir():
                    if not any(fnmatch(path.name, p) for p in given.get("ignore_patterns") or []): shutil.copy(path, root / given["repo_id"])
        def snapshot_download(repo_id, **given):
            noted(download, "snapshot_download", repo_id, **given)
            huggingface_hub.utils.validate_repo_id(repo_id)
            if not (root / repo_id).is_dir(): raise OSError(f"404 Client Error.\n\nRepository Not Found for url: https://huggingface.co/api/models/{repo_id}.")
            cache = root.parent / "cache" / repo_id
            cache.mkdir(parents=True, exist_ok=True)
            for path in (root / repo_id).iterdir():
                if any(fnmatch(path.name, p) for p in given["allow_patterns"]): shutil.copy(path, cache)
            return str(cache)
        monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


@pytest.fixture
def hub(tmp_path, monkeypatch): return Hub(tmp_path / "hub", monkeypatch)


# ---------------------------------------------------------------- folders

def companion(file): return {"latent": "vae.safetensors", "encoder": "clip.safetensors"}.get(next(iter(COMPANIONS.keys() & header(file)["info"].keys()), None))


def test_a_folder_is_complete_and_draws_the_same(file, tmp_path):
    "Also when what the model was made from is gone, and from any working directory; and no path of the maker's is in it."
    pipe = Pipeline.load(file, "cpu")
    first = pipe(0, **HOW)
    said = pipe(pipe.ask("a red flower"), **HOW) if "encoder" in pipe.denoiser.info else None
    given = pipe.save_pretrained(tmp_path / "away" / "tiny")
    assert sorted(p.name for p in given.iterdir()) == sorted(filter(None, ["README.md", MODEL, companion(file)]))
    shutil.rmtree(file.parent)
    shutil.move(given, tmp_path / "elsewhere")
    for taken in (Pipeline.from_pretrained(tmp_path / "elsewhere", device="cpu"), Pipeline.load(tmp_path / "elsewhere" / MODEL, "cpu")):
        assert torch.equal(taken(0, **HOW), first) and not torch.equal(taken(1, **HOW), first)
        assert taken.classes == pipe.classes
        if said is not None: assert torch.equal(taken(taken.ask("a red flower"), **HOW), said)
    for path in (tmp_path / "elsewhere").iterdir(): assert b"secret place" not in path.read_bytes(), path.name


def test_what_was_taken_can_be_given_on(file, tmp_path):
    pipe = Pipeline.load(file, "cpu")
    one = Pipeline.from_pretrained(pipe.save_pretrained(tmp_path / "one"), device="cpu")
    two = Pipeline.from_pretrained(one.save_pretrained(tmp_path / "two"), device="cpu")
    assert torch.equal(two(0, **HOW), pipe(0, **HOW))
    assert {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir() if p.suffix != ".md"} == {p.name: p.read_bytes() for p in (tmp_path / "two").iterdir() if p.suffix != ".md"}
    one.save_pretrained(tmp_path / "one")                                  # over itself, from which it was loaded
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "one", device="cpu")(0, **HOW), pipe(0, **HOW))


def test_the_command_draws_from_a_folder_too(tmp_path, monkeypatch):
    given = Pipeline.load(made(tmp_path / "m", "latent"), "cpu").save_pretrained(tmp_path / "given")
    shutil.rmtree(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--weights", str(given / MODEL), "-n", "1", "--steps", "2", "--out", "x.png"]) == 0


@pytest.mark.parametrize("kind", ["latent", "words"])
def test_another_vae_or_clip_in_the_folder_is_refused(kind, tmp_path):
    pipe, other = Pipeline.load(made(tmp_path / "m", kind), "cpu"), tmp_path / "given" / ("vae.safetensors" if kind == "latent" else "clip.safetensors")
    pipe.save_pretrained(tmp_path / "given")
    network = pipe.space.vae if kind == "latent" else pipe.encoder
    next(p for p in network.parameters() if p.numel() > 8).data.mul_(2)
    save_network(other, network)
    with pytest.raises(ValueError, match="is not the (VAE|CLIP)"): Pipeline.from_pretrained(tmp_path / "given", device="cpu").ask("a flower")


def test_a_missing_vae_is_named(tmp_path):
    given = Pipeline.load(made(tmp_path / "m", "latent"), "cpu").save_pretrained(tmp_path / "given")
    (given / "vae.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="VAE of this model is not here; it was vae.safetensors"): Pipeline.from_pretrained(given)


@pytest.mark.parametrize("name", ["{folder}/elsewhere/vae.safetensors", "../vae.safetensors", "deep/vae.safetensors"])
def test_a_header_cannot_send_us_to_other_folders(name, tmp_path):
    "Only a bare name is looked for beside the file; everything else, though there is such a file, stays what it was."
    from zerodiff.pipeline import beside
    folder, name = tmp_path / "model", name.format(folder=tmp_path)
    for path in (folder / name, folder / "vae.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    denoiser = new_denoiser(GARDEN, channels=8, multipliers=(1,))
    denoiser.info["latent"] = dict(weights=name)
    assert beside(denoiser, folder).info["latent"]["weights"] == name
    denoiser.info["latent"] = dict(weights="vae.safetensors")
    assert beside(denoiser, folder).info["latent"]["weights"] == str(folder / "vae.safetensors")


@pytest.mark.parametrize("name", ["/somewhere/vae.safetensors", "../vae.safetensors", r"\\\\host\\share\\vae.safetensors", r"C:\\vae.safetensors"])
def test_a_model_from_elsewhere_names_no_file_outside_its_folder(name, tmp_path, pixels):
    given = pixels.save_pretrained(tmp_path / "given")
    denoiser = new_denoiser(GARDEN, channels=8, multipliers=(1, 2))
    save_weights(given / MODEL, denoiser, latent=dict(weights=name, digest="", shift=[], scale=[]))
    with pytest.raises(WeightsError, match="expected one beside it"): Pipeline.from_pretrained(given)


@pytest.mark.parametrize("what", ["nothing", "another program's", "a pickle", "a VAE", "half"])
def test_a_foreign_folder_says_what_came_and_what_was_expected(what, tmp_path, pixels):
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    if what == "another program's": save_file({"a": torch.zeros(2)}, folder / MODEL)
    if what == "a pickle": torch.save({"a": torch.zeros(2)}, folder / MODEL)
    if what == "a VAE": save_network(folder / MODEL, VAE(latent=4, channels=8, multipliers=(1, 2), blocks=(1, 1), patch=1))
    if what == "half": (folder / MODEL).write_bytes((pixels.save_pretrained(tmp_path / "whole") / MODEL).read_bytes()[:-100])
    came = {"nothing": "config.json", "another program's": "not written by zerodiff", "a pickle": "pickled files are never opened",
            "a VAE": "header .* cannot be read", "half": "no whole safetensors file"}[what]
    with pytest.raises(WeightsError, match=rf"(?s)got {re.escape(str(folder))}.*") as e: Pipeline.from_pretrained(folder)
    assert re.search(came, str(e.value)) and "expected model.safetensors as `save_pretrained`" in str(e.value)


def test_a_full_disk_leaves_the_old_weights(pixels, tmp_path, monkeypatch):
    import zerodiff.training as training
    given = pixels.save_pretrained(tmp_path / "given")
    old = {p.name: p.read_bytes() for p in given.iterdir()}
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(training, "save_file", full)
    with pytest.raises(OSError, match="No space left"): pixels.save_pretrained(given)
    assert {p.name: p.read_bytes() for p in given.iterdir()} == old


def test_folders_that_cannot_be(pixels, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="folder: got|folder: .*file is a file"): pixels.save_pretrained(tmp_path / "file")
    given = pixels.save_pretrained(tmp_path / "given")
    with pytest.raises(ValueError, match="revision: got 'v1' for the folder"): Pipeline.from_pretrained(given, revision="v1")


# ---------------------------------------------------------------- the card

def parts(card: str):
    "Its YAML, and the Python in it."
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), re.search(r"```python\n(.*?)```", body, re.S)[1]


def test_the_card_says_what_the_header_says(file, tmp_path):
    given = Pipeline.load(file, "cpu").save_pretrained(tmp_path / "tiny", license="apache-2.0")
    card, info = (given / "README.md").read_text("utf-8"), header(file)["info"]
    assert parts(card)[0]["license"] == "apache-2.0" and parts(card)[0]["library_name"] == "zerodiff"
    assert "# tiny" in card and "| trained on | garden |" in card and "| by | `zerodiff train --data garden --out tiny` |" in card
    assert f"16 x 16 pixels{', through the latents of a VAE' if 'latent' in info else ''} |" in card
    assert ("by sentences" in card) == ("encoder" in info) and f"by {len(info['classes'])} classes" in card
    assert f"Classes, from 0: {', '.join(info['classes'])}." in card and "No licence" not in card


def test_the_program_on_the_card_runs(file, tmp_path, monkeypatch):
    given = Pipeline.load(file, "cpu").save_pretrained(tmp_path / "tiny")
    program = parts((given / "README.md").read_text("utf-8"))[1].replace("seed=1)", "seed=1, steps=2)")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(program, found)
    assert found["pictures"].shape == (4, 3, 16, 16)
    assert "(4, 3, 16, 16)" in program


def test_without_a_licence_the_card_asks_for_one(pixels, tmp_path):
    card = (pixels.save_pretrained(tmp_path / "tiny") / "README.md").read_text()
    assert "license" not in parts(card)[0] and "No licence is named here" in card


def test_a_trained_model_tells_of_its_training():
    head = dict(network={"class": "zerodiff.unet.UNet", "args": {}}, schedule=dict(name="cosine", T=1000), predicts="v", clip=1.,
                info=dict(size=32, data="flowers102", split="fit", recipe=dict(batch=32), progress=dict(step=13779, elapsed=6000.2, pictures=7348)))
    assert facts(head) == {"pictures": "32 x 32 pixels", "trained on": "flowers102, split fit, 7,348 examples", "for": "13,779 steps, 32 pictures each, 100 minutes",
                           "network": "UNet, predicts v under a cosine schedule of 1,000 steps"}
    assert "pipe(n=4, seed=1)" in model_card(head, "x") and "Classes" not in model_card(head, "x")


def test_odd_names_do_not_break_the_card():
    head = dict(network={"class": "zerodiff.unet.UNet", "args": {}}, schedule=dict(name="cosine", T=10), predicts="v", clip=1.,
                info=dict(classes=['say "a|b"'], data="a|b\nc"))
    card = model_card(head, "x")
    assert "| trained on | a\\|b c |" in card and 'pipe("say \\"a|b\\"", n=4, seed=1)' in card


def test_a_card_that_is_there_stays(pixels, tmp_path):
    given = pixels.save_pretrained(tmp_path / "tiny")
    (given / "README.md").write_text("my own words")
    pixels.save_pretrained(given, license="mit")
    assert (given / "README.md").read_text() == "my own words"


# ---------------------------------------------------------------- the Hub

def test_to_the_hub_and_back(file, hub):
    pipe = Pipeline.load(file, "cpu")
    first = pipe(0, **HOW)
    assert pipe.push_to_hub("someone/flowers", private=True, token="t0", license="mit") == "https://huggingface.co/someone/flowers"
    assert ("HfApi", dict(token="t0")) in hub.calls and ("create_repo", dict(private=True, exist_ok=True)) in hub.calls
    there = hub.root / "someone" / "flowers"
    assert sorted(p.name for p in there.iterdir()) == sorted(filter(None, ["README.md", MODEL, companion(file)]))
    assert "# someone/flowers" in (there / "README.md").read_text() and 'from_pretrained("someone/flowers")' in (there / "README.md").read_text()
    shutil.rmtree(file.parent)
    (there / "pytorch_model.bin").write_bytes(b"a large pickle")
    taken = Pipeline.from_pretrained("someone/flowers", revision="v1", device="cpu")
    assert torch.equal(taken(0, **HOW), first)
    name, given = hub.calls[-1]
    assert name == "snapshot_download" and given["revision"] == "v1"
    assert not (hub.root.parent / "cache/someone/flowers/pytorch_model.bin").exists()        # only what is needed is brought


def test_a_second_push_keeps_the_card_and_renews_the_weights(pixels, hub):
    pixels.push_to_hub("someone/flowers")
    there = hub.root / "someone" / "flowers"
    (there / "README.md").write_text("my own words")
    old = (there / MODEL).read_bytes()
    for p in pixels.denoiser.network.parameters(): p.data.mul_(.5)
    pixels.push_to_hub("someone/flowers", license="mit")
    assert (there / "README.md").read_text() == "my own words" and (there / MODEL).read_bytes() != old


@pytest.mark.parametrize("repo_id", ["flowers", "a/b/c", "/flowers", "someone/"])
def test_a_repository_needs_an_owner(pixels, hub, repo_id):
    with pytest.raises(ValueError, match=rf"repo_id: got '{repo_id}', expected 'owner/name'"): pixels.push_to_hub(repo_id)
    assert not hub.calls


def test_weights_that_cannot_be_saved_make_no_repository(pixels, hub):
    next(pixels.denoiser.network.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"): pixels.push_to_hub("someone/flowers")
    assert not (hub.root / "someone").exists()


@pytest.mark.parametrize("where", ["someone/nothing", "./no/such/folder"])
def test_what_is_neither_folder_nor_repository(hub, where):
    with pytest.raises(FileNotFoundError, match=rf"got {re.escape(where)}, which is no folder here, and the Hub has it not: \S") as e: Pipeline.from_pretrained(where)
    assert "\n" not in str(e.value)


def test_a_foreign_repository(hub):
    (hub.root / "big" / "bert").mkdir(parents=True)
    (hub.root / "big/bert/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="got big/bert, in which there is no file of that name, expected model.safetensors"): Pipeline.from_pretrained("big/bert")
    save_file({"a": torch.zeros(2)}, hub.root / "big" / "bert" / MODEL, {"format": "pt"})
    with pytest.raises(WeightsError, match="got big/bert, expected model.safetensors .* was not written by zerodiff"): Pipeline.from_pretrained("big/bert")


def test_folders_need_no_hub(pixels, tmp_path, monkeypatch):
    "Without the extra, a folder is written and read; what needs the Hub says what to install."
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert Pipeline.from_pretrained(pixels.save_pretrained(tmp_path / "given"), device="cpu").classes == pixels.classes
    for ask in (lambda: pixels.push_to_hub("a/b"), lambda: Pipeline.from_pretrained("a/b")):
        with pytest.raises(ImportError, match=r"huggingface_hub: from a clone, run pip install '.\[hub\]'"): ask()


def test_without_classes(tmp_path):
    pipe = Pipeline(new_denoiser(Pictures(GARDEN.images), channels=8, multipliers=(1, 2)))
    awake(pipe.denoiser.network)
    given = pipe.save_pretrained(tmp_path / "plain")
    assert torch.allclose(Pipeline.from_pretrained(given, device="cpu")(**HOW), pipe(**HOW), atol=1e-4)      # other strides, other rounding
    assert "pipe(n=4, seed=1)" in (given / "README.md").read_text() and header(given / MODEL)["info"]["classes"] == []
