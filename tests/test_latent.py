"""Latents: their space and its file, the cache, mirror images, and that samplers, guidance, switching and inversion are on latents what they are on pictures."""
import functools
import json
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zerodiff.inversion as inversion
import zerodiff.sampling as sampling
from zerodiff.clip import digest
from zerodiff.conditioning import ClassConditional
from zerodiff.data import Pictures, garden
from zerodiff.denoiser import Batches, diffusion_loss
from zerodiff.guidance import guide, guide_plus
from zerodiff.inversion import ddim_invert, heun_invert, restyle, slerp, switch, switch_sweep
from zerodiff.latent import Latents, LatentSpace, Pixels, encoded, latents_of, means_of, mirrored, space_of
from zerodiff.pipeline import Pipeline, new_denoiser
from zerodiff.sampling import ddim, dpmpp_2m, generators, heun, samplers
from zerodiff.schedule import cosine_schedule
from zerodiff.training import Denoiser, Trainer, WeightsError, header, load_network, save_network, save_weights
from zerodiff.unet import UNet
from zerodiff.vae import VAE, Gaussian, Perception

GARDEN = garden(24, 16)
PICTURES = GARDEN.batch(range(24))[0]
SCHEDULE = cosine_schedule()


def some(*shape, seed=0, dtype=torch.float64): return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(seed=0, **options):
    torch.manual_seed(seed)
    return VAE(**dict(latent=4, channels=8, multipliers=(1, 2), blocks=(1, 1), patch=1) | options).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    "A tiny untrained VAE's file: 16x16x3 numbers as 8x8x4."
    path = tmp_path_factory.mktemp("vae") / "tiny.safetensors"
    save_network(path, small(), data="garden")
    return str(path)


@pytest.fixture(scope="module")
def vae(file): return load_network(file, VAE, "cpu")


@pytest.fixture(scope="module")
def space(vae, file): return latents_of(vae, GARDEN, file)[1]


# --- the space

def test_measured_latents_have_mean_zero_and_variance_one_in_each_channel():
    vae = small()
    means = some(50, 4, 8, 8, dtype=torch.float32) * torch.tensor([.1, 1., 7., 30.]).view(4, 1, 1) + torch.tensor([5., -2., 0., 40.]).view(4, 1, 1)
    z = LatentSpace.measured(vae, means).standard(means)
    assert z.mean((0, 2, 3)).abs().max() < 1e-4 and (z.var((0, 2, 3)) - 1).abs().max() < 1e-3
    assert (z[:10].var((0, 2, 3)) - 1).abs().max() > 1e-3             # of all together, not picture by picture
    latents, space = latents_of(vae, GARDEN)
    assert latents.z.mean((0, 2, 3)).abs().max() < 1e-4 and (latents.z.var((0, 2, 3)) - 1).abs().max() < 1e-3
    assert torch.allclose(space.encode(PICTURES), latents.z[:24], atol=1e-4)


def test_there_and_back_is_the_vae(vae, space):
    want = vae.decode(vae.encode(PICTURES).mean).clamp(-1, 1)
    assert torch.allclose(space.decode(space.encode(PICTURES)), want, atol=1e-5) and 0 < want.std()
    assert torch.allclose(space.decode(space.encode(PICTURES), batch=5), want, atol=1e-5)
    loud = space.decode(100 * space.encode(PICTURES))
    assert loud.abs().max() == 1 and not loud.requires_grad
    with torch.enable_grad(): assert not space.encode(PICTURES.clone().requires_grad_()).requires_grad


def test_latents_are_means_and_throw_no_dice(space):
    torch.manual_seed(0); a = space.encode(PICTURES)
    torch.manual_seed(1); assert torch.equal(space.encode(PICTURES), a)


