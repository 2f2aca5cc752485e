"""The pipeline object: which pictures it draws, from what, and that the same call always draws the same."""
import pytest
import torch
from PIL import Image

from zerodiff.data import Pictures, garden, save_image
from zerodiff.guidance import guide
from zerodiff.pipeline import Pipeline, find_class, new_denoiser, open_data, open_photo
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


def test_save_film_is_still_found_here():
    from zerodiff import film, pipeline
    assert pipeline.save_film is film.save_film and pipeline.enlarge is film.enlarge


# ---------------------------------------------------------------- knobs

def test_guidance_options_reach_the_denoiser(pipe):
    "Each option changes the picture, and they are those of `guide`."
    options = dict(n=2, steps=3, sampler="ddim", scale=5.)
    plain = pipe("red round", **options)
    for more in (dict(rescale=2.), dict(interval=(600, 900)), dict(project=True)):
        assert not torch.allclose(pipe("red round", **options, **more), plain, atol=1e-3), more
    assert torch.allclose(pipe("red round", **options, interval=(0, 999)), plain, atol=1e-4)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([500, 500])
    labels, more = pipe.labels("red round", 2), dict(scale=-3., rescale=.5, output="eps")
    with torch.no_grad(): assert torch.equal(pipe.denoise(labels, **more)(x, t).x0, guide(pipe.denoiser, labels, **more)(x, t).x0)


@pytest.mark.parametrize("batch", [64, 3])
def test_a_weight_for_each_picture_is_a_loop_over_weights(pipe, batch):
    w, phi = torch.tensor([-4., 0., 1., 6.]), torch.tensor([0., .5, -2., 1.])
    many = pipe("blue round", n=4, steps=3, scale=w, rescale=phi, batch=batch)
    for i in range(4):
        one = pipe("blue round", n=4, steps=3, scale=float(w[i]), rescale=float(phi[i]))[i]
        assert torch.allclose(many[i], one, atol=1e-3)


@pytest.mark.parametrize("what", ["scale", "rescale"])
@pytest.mark.parametrize("batch", [64, 7, 2])
def test_a_sweep_is_a_loop_of_calls_with_the_same_noise(pipe, what, batch):
    values, options = [-10, 0, 1, 6.5], dict(n=2, steps=3, seed=5) | (dict(scale=6.) if what == "rescale" else {})
    found = list(pipe.sweep(what, values, ["red round", "blue round"], batch=batch, **options))
    assert [v for v, _ in found] == values
    for v, x in found: assert torch.allclose(x, pipe(["red round", "blue round"], **options | {what: float(v)}), atol=2e-3)
    assert not torch.allclose(found[0][1], found[3][1], atol=1e-2)


def test_a_sweep_comes_as_it_is_made(pipe, monkeypatch):
    calls = []
    monkeypatch.setattr(pipe, "draw", lambda labels, *a, **k: calls.append(len(labels)) or torch.zeros(len(labels), 3, 4, 4))
    sweep = pipe.sweep("scale", range(5), "red round", n=2, batch=4)
    next(sweep)
    assert calls == [4] and len(list(sweep)) == 4 and calls == [4, 4, 2]


def test_sweep_errors(pipe):
    with pytest.raises(ValueError, match="what: got 'steps'"): next(pipe.sweep("steps", [1], "red round"))
    bare = Pipeline(awake(new_denoiser(Pictures(garden(4, 16).images), channels=8, multipliers=(1, 2))))
    with pytest.raises(ValueError, match="know no classes"): next(bare.sweep("scale", [1]))


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_switching_ends_in_pure_conditions(pipe, sampler):
    "k = 0 is the second class alone, k = steps the first, whichever batches they are drawn in."
    options = dict(n=2, steps=5, seed=2, sampler=sampler)
    found = dict(pipe.switch(["red round", "white round"], "blue round", [0, 2, 5], batch=3, **options))
    first, second = pipe(["red round", "white round"], **options), pipe(["blue round"] * 2, **options)
    assert torch.allclose(found[0], second, atol=1e-4)
    assert torch.allclose(found[5], first, atol=1e-4)
    assert not torch.allclose(found[2], first, atol=1e-3) and not torch.allclose(found[2], second, atol=1e-3)


def test_the_precision_wrapper_keeps_breaks(pipe):
    from zerodiff.inversion import switch
    a, b = (pipe.denoise(pipe.labels(c)) for c in ("red round", "blue round"))
    assert switch(a, switch(b, a, 300), 700).breaks == (700, 300)
    half = Pipeline(pipe.denoiser, "bf16")
    x = half("red round", n=2, steps=2)
    assert x.dtype == torch.float32 and 0 < (x - pipe("red round", n=2, steps=2)).abs().max() < .2


def test_switch_errors(pipe):
    with pytest.raises(ValueError, match="2 to begin with and 3 to end with"): next(pipe.switch([0, 1], [0, 1, 2], [1], steps=2))
    with pytest.raises(ValueError, match="ks"): next(pipe.switch(0, 1, [3], steps=2))
    for sampler in ("heun", "ddpm", "euler"):
        with pytest.raises(ValueError, match="sampler"): next(pipe.switch(0, 1, [1], steps=2, sampler=sampler))


