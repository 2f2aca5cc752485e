"""The pipeline object: which pictures it draws, from what, and that the same call always draws the same."""
import pytest
import torch

from zerodiff.data import Pictures, garden
from zerodiff.pipeline import Pipeline, enlarge, find_class, new_denoiser, open_data, save_film
from zerodiff.sampling import samplers


def awake(denoiser):
    "The denoiser with a last layer that says something (an untrained one is silent), so that pictures differ."
    torch.manual_seed(1)
    for name, p in denoiser.network.named_parameters():
        if p.abs().sum() == 0: torch.nn.init.normal_(p, std=.05)
    return denoiser


@pytest.fixture(scope="module")
def pipe(): return Pipeline(awake(new_denoiser(garden(4, 16), channels=8, multipliers=(1, 2))))


@pytest.mark.parametrize("sampler", samplers)
def test_a_picture_does_not_depend_on_its_company(pipe, sampler):
    options = dict(steps=4, sampler=sampler, seed=3)
    many = pipe(["red round", "blue round"], n=3, **options)
    assert many.shape == (6, 3, 16, 16) and many.abs().max() <= 1
    assert torch.allclose(pipe("blue round", n=2, **options), many[3:5], atol=1e-4)
    assert torch.allclose(pipe(["red round", "blue round"], n=3, batch=4, **options), many, atol=1e-4)
    assert not torch.allclose(many[0], many[1], atol=1e-2) and not torch.allclose(many[0], many[3], atol=1e-3)


def test_without_a_class_each_picture_gets_one_that_stays(pipe):
    assert torch.equal(pipe.labels(None, 5, seed=2), pipe.labels(None, 9, seed=2)[:5])
    assert len(pipe.labels(None, 50, seed=2).unique()) > 10


def test_scale_matters_and_one_is_plain(pipe):
    plain, strong = (pipe("red round", n=2, steps=4, scale=s) for s in (1, 5.))
    assert not torch.allclose(plain, strong, atol=1e-3)


def test_the_film_ends_at_the_picture(pipe):
    frames = list(pipe.film("red round", n=2, steps=5))
    assert len(frames) == 5 and torch.equal(frames[-1], pipe("red round", n=2, steps=5))


def test_an_unconditional_model(tmp_path):
    data = Pictures(garden(4, 16).images)
    pipe = Pipeline(awake(new_denoiser(data, channels=8, multipliers=(1, 2))))
    assert pipe(n=3, steps=2).shape == (3, 3, 16, 16)
    with pytest.raises(ValueError, match="know no classes"): pipe("rose")


@pytest.mark.parametrize("size, patch", [(16, 1), (32, 2), (64, 4)])
def test_the_network_folds_pictures_to_sixteen_a_side(size, patch):
    d = new_denoiser(garden(4, size), channels=8)
    assert d.network.network.patch == patch
    assert d.raw(torch.zeros(1, 3, size, size), 5, torch.tensor([0])).shape == (1, 3, size, size)


def test_a_size_that_does_not_fold_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"): new_denoiser(garden(4, 18))


def test_enlarging_keeps_flat_pictures_flat():
    x = torch.full((2, 3, 8, 8), .5)
    assert enlarge(x, 3).shape == (2, 3, 24, 24) and (enlarge(x, 3) - .5).abs().max() < .01
    assert enlarge(x, 1) is x


def test_film_errors(tmp_path):
    with pytest.raises(ValueError, match="x.avi"): save_film([torch.zeros(3, 8, 8)], tmp_path / "x.avi")
    with pytest.raises(ValueError, match="no frames"): save_film([], tmp_path / "x.gif")
    with pytest.raises(ValueError, match="NaN"): save_film([torch.full((3, 8, 8), float("nan"))], tmp_path / "x.gif")
    assert not list(tmp_path.iterdir())


def test_find_class_prefers_the_exact_name():
    assert find_class("rose", ["desert-rose", "rose"]) == 1
    for wrong in ("", "tulip", "5", "-1"):
        with pytest.raises(ValueError, match="class: got"): find_class(wrong, ["rose", "lily"])
    assert open_data("garden", 16).images.shape == (4096, 3, 16, 16)