def test_shape_is_that_of_the_latents(vae, space):
    for size in (16, 24): assert space.shape(size) == tuple(space.encode(torch.zeros(1, 3, size, size)).shape[1:]) == (4, size // 2, size // 2)
    assert LatentSpace(small(patch=4), [0.] * 4, [1.] * 4).shape(64) == (4, 8, 8)
    with pytest.raises(ValueError, match="size: got 20 pixels, expected a multiple of 8"): LatentSpace(small(patch=4), [0.] * 4, [1.] * 4).shape(20)


@pytest.mark.parametrize("shift, scale", [([0.] * 3, [1.] * 4), ([0.] * 4, [1.] * 5), ([0.], [1.]), ([0.] * 4, [1., 1., 0., 1.]), ([0.] * 4, [1., 1., -1., 1.]), ([0.] * 4, [float("nan")] * 4)])
def test_wrong_shifts_and_scales_are_refused(shift, scale):
    with pytest.raises(ValueError, match=rf"shift, scale: got {len(shift)} and {len(scale)} numbers, expected 4 each, and every scale more than 0"): LatentSpace(small(), shift, scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_have_diverged_are_refused(space, bad):
    z = space.encode(PICTURES)
    z[20, 0, 3, 3] = bad
    with pytest.raises(ValueError, match="z: holds NaN or infinities"): space.decode(z)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 8), (4, 8, 8)])
def test_latents_of_another_shape_are_refused(space, shape):
    "One channel for four would go through by broadcasting."
    with pytest.raises(ValueError, match="z: got shape"): space.decode(torch.zeros(shape))


# --- its description, in a file

def test_a_space_comes_back_from_its_description(space, file):
    about = json.loads(json.dumps(space.about))
    back = LatentSpace.load(about, "cpu")
    assert back.about == space.about and about["weights"] == file and digest(back.vae) == digest(space.vae) == about["digest"]
    assert torch.equal(back.shift, space.shift) and torch.equal(back.scale, space.scale) and not torch.equal(back.scale, torch.ones(4, 1, 1))
    assert torch.equal(back.encode(PICTURES), space.encode(PICTURES)) and torch.equal(back.decode(some(2, 4, 8, 8).float()), space.decode(some(2, 4, 8, 8).float()))


def test_another_vae_under_that_name_is_refused(space, tmp_path):
    path = tmp_path / "other.safetensors"
    about = space.about | dict(weights=str(path))
    save_network(path, small(seed=1))
    with pytest.raises(WeightsError, match="other.safetensors is not the VAE whose latents this model was trained on"): space_of(dict(latent=about), "cpu")
    save_network(path, space.vae)
    assert space_of(dict(latent=about), "cpu").about == about          # the same weights, in another place
    save_network(path, Perception(2, (4,)))
    with pytest.raises(WeightsError, match="holds a Perception, expected a VAE"): space_of(dict(latent=about), "cpu")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="other.safetensors"): space_of(dict(latent=about), "cpu")


@pytest.mark.parametrize("lost", ["weights", "digest", "shift", "scale"])
def test_a_description_that_lacks_a_part_is_a_weights_error(space, lost):
    with pytest.raises(WeightsError, match=lost): space_of(dict(latent={k: v for k, v in space.about.items() if k != lost}), "cpu")


def test_without_a_vae_space_is_pixels():
    space, x = space_of({}), 3 * some(2, 3, 8, 8)
    assert isinstance(space, Pixels) and space.about is None and space.shape(32) == (3, 32, 32) and isinstance(space_of(dict(size=16, classes=[])), Pixels)
    assert torch.equal(space.encode(x), x) and torch.equal(space.decode(x), x.clamp(-1, 1)) and x.abs().max() > 1


# --- latents, once

@pytest.fixture
def asked(monkeypatch):
    "How many pictures each call of `encode` was given."
    counts, real = [], VAE.encode
    monkeypatch.setattr(VAE, "encode", lambda self, x: counts.append(len(x)) or real(self, x))
    return counts