# ---------------------------------------------------------------- photographs

def test_strength_runs_from_the_photo_to_no_photo(pipe):
    photo = garden(1, 16, seed=3)[0][0]
    options = dict(n=2, steps=10, seed=1)
    zero, some, one = (pipe.edit(photo, "red round", strength=s, **options) for s in (0, .4, 1))
    assert torch.equal(zero, photo.expand(2, -1, -1, -1))
    assert (some - photo).abs().mean() < (one - photo).abs().mean()
    assert torch.allclose(one, pipe.edit(-photo, "red round", strength=1, **options), atol=.02)        # of the photo nothing is left
    assert not torch.equal(one[0], one[1])
    assert torch.allclose(pipe.edit(photo, "red round", strength=.4, batch=1, **options), some, atol=1e-4)


def test_inversion_brings_the_photo_back_under_its_own_condition(pipe):
    "Up without a class and down without a class is the photo again, the better the finer the steps."
    pipe = Pipeline(pipe.denoiser)
    photo = garden(1, 16, seed=3)[0][0]
    errors = [(pipe.edit(photo, "red round", strength=.8, invert=True, steps=n, scale=0) - photo).abs().mean() for n in (10, 80)]
    assert errors[1] < .5 * errors[0] and errors[1] < .05
    assert (pipe.edit(photo, "red round", strength=.8, invert=True, steps=20, scale=8.) - photo).abs().mean() > 2 * errors[1]
    assert torch.equal(pipe.edit(photo, ["red round", "blue round"], strength=0., invert=True), photo.expand(2, -1, -1, -1))


def test_edit_errors(pipe):
    photo = torch.zeros(3, 16, 16)
    for strength in (-.1, 1.5):
        with pytest.raises(ValueError, match="strength"): pipe.edit(photo, 0, strength=strength)
    with pytest.raises(ValueError, match="n: got 2"): pipe.edit(photo, 0, invert=True, n=2)
    with pytest.raises(ValueError, match="class"): pipe.edit(photo, "tulip")


def test_photos_come_as_paths_images_and_tensors(tmp_path):
    big = garden(1, 48, seed=1).images[0]
    image = Image.fromarray(big.permute(1, 2, 0).numpy())
    image.save(tmp_path / "x.png")
    want = open_photo(big, 16)
    assert want.shape == (1, 3, 16, 16) and torch.equal(open_photo(image, 16), want) and torch.equal(open_photo(str(tmp_path / "x.png"), 16), want)
    assert torch.equal(open_photo(want[0], 16), want) and (open_photo(big / 127.5 - 1, 16) - want).abs().max() < 1e-6


def test_photos_are_turned_upright_and_put_on_white(tmp_path):
    x = torch.full((3, 32, 32), -1.); x[0, :16] = 1                          # red above
    save_image(x, tmp_path / "x.png")
    im, exif = Image.open(tmp_path / "x.png"), Image.Exif()
    exif[0x0112] = 3                                                         # stored upside down
    im.rotate(180).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(open_photo(tmp_path / "turned.png", 16), open_photo(tmp_path / "x.png", 16))
    Image.new("RGBA", (20, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (open_photo(tmp_path / "clear.png", 16) == 1).all()


@pytest.mark.parametrize("name, content", [("text.jpg", b"not a picture"), ("empty.png", b""), ("cut.jpg", None), ("small.png", None)])
def test_photos_that_cannot_be_read_are_named(tmp_path, name, content):
    path = tmp_path / name
    if name == "cut.jpg":
        save_image(torch.rand(3, 200, 200), path); path.write_bytes(path.read_bytes()[:800])
    elif name == "small.png": save_image(torch.zeros(3, 4, 4), path)
    else: path.write_bytes(content)
    with pytest.raises(ValueError, match=f"photo: .*{name} cannot be read"): open_photo(path, 16)


def test_photos_that_are_not_there_or_out_of_range(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.jpg"): open_photo(tmp_path / "no.jpg", 16)
    with pytest.raises(FileNotFoundError, match="photo"): open_photo(tmp_path, 16)
    with pytest.raises(ValueError, match="0..255"): open_photo(torch.full((3, 16, 16), 200.), 16)
    with pytest.raises(ValueError, match="shape"): open_photo(torch.zeros(2, 3, 16, 16), 16)


def test_find_class_prefers_the_exact_name():
    assert find_class("rose", ["desert-rose", "rose"]) == 1
    numbers = ["1", "10", "2"]                                    # folders that are called by numbers: the name goes before the place
    assert find_class("10", numbers) == 1 and find_class("2", numbers) == 2 and find_class(2, numbers) == 2 and find_class("0", numbers) == 0
    with pytest.raises(ValueError, match="class: got"): find_class("²", ["rose", "lily"])
    for wrong in ("", "tulip", "5", "-1"):
        with pytest.raises(ValueError, match="class: got"): find_class(wrong, ["rose", "lily"])
    assert open_data("garden", 16).images.shape == (4096, 3, 16, 16)