def test_latents_are_made_once(tmp_path, asked):
    vae = small()
    first = means_of(vae, GARDEN, tmp_path / "new" / "folder")
    assert sum(asked) == 24 and first.shape == (24, 4, 8, 8) and torch.allclose(first, vae.encode(PICTURES).mean, atol=1e-5)
    asked.clear()
    assert torch.equal(means_of(vae, GARDEN, tmp_path / "new" / "folder"), first) and torch.equal(means_of(small(), GARDEN, tmp_path / "new" / "folder"), first) and asked == []
    assert torch.allclose(means_of(vae, GARDEN), first, atol=1e-5) and sum(asked) == 24              # no folder, no file


def test_both_halves_of_the_latents_are_kept(tmp_path, asked):
    vae = small()
    first, space = latents_of(vae, GARDEN, folder=tmp_path)
    assert sum(asked) == 48 and len(list(tmp_path.iterdir())) == 2
    asked.clear()
    again, _ = latents_of(vae, GARDEN, folder=tmp_path)
    assert asked == [] and torch.equal(first.z, again.z)


@pytest.mark.parametrize("change", ["another vae", "one weight", "another shape", "pixel", "order", "mirrored", "fewer"])
def test_latents_never_serve_for_others(tmp_path, asked, change):
    vae, data = small(), garden(12, 16)
    first = means_of(vae, data, tmp_path)
    if change == "another vae": vae = small(seed=1)
    if change == "one weight": vae.encoder[1].bias[0] += .1
    if change == "another shape": vae = small(blocks=(2, 1))
    if change == "pixel": data.images[3, 1, 8, 8] ^= 128
    if change == "order": data = data.subset(list(range(11, -1, -1)))
    if change == "mirrored": data = mirrored(data)
    if change == "fewer": data = data.subset(range(11))
    asked.clear()
    found = means_of(vae, data, tmp_path)
    assert sum(asked) == len(data) and len(list(tmp_path.iterdir())) == 2
    assert torch.allclose(found, vae.encode(data.batch(range(len(data)))[0]).mean, atol=1e-5) and (found.shape != first.shape or not torch.equal(found, first))


def test_a_broken_file_of_latents_is_made_anew(tmp_path, asked):
    vae = small()
    first, (path,) = means_of(vae, GARDEN, tmp_path), tmp_path.iterdir()
    for bad in (path.read_bytes()[:-7], b"", b"nonsense" * 30):
        path.write_bytes(bad)
        asked.clear()
        assert torch.equal(means_of(vae, GARDEN, tmp_path), first) and sum(asked) == 24
    asked.clear()
    assert torch.equal(means_of(vae, GARDEN, tmp_path), first) and asked == []


# --- latents to train on

def test_behind_each_latent_stands_that_of_the_mirror_image(vae):
    latents, space = latents_of(vae, GARDEN)
    assert len(latents) == 48 and latents.classes == GARDEN.classes
    for i in (0, 7, 23):
        (z, label), (mirror, same) = latents.batch([i]), latents.batch([i + 24])
        x, want = GARDEN.batch([i])
        assert torch.allclose(z, space.encode(x), atol=1e-4) and torch.allclose(mirror, space.encode(x.flip(-1)), atol=1e-4) and label == same == want
        assert (mirror - z.flip(-1)).abs().mean() > .1, "the VAE is blind to left and right: this shows nothing"
    assert torch.equal(mirrored(GARDEN).images, GARDEN.images.flip(-1)) and torch.equal(mirrored(mirrored(GARDEN)).images, GARDEN.images)
    with pytest.raises(ValueError, match="labels: got 2 of them for 3 latents"): Latents(torch.zeros(3, 4, 8, 8), torch.zeros(2))


def test_batches_of_latents_are_the_latents_themselves(vae):
    latents, _ = latents_of(vae, GARDEN)
    draws = Batches(latents, 1000, 16)
    for k in range(4):
        z, labels, _, noise = draws.draw(k, lambda labels, generator: labels)
        assert torch.equal(z, latents.z[draws.indices(k)]) and torch.equal(labels, latents.labels[draws.indices(k)]) and noise.shape == z.shape
    assert torch.cat([draws.indices(k) for k in range(3)]).sort().values.tolist() == list(range(48))       # an epoch has each picture both ways round


def test_a_space_that_is_given_is_not_measured_again(vae, space, file):
    few = GARDEN.subset(range(3))
    latents, same = latents_of(vae, few, space=space)
    assert same is space and torch.allclose(latents.z[:3], space.encode(PICTURES[:3]), atol=1e-4) and latents.z.mean((0, 2, 3)).abs().max() > .01
    again, found = encoded(few, space.about, "cpu")
    assert found.about == space.about and torch.allclose(again.z, latents.z, atol=1e-5)
    anew, own = encoded(few, dict(weights=file), "cpu")
    assert own.weights == file and own.about != space.about and anew.z.mean((0, 2, 3)).abs().max() < 1e-4


# --- the method does not change: with an orthogonal map for a VAE, diffusion of latents is diffusion of pictures

class Turn(nn.Module):
    "A VAE that loses nothing: 2x2 pixels become 12 channels, and those are turned by an orthogonal matrix. Noise stays noise under it."
    latent, factor = 12, 2
    def __init__(self):
        super().__init__()
        self.turn = nn.Parameter(torch.linalg.qr(some(12, 12))[0], requires_grad=False)

    def encode(self, x):
        mean = torch.einsum("ij,bjhw->bihw", self.turn, F.pixel_unshuffle(x, 2))
        return Gaussian(mean, torch.zeros_like(mean))

    def decode(self, z): return F.pixel_shuffle(torch.einsum("ji,bjhw->bihw", self.turn, z), 2)


class Turned(nn.Module):
    "What a network of pictures is to latents: out of the space, through the network, and into the space."
    def __init__(self, network, vae): super().__init__(); self.network, self.vae = network, vae
    def forward(self, z, t, cond): return self.vae.encode(self.network(self.vae.decode(z), t, cond)).mean
    def null(self, n, device=None): return self.network.null(n, device)


@pytest.fixture(scope="module")
def both():
    "A denoiser of pictures with random weights, in float64, the same one for latents, and the space between them."
    torch.manual_seed(0)
    network, vae = ClassConditional(UNet(8, (1, 2), cond_dim=8), 5).double().requires_grad_(False), Turn()
    for p in network.parameters(): p.normal_(std=.15)
    return Denoiser(network, SCHEDULE), Denoiser(Turned(network, vae), SCHEDULE), LatentSpace(vae, torch.zeros(12), torch.ones(12))


X, CLASSES, OTHERS = some(3, 3, 8, 8, seed=5), torch.arange(3), torch.tensor([4, 4, 0])


def agree(both, walk, start=X):
    "Every step of `walk(denoiser, x)` among latents is, decoded, the step among pictures. They leave -1..1 on the way, so that a clip would show."
    pixels, latents, space = both
    there, here = list(walk(latents, space.encode(start))), list(walk(pixels, start))
    assert len(there) == len(here) > 0 and max(h.x.abs().max() for h in here) > 1.2
    for a, b in zip(there, here):
        assert a.t == b.t and a.x.shape == (len(start), 12, 4, 4)
        for z, x in ((a.x, b.x), (a.x0, b.x0)):
            assert torch.allclose(space.vae.decode(z), x, rtol=1e-6, atol=1e-6) and torch.allclose(space.decode(z), x.clamp(-1, 1), atol=1e-6)
    return here[-1].x


@pytest.fixture
def dice(both, monkeypatch):
    "Dice for pictures; for latents the same throw, encoded."
    space, randn = both[2], sampling.randn
    def throw(shape, rng=None, device=None):
        drawn = randn((shape[0], 3, 8, 8), rng, device).double()
        return space.encode(drawn) if shape[1] == 12 else drawn
    for module in (sampling, inversion): monkeypatch.setattr(module, "randn", throw)


def test_noise_is_noise_on_either_side(both):
    z = both[2].encode(some(500, 3, 8, 8))
    assert abs(z.mean()) < .02 and (z.flatten(1).T.cov() - torch.eye(192)).abs().max() < .3 and torch.allclose(both[2].vae.decode(z), some(500, 3, 8, 8))


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", [*samplers, "ddim, eta=1"])
def test_samplers(both, dice, name, steps):
    draw = functools.partial(ddim, eta=1.) if "eta" in name else samplers[name]
    agree(both, lambda d, x: draw(d.given(CLASSES), x, SCHEDULE, steps, rng=generators(1, 3)))


@pytest.mark.parametrize("options", [dict(scale=w) for w in (-4, 0, .5, 1, 6)] + [
    dict(scale=torch.tensor([-2., .5, 5.])), dict(scale=lambda t: 2 + t / 200), dict(scale=4, project=True), dict(scale=3, interval=(200, 700)), dict(scale=3, project=True, output="x0")],
    ids=["-4", "0", "half", "1", "6", "each", "of t", "project", "interval", "x0"])
def test_guidance(both, options):
    found, plain = (agree(both, lambda d, x: dpmpp_2m(ask(d), x, SCHEDULE, 6)) for ask in (lambda d: guide(d, CLASSES, **options), lambda d: d.given(CLASSES)))
    assert torch.allclose(found, plain, atol=1e-2) == (str(options) == str(dict(scale=1)))


@pytest.mark.parametrize("scale", [0, .6, 1])
def test_guidance_plus_plus(both, scale): agree(both, lambda d, x: ddim(guide_plus(d, CLASSES, scale=scale), x, SCHEDULE, 6))


@pytest.mark.parametrize("draw", [ddim, dpmpp_2m, heun])
def test_switching(both, draw):
    found = [agree(both, lambda d, x: draw(switch(guide(d, CLASSES, scale=3), guide(d, OTHERS, scale=3), t), x, SCHEDULE, 6)) for t in (0, 500, 1000)]
    assert not torch.allclose(found[0], found[1], atol=1e-2) and not torch.allclose(found[1], found[2], atol=1e-2)


@pytest.mark.parametrize("draw", [ddim, dpmpp_2m])
def test_switch_sweeps(both, draw):
    pixels, latents, space = both
    a, b = (list(switch_sweep(d.given(CLASSES), d.given(OTHERS), x, SCHEDULE, 6, [0, 2, 6], draw)) for d, x in ((pixels, X), (latents, space.encode(X))))
    for (k, x), (j, z) in zip(a, b): assert k == j and torch.allclose(space.vae.decode(z), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("invert", [ddim_invert, heun_invert, functools.partial(ddim_invert, at="target"), functools.partial(ddim_invert, refine=2)], ids=["source", "heun", "target", "refined"])
def test_inversion(both, invert):
    noise = agree(both, lambda d, x: invert(d.given(CLASSES), x, SCHEDULE, 8))
    agree(both, lambda d, x: ddim(d.given(OTHERS), x, SCHEDULE, 8), noise)


@pytest.mark.parametrize("strength", [.3, 1])
def test_restyling(both, dice, strength):
    agree(both, lambda d, x: restyle(guide(d, CLASSES, scale=3), x, SCHEDULE, strength, 8, rng=generators(2, 3)))


def test_between_two_noises(both):
    space, f = both[2], torch.tensor([.1, .5, .9], dtype=torch.float64)
    assert torch.allclose(space.vae.decode(slerp(space.encode(X), space.encode(X.flip(0)), f)), slerp(X, X.flip(0), f))


def test_a_clip_would_have_shown(both):
    "What is kept within -1..1 among latents is not what is kept within -1..1 among pictures."
    pixels, latents, space = both
    a, b = (Denoiser(d.network, SCHEDULE, clip=1.) for d in (pixels, latents))
    with pytest.raises(AssertionError): agree((a, b, space), lambda d, x: ddim(d.given(CLASSES), x, SCHEDULE, 6))


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_the_loss(both, predicts):
    pixels, latents, space = both
    (a, b), t, eps = (Denoiser(d.network, SCHEDULE, predicts) for d in (pixels, latents)), torch.tensor([100, 500, 900]), some(3, 3, 8, 8, seed=8)
    assert torch.allclose(diffusion_loss(a, X, t, eps, CLASSES), diffusion_loss(b, space.encode(X), t, space.encode(eps), CLASSES))


# --- the pipeline

def awake(denoiser):
    torch.manual_seed(1)
    for p in denoiser.network.parameters():
        if p.abs().sum() == 0: nn.init.normal_(p, std=.05)
    return denoiser


@pytest.fixture(scope="module")
def pipe(space): return Pipeline(awake(new_denoiser(GARDEN, channels=8, multipliers=(1, 2), space=space)))


def test_a_new_denoiser_fits_the_latents(space, pipe):
    d = pipe.denoiser
    assert d.clip is None and d.network.network.in_channels == 4 and d.network.network.patch == 1 and d.info["latent"] == space.about and d.info["size"] == 16
    assert d.raw(torch.zeros(2, 4, 8, 8), 5, torch.tensor([0, 1])).shape == (2, 4, 8, 8)
    assert new_denoiser(GARDEN, channels=8, multipliers=(1, 2)).clip == 1 and "latent" not in new_denoiser(GARDEN, channels=8, multipliers=(1, 2)).info
    wide = LatentSpace(small(patch=2), [0.] * 4, [1.] * 4)
    assert new_denoiser(garden(2, 16), channels=8, multipliers=(1, 2, 2), space=wide).network.network.multiple == 4
    for size, says in ((24, "size: got 24 pixels, expected a multiple of 16"), (18, "size: got 18 pixels, expected a multiple of 4")):
        with pytest.raises(ValueError, match=says): new_denoiser(garden(2, size), channels=8, space=wide)
    assert new_denoiser(garden(2, 64), channels=8, space=LatentSpace(small(), [0.] * 4, [1.] * 4)).network.network.patch == 2


@pytest.mark.parametrize("sampler", samplers)
def test_pictures_come_out_and_do_not_depend_on_their_company(pipe, sampler):
    options = dict(steps=4, sampler=sampler, seed=3)
    many = pipe(["red round", "blue round"], n=3, **options)
    assert many.shape == (6, 3, 16, 16) and many.abs().max() <= 1 and many.dtype == torch.float32
    assert torch.allclose(pipe("blue round", n=2, **options), many[3:5], atol=1e-3) and torch.allclose(pipe(["red round", "blue round"], n=3, batch=4, **options), many, atol=1e-3)
    assert not torch.allclose(many[0], many[1], atol=1e-2) and not torch.allclose(many[0], many[3], atol=1e-3)


def test_a_picture_is_its_decoded_latent(pipe, space):
    noise = sampling.randn((1, 4, 8, 8), generators(0, 1))
    for step in ddim(guide(pipe.denoiser, pipe.labels("red round"), scale=2.), noise, SCHEDULE, 4): pass
    assert torch.allclose(pipe("red round", n=1, steps=4, scale=2., sampler="ddim"), space.decode(step.x), atol=1e-4)


def test_films_end_at_the_picture(pipe):
    frames = list(pipe.film("red round", n=2, steps=5))
    assert len(frames) == 5 and all(f.shape == (2, 3, 16, 16) and f.abs().max() <= 1 for f in frames) and torch.equal(frames[-1], pipe("red round", n=2, steps=5))
    guesses = list(pipe.film("red round", n=2, steps=5, guesses=True))
    assert torch.equal(guesses[-1], frames[-1]) and not torch.allclose(guesses[0], frames[0], atol=1e-2)


def test_editing_begins_at_the_reconstruction(pipe, vae):
    photo = garden(1, 16, seed=3)[0][0]
    again = vae.decode(vae.encode(photo[None]).mean).clamp(-1, 1)
    zero, some_, one = (pipe.edit(photo, "red round", strength=s, n=2, steps=10, seed=1) for s in (0, .3, 1))
    assert torch.allclose(zero, again.expand(2, -1, -1, -1), atol=1e-5) and not torch.allclose(zero[0], photo, atol=.1)
    assert 0 < (some_ - again).abs().mean() < (one - again).abs().mean()
    assert torch.allclose(pipe.edit(photo, "red round", strength=0, invert=True), zero[:1], atol=1e-5)


def test_inversion_brings_the_reconstruction_back(pipe, vae):
    photo = garden(1, 16, seed=3)[0][0]
    again = vae.decode(vae.encode(photo[None]).mean).clamp(-1, 1)
    errors = [(pipe.edit(photo, "red round", strength=.8, invert=True, steps=n, scale=0) - again).abs().mean() for n in (10, 80)]
    assert errors[1] < .5 * errors[0] and (pipe.edit(photo, "red round", strength=.8, invert=True, steps=80, scale=8.) - again).abs().mean() > 2 * errors[1]


def test_sweeps_and_switches(pipe):
    options = dict(n=2, steps=4, seed=2)
    for w, x in pipe.sweep("scale", [-3, 1, 6], ["red round", "blue round"], **options): assert torch.allclose(x, pipe(["red round", "blue round"], scale=w, **options), atol=2e-3)
    found = dict(pipe.switch("red round", "blue round", [0, 2, 4], **options))
    first, second = (pipe(c, sampler="ddim", **options) for c in ("red round", "blue round"))
    assert torch.allclose(found[0], second, atol=1e-3) and torch.allclose(found[4], first, atol=1e-3)
    assert found[2].shape == (2, 3, 16, 16) and not torch.allclose(found[2], first, atol=1e-3) and not torch.allclose(found[2], second, atol=1e-3)


def test_a_pipeline_from_a_file_finds_its_vae(pipe, space, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, pipe.denoiser)
    back = Pipeline.load(path, "cpu")
    assert back.space.about == space.about and back.denoiser.clip is None and header(path)["info"]["latent"] == space.about
    assert torch.allclose(back("red round", n=2, steps=3), pipe("red round", n=2, steps=3), atol=.05)
    pipe.denoiser.info["latent"]["digest"], kept = "0" * 64, pipe.denoiser.info["latent"]["digest"]
    save_weights(path, pipe.denoiser)
    pipe.denoiser.info["latent"]["digest"] = kept
    with pytest.raises(WeightsError, match="is not the VAE"): Pipeline.load(path, "cpu")


def test_a_model_without_classes(space):
    pipe = Pipeline(awake(new_denoiser(Pictures(GARDEN.images), channels=8, multipliers=(1, 2), space=space)))
    assert pipe(n=3, steps=2).shape == (3, 3, 16, 16)


# --- training

def trainer(vae, file, out=None, **options):
    latents, space = latents_of(vae, GARDEN, file)
    d = new_denoiser(GARDEN, channels=8, multipliers=(1, 2), space=space)
    return Trainer(d, latents, out, **dict(steps=6, batch=8, warmup=2, precision="fp32", device="cpu") | options), latents


def state(t): return torch.cat([v.flatten() for v in (*t.network.state_dict().values(), *t.ema.average.values())])


def test_training_on_latents_stops_and_goes_on(vae, file, tmp_path):
    through, latents = trainer(vae, file)
    broken, _ = trainer(vae, file, tmp_path, preview=lambda d: signal.raise_signal(signal.SIGINT) or torch.zeros(1, 3, 8, 8), preview_every=3)
    with pytest.raises(KeyboardInterrupt): broken.fit()
    resumed = Trainer.resume(broken.checkpoint, latents, device="cpu")
    assert 3 <= resumed.step < 6 and resumed.denoiser.info["latent"] == through.denoiser.info["latent"]
    assert torch.equal(state(resumed.fit()), state(through.fit())) and not torch.equal(state(through), state(trainer(vae, file)[0]))
    assert Pipeline.load(resumed.checkpoint, "cpu")("red round", n=2, steps=2).shape == (2, 3, 16, 16)


def test_the_loss_of_latents_falls(vae, file):
    t, _ = trainer(vae, file, steps=80, batch=16, lr=5e-3, log_every=10)
    t.fit()
    assert t.history[-1][2] < .9 * t.history[0][2]
