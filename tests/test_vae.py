"""The VAE: its terms against torch's own and against a model whose likelihood is known, distances, pictures in and out, the trainer, and files."""
import json
import math
import pickle
import re
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import zerodiff.training as training
import zerodiff.vae as vae_module
from zerodiff.data import garden
from zerodiff.denoiser import mix_seed
from zerodiff.training import WeightsError, file_header, load_network, save_network, shipped
from zerodiff.unet import UNet
from zerodiff.vae import VAE, Gaussian, Perception, VAELoss, VAETrainer, perceptual_distance, psnr, vae_loss

GARDEN = garden(24, 8)
PICTURES = GARDEN.batch(range(24))[0]


def small(seed=0, **options):
    torch.manual_seed(seed)
    return VAE(**dict(latent=2, channels=8, multipliers=(1, 2), blocks=(1, 1), patch=2) | options)


def eyes(seed=0, widths=(8, 12)):
    torch.manual_seed(seed)
    return Perception(5, widths).eval().requires_grad_(False)


def some(*shape, seed=0, dtype=torch.float64): return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the Gaussian

def test_kl_is_torchs():
    q = Gaussian(2 * some(5, 3, 4, 2), 3 * some(5, 3, 4, 2, seed=1))
    want = kl_divergence(Normal(q.mean, (q.logvar / 2).exp()), Normal(0., 1.)).flatten(1).sum(1)
    assert q.kl().shape == (5,) and torch.allclose(q.kl(), want) and (q.kl() > 0).all()
    assert (Gaussian(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).kl() == 0).all()


def test_samples_have_the_mean_and_the_variance():
    mean, logvar = torch.tensor([-2., 0., 5.]).view(3, 1, 1, 1), torch.tensor([-4., 0., 2.]).view(3, 1, 1, 1)
    z = Gaussian(mean.expand(3, 1, 200, 200), logvar.expand(3, 1, 200, 200)).sample(torch.Generator().manual_seed(0)).flatten(1)
    std = (logvar / 2).exp().flatten()
    assert ((z.mean(1) - mean.flatten()).abs() < 6 * std / 200).all()
    assert (z.std(1) / std - 1).abs().max() < .025
    u = (z - mean.flatten(1)) / std[:, None]
    assert (u ** 3).mean(1).abs().max() < .1 and ((u ** 4).mean(1) - 3).abs().max() < .2                # and the skewness and kurtosis


def test_samples_repeat_with_their_generator_and_only_with_it():
    q = Gaussian(some(2, 3, 4, 4), some(2, 3, 4, 4))
    a, b, c = (q.sample(torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(a, b) and not torch.allclose(a, c) and a.dtype == torch.float64
    torch.manual_seed(3); first = q.sample()
    torch.manual_seed(3); assert torch.equal(q.sample(), first) and not torch.equal(q.sample(), first)


def test_gradient_of_a_sample_is_that_of_mean_plus_std_times_noise():
    q, weights = Gaussian(*(some(2, 3, 4, 4, seed=s).requires_grad_() for s in (0, 1))), some(2, 3, 4, 4, seed=2)
    z = q.sample(torch.Generator().manual_seed(0))
    to_mean, to_logvar = torch.autograd.grad((weights * z).sum(), q)
    assert torch.allclose(to_mean, weights) and torch.allclose(to_logvar, weights * (z - q.mean) / 2)       # dz/dlogvar = std * noise / 2


# --- the bound

class Linear:
    "x = W z + b + s * noise, z standard normal: its likelihood is known, and its posterior has independent entries as W's columns are orthogonal."
    def __init__(self, k=4, d=9, s=.6):
        self.k, self.d, self.s = k, d, s
        self.W, self.b = torch.linalg.qr(some(d, k))[0] * torch.tensor([.3, 1., 2., 5.], dtype=torch.float64), some(d, seed=1)
        self.gain = self.W.square().sum(0)                        # W'W, a diagonal

    def log_likelihood(self, x):
        return MultivariateNormal(self.b, self.W @ self.W.T + self.s ** 2 * torch.eye(self.d, dtype=torch.float64)).log_prob(x)

    def posterior(self, x):
        var = 1 / (1 + self.gain / self.s ** 2)
        return self.gaussian(var * ((x - self.b) @ self.W) / self.s ** 2, var.log().expand(len(x), -1))

    def gaussian(self, mean, logvar): return Gaussian(mean[:, :, None, None], logvar[:, :, None, None])

    def given(self, z, x): return Normal(z @ self.W.T + self.b, self.s).log_prob(x).sum(-1)

    def elbo(self, q, x):
        spread = (self.gain * q.logvar.flatten(1).exp()).sum(1) / (2 * self.s ** 2)
        return self.given(q.mean.flatten(1), x) - spread - q.kl()


def test_the_bound_is_met_by_the_posterior_and_by_it_alone():
    model, x = Linear(), 2 * some(6, 9, seed=3)
    truth = model.posterior(x)
    assert torch.allclose(model.elbo(truth, x), model.log_likelihood(x))
    for k in range(5):
        q = model.gaussian(truth.mean.flatten(1) + .3 * some(6, 4, seed=k), truth.logvar.flatten(1) + .3 * some(6, 4, seed=9 + k))
        gap = kl_divergence(*(Normal(g.mean, (g.logvar / 2).exp()) for g in (q, truth))).flatten(1).sum(1)
        assert (gap > 0).all() and torch.allclose(model.log_likelihood(x) - model.elbo(q, x), gap)
    truth = Gaussian(*(v.detach().requires_grad_() for v in truth))
    for g in torch.autograd.grad(model.elbo(truth, x).sum(), truth): assert g.abs().max() < 1e-9


def test_the_bound_by_samples_is_the_bound():
    model, x = Linear(), some(1, 9, seed=3)
    q = model.gaussian(some(1, 4, seed=4), some(1, 4, seed=5))
    many = Gaussian(*(v.expand(40_000, -1, -1, -1) for v in q))
    found = model.given(many.sample(torch.Generator().manual_seed(0)).flatten(1), x) - many.kl()
    assert (found.mean() - model.elbo(q, x)).abs() < 5 * found.std() / 200


def test_half_the_log_of_the_error_is_the_likelihood_at_the_best_variance():
    net = small()
    loss = vae_loss(net, PICTURES, beta=0, rng=torch.Generator().manual_seed(0))
    guess = net(PICTURES, torch.Generator().manual_seed(0))[0].detach().double()
    nll = lambda log_s: -Normal(guess, math.exp(log_s)).log_prob(PICTURES.double()).mean().item()
    low, high = -6., 4.
    for _ in range(60):                                           # the golden section, to the least of a valley
        a, b = high - .618034 * (high - low), low + .618034 * (high - low)
        low, high = (low, b) if nll(a) < nll(b) else (a, high)
    assert abs(nll(low) - (loss.total.item() + .5 * math.log(2 * math.pi * math.e))) < 1e-5
    assert abs(math.exp(2 * low) - loss.mse.item()) < 1e-4


def test_no_pixel_is_out_of_sight_of_the_perceptual_loss():
    "A network with strides skips pixels: unmoved, an error there would cost nothing, and the decoder would leave a grid."
    class EverySecond(Perception):
        def features(self, x): return [x[..., ::2, ::2]]
    blind = EverySecond(3, widths=(4,))
    net, x, error = small(), torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    error[..., 1::2, 1::2] = 1
    net.forward = lambda x, rng=None: (x + error, Gaussian(x, x))
    assert perceptual_distance(blind, x + error, x) == 0
    costs = [vae_loss(net, x, network=blind, weight=1., rng=torch.Generator().manual_seed(s)).perceptual.item() for s in range(200)]
    assert set(costs) == {0., 1.} and .15 < sum(costs) / 200 < .35            # of four ways to move by less than two, one sees it


def test_the_loss_is_the_sum_of_its_parts():
    net, seen, rng = small(), eyes(), lambda: torch.Generator().manual_seed(1)
    drawn = rng()
    guess, where = net(PICTURES, drawn)
    by = torch.randint(min(seen.multiple, PICTURES.shape[-1] // 4), (2,), generator=drawn).tolist()
    loss = vae_loss(net, PICTURES, beta=3., network=seen, weight=.7, rng=rng())
    assert torch.allclose(loss.mse, (guess - PICTURES).square().mean()) and torch.allclose(loss.kl, where.kl().mean())
    assert torch.allclose(loss.perceptual, perceptual_distance(seen, *(v.roll(by, (2, 3)) for v in (guess, PICTURES))).mean()) and loss.perceptual > 0
    assert torch.allclose(loss.total, .5 * loss.mse.log() + 3 * loss.kl / (3 * 8 * 8) + .7 * loss.perceptual)
    half = vae_loss(net, PICTURES[:12], beta=3., network=seen, weight=.7, rng=rng())
    assert half.kl < 1.5 * loss.kl and half.kl > loss.kl / 1.5      # of a picture, not of the batch
    assert vae_loss(net, PICTURES, network=None, weight=1., rng=rng()).perceptual == 0


# --- pictures in and out

@pytest.mark.parametrize("patch, multipliers, factor", [(1, (1,), 1), (2, (1,), 2), (1, (1, 2), 2), (2, (1, 2), 4), (4, (1,), 4), (2, (1, 2, 3), 8), (1, (2, 1, 1), 4)])
def test_any_size_that_divides_goes_in_and_comes_out(patch, multipliers, factor):
    net = small(latent=5, channels=4, patch=patch, multipliers=multipliers)
    assert net.factor == factor and net.ratio == 3 * factor ** 2 / 5
    for h, w in ((1, 1), (3, 2), (2, 5)):
        x = some(2, 3, h * factor, w * factor, dtype=torch.float32)
        guess, where = net(x)
        assert where.mean.shape == where.logvar.shape == (2, 5, h, w) and guess.shape == x.shape
        assert x[0].numel() / where.mean[0].numel() == net.ratio
    if factor == 1: return
    for h, w in ((factor + 1, factor), (factor, factor - 1)):
        with pytest.raises(ValueError, match=f"x: got {h}x{w} pixels, expected multiples of {factor}"): net.encode(torch.zeros(1, 3, h, w))


def test_a_picture_does_not_depend_on_its_company():
    net = small().eval()
    z = net.encode(PICTURES).mean
    assert torch.allclose(net.encode(PICTURES[5:6]).mean, z[5:6], atol=1e-5) and torch.allclose(net.decode(z[5:6]), net.decode(z)[5:6], atol=1e-5)
    assert not torch.allclose(z[5], z[6], atol=1e-3) and not torch.allclose(net.decode(z)[5], net.decode(z)[6], atol=1e-3)


def test_the_ratios_of_chapter_nine():
    assert [VAE(latent, 8).ratio for latent in (16, 8, 4)] == [12, 24, 48] and VAE(1, 8, in_channels=1).ratio == 64


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 4, 8, 8), (3, 8, 8), (8, 8)])
def test_encode_refuses_what_is_no_batch_of_pictures(shape):
    with pytest.raises(ValueError, match=f"x: got shape {re.escape(str(shape))}, expected .B, 3, H, W"): small().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 1, 2, 2), (2, 3, 2, 2), (2, 2, 2), (2, 2)])
def test_decode_refuses_another_shape(shape):
    with pytest.raises(ValueError, match=r"z: got shape .*, expected \(B, 2, h, w\)"): small().decode(torch.zeros(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_decode_refuses_what_has_diverged(bad):
    z = torch.zeros(2, 2, 2, 2)
    small().decode(z)
    z[1, 0, 1, 1] = bad
    with pytest.raises(ValueError, match="z: holds NaN or infinities"): small().decode(z)


def test_variances_stay_finite():
    net = small()
    for bias, logvar in ((1e6, 10), (-1e6, -20)):
        with torch.no_grad(): net.encoder[-1].bias[2:] = bias
        where = net.encode(PICTURES)
        assert (where.logvar == logvar).all() and where.kl().isfinite().all() and where.sample().isfinite().all()


def test_no_channel_at_all_is_refused():
    with pytest.raises(ValueError, match="latent: got 0, expected at least 1"): VAE(0)


# --- how different pictures look

def test_distance_of_features():
    net, a, b = eyes(), PICTURES[:8], PICTURES[8:16]
    d = perceptual_distance(net, a, b)
    assert d.shape == (8,) and (perceptual_distance(net, a, a) == 0).all()
    assert torch.allclose(d, perceptual_distance(net, b, a)) and 0 < d.min() and d.max() <= 4 + 1e-4
    assert torch.allclose(perceptual_distance(net, a[3:4], b[3:4]), d[3:4], atol=1e-5)
    by_hand = sum((u - v).square().mean((1, 2, 3)) for u, v in zip(net.features(a), net.features(b))) / 2
    assert torch.allclose(d, by_hand)


def test_features_have_mean_square_one_everywhere():
    for f in eyes(widths=(16, 24)).features(PICTURES): assert (f.square().mean(1) - 1).abs().max() < .02


def test_two_is_the_distance_of_the_unrelated():
    "For unit vectors d(a, b) + d(a, -b) = 4; where the network is odd, so that pictures turned to their negatives turn the features, it shows."
    net = eyes(widths=(64,))
    with torch.no_grad(): net.stages[0][0].bias.zero_()
    a, b = (some(40, 3, 8, 8, seed=s, dtype=torch.float32) for s in (0, 1))
    there, back = perceptual_distance(net, a, b), perceptual_distance(net, a, -b)
    assert torch.allclose(there + back, torch.full((40,), 4.), atol=1e-2) and abs(there.mean() - 2) < .1


def test_the_gradient_of_the_distance_reaches_every_pixel():
    net, a, b = eyes(), PICTURES[:4].clone().requires_grad_(), PICTURES[4:8]
    before = perceptual_distance(net, a, b)
    g, = torch.autograd.grad(before.sum(), a)
    assert (g.abs().amax(1) > 0).all()
    assert (perceptual_distance(net, a - .01 * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1), b) < before).all()


def test_perception_refuses_sides_it_cannot_halve():
    net = eyes(widths=(4, 4, 4))
    assert net(torch.zeros(2, 3, 8, 16)).shape == (2, 5)
    for bad in ((2, 3, 12, 16), (2, 3, 16, 12)):
        with pytest.raises(ValueError, match=r"x: got \d+x\d+ pixels, expected multiples of 8"): net.features(torch.zeros(bad))
    with pytest.raises(ValueError, match="expected .B, 3, H, W"): net(torch.zeros(2, 1, 16, 16))


@pytest.mark.parametrize("apart", [2., .2, 1 / 127.5])
def test_psnr(apart):
    a = some(3, 3, 8, 8, dtype=torch.float32) / 10
    d = psnr(a, a + apart * torch.tensor([1., -1., .5]).view(3, 1, 1, 1))
    want = 20 * math.log10(2 / apart)
    assert torch.allclose(d, torch.tensor([want, want, want + 20 * math.log10(2)]), atol=1e-2)
    assert psnr(a, a).tolist() == [math.inf] * 3


# --- the trainer

def trainer(out=None, net=None, data=GARDEN, **options):
    return VAETrainer(net or small(), data, out, **dict(steps=6, batch=8, warmup=3, precision="fp32", device="cpu", ema=.5) | options)


def weights(net): return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_same_seed_same_weights():
    a, b, c = (trainer(seed=s).fit() for s in (1, 1, 2))
    assert torch.equal(weights(a.vae), weights(b.vae)) and a.history == b.history and not torch.allclose(weights(a.vae), weights(c.vae), atol=1e-5)


def test_draws_belong_to_the_step_and_not_to_torchs_dice():
    a, b = trainer(), trainer()
    a.train_step(); torch.manual_seed(0); b.train_step(); torch.manual_seed(9)
    assert a.train_step() == b.train_step()


def test_a_step_is_the_loss_of_its_batch_with_its_noise():
    t = trainer(beta=2., network=eyes(), weight=.3)
    for k in range(3):
        x, rng = t.batches.draw(k)[0], torch.Generator().manual_seed(mix_seed(0, 6, k))
        with torch.no_grad(): want = vae_loss(t.vae, x, 2., eyes(), .3, rng)
        assert t.train_step() == pytest.approx(tuple(v.item() for v in want), rel=1e-4)


def test_the_loss_falls():
    t = trainer(steps=120, lr=5e-3, beta=.1, warmup=10).fit()
    first, last = (VAELoss(*(sum(v) / len(v) for v in zip(*part))) for part in (t.history[:10], t.history[-10:]))
    assert len(t.history) == 120 and last.total < first.total - .2 and last.mse < .7 * first.mse


def test_what_beta_and_the_network_are_for():
    "More beta, fewer nats; a weight on the features brings them nearer."
    free, tight, seeing = (trainer(steps=60, lr=5e-3, **more).fit().history[-1] for more in (dict(beta=.01), dict(beta=3.), dict(beta=.01, network=eyes(), weight=10.)))
    assert tight.kl < .7 * free.kl and tight.mse > free.mse and free.perceptual == 0 < seeing.perceptual
    t = trainer(steps=60, lr=5e-3, beta=.01).fit()
    with torch.no_grad(): apart = perceptual_distance(eyes(), t.vae(PICTURES, torch.Generator().manual_seed(0))[0], PICTURES).mean()
    assert seeing.perceptual < apart


def test_the_network_that_compares_does_not_learn():
    seen = eyes()
    before = weights(seen)
    trainer(network=seen, weight=1.).fit()
    assert torch.equal(weights(seen), before)


def test_the_average_of_the_first_step_by_hand():
    t = trainer(ema=.999)
    before = weights(t.vae)
    t.train_step()
    assert torch.allclose(weights(t.averaged()), .1 * before + .9 * weights(t.vae), atol=1e-6)      # decay = min(.999, (1 + 0) / (10 + 0))
    assert not any(p.requires_grad for p in t.averaged().parameters()) and not t.averaged().training and t.vae.training


def test_the_file_holds_the_averaged_weights(tmp_path):
    t = trainer(tmp_path / "v.safetensors", info=dict(data="garden", made="by a test")).fit()
    back = load_network(tmp_path / "v.safetensors", VAE, "cpu")
    assert torch.equal(weights(back), weights(t.averaged()).half().float()) and not torch.equal(weights(back), weights(t.vae).half().float())
    assert back.config == t.vae.config and not back.training and not any(p.requires_grad for p in back.parameters())
    assert back.info == dict(data="garden", made="by a test", steps=6, batch=8, minutes=back.info["minutes"])
    z, kept = t.averaged().encode(PICTURES).mean, back.encode(PICTURES).mean
    assert torch.allclose(kept, z, atol=1e-2) and torch.allclose(back.decode(kept), t.averaged().decode(z), atol=1e-2)
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]


def test_it_is_saved_on_the_way_and_again_at_the_end(tmp_path, monkeypatch):
    saved, real = [], vae_module.save_network
    monkeypatch.setattr(vae_module, "save_network", lambda path, net, **info: saved.append(info["steps"]) or real(path, net, **info))
    trainer(tmp_path / "a.safetensors", save_every=0).fit()
    trainer(tmp_path / "b.safetensors").fit()
    assert saved == [1, 2, 3, 4, 5, 6, 6, 6]
    assert trainer().fit().step == 6                             # and without a file, nowhere


@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_leaves_the_last_whole_step_in_the_file(tmp_path, number, error):
    t, handlers = trainer(tmp_path / "v.safetensors", steps=100), (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    draw = t.batches.draw
    def drawn(step):
        if step == 2: signal.raise_signal(number)
        return draw(step)
    t.batches.draw = drawn
    with pytest.raises(error): t.fit()
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    back, through = load_network(tmp_path / "v.safetensors", VAE, "cpu"), trainer(steps=100)
    for _ in range(3): through.train_step()
    assert back.info["steps"] == t.step == len(t.history) == 3 and torch.equal(weights(back), weights(through.averaged()).half().float())


@pytest.mark.parametrize("sick", ["data", "lr", "loss", "gradient"])
def test_what_is_not_finite_stops_before_it_spoils_anything(tmp_path, sick):
    t = trainer(tmp_path / "v.safetensors", lr=1e9 if sick == "lr" else 1e-3, warmup=1, steps=50)
    draw, loss = t.batches.draw, t.loss
    if sick == "data": t.batches.draw = lambda step: [v * math.nan if step == 3 and i == 0 else v for i, v in enumerate(draw(step))]
    if sick == "loss": t.loss = lambda x, rng: loss(x, rng=rng) if t.step < 3 else VAELoss(*(v * math.inf for v in loss(x, rng=rng)))
    if sick == "gradient": t.vae.decoder[0].bias.register_hook(lambda g: g * math.inf if t.step == 3 else g)
    seen, take = [], t.optimizer.step
    def noted(): take(); seen.append(weights(t.vae).clone())
    t.optimizer.step = noted
    with pytest.raises(FloatingPointError, match=r"became (nan|inf|-inf) at step \d+; .* smaller lr"): t.fit()
    assert torch.equal(weights(t.vae), seen[-1]) and t.step == len(seen)
    if sick != "lr": assert t.step == 3 and weights(t.vae).isfinite().all() and all(v.isfinite().all() for v in t.ema.average.values())
    assert not (tmp_path / "v.safetensors").exists()


@pytest.mark.parametrize("bad, says", [
    (dict(steps=0), "steps: got 0"), (dict(steps=1.5), "steps: got 1.5"), (dict(steps=None), "expected one of the two"), (dict(minutes=1), "expected one of the two"),
    (dict(batch=0), "batch: got 0"), (dict(lr=math.nan), "lr: got nan"), (dict(lr=-1), "lr: got -1"), (dict(ema=1), "ema: got 1"), (dict(warmup=-1), "warmup: got -1"),
    (dict(clip_norm=0), "clip_norm: got 0"), (dict(precision="fp16"), "precision: got 'fp16'")])
def test_a_recipe_that_makes_no_sense_is_refused(bad, says):
    with pytest.raises(ValueError, match=says): trainer(**bad)


def test_no_pictures_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no pictures"): trainer(data=GARDEN.subset(range(0)))
    with pytest.raises(TypeError, match="learning_rate"): trainer(learning_rate=1.)
    with pytest.raises(ValueError, match="expected multiples of 16"): trainer(net=small(multipliers=(1, 1, 1, 1))).fit()


def test_what_no_file_can_hold_is_refused_before_the_work(tmp_path):
    "As by Trainer: an error now, and not at the end of the run."
    with pytest.raises(TypeError, match="JSON"): trainer(tmp_path / "v.safetensors", info=dict(picture=torch.zeros(1)))


def test_a_folder_that_is_not_there_costs_no_run(tmp_path):
    "It is made, as by Trainer, or refused before the work."
    try: t = trainer(tmp_path / "no" / "v.safetensors")
    except OSError as e: assert "no folder" in str(e)
    else:
        t.fit()
        assert (tmp_path / "no" / "v.safetensors").exists()


def test_a_full_disk_leaves_the_old_file_and_the_weights(tmp_path, monkeypatch):
    path = tmp_path / "v.safetensors"
    trainer(path).fit()
    before, t = path.read_bytes(), trainer(path, seed=1)
    def fail(*a, **k): raise OSError(28, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(training, "save_file", fail)
        with pytest.raises(OSError, match="No space left"): t.fit()
    assert path.read_bytes() == before and t.step == 6 and [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]
    t.save()
    assert torch.equal(weights(load_network(path, VAE, "cpu")), weights(t.averaged()).half().float())


def test_minutes_end_a_run():
    t = trainer(steps=None, minutes=.5 / 60).fit()
    assert t.step > 1 and .5 <= t.elapsed < 20 and t.progress >= 1


# --- files

def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_network(path, eyes())
    with pytest.raises(WeightsError, match="x.safetensors holds a Perception, expected a VAE"): load_network(path, VAE)
    save_network(path, small())
    with pytest.raises(WeightsError, match="x.safetensors holds a VAE, expected a Perception"): load_network(path, Perception)
    with pytest.raises(WeightsError, match="holds a ClassConditional, expected a VAE"): load_network(shipped("flowers"), VAE)
    save_network(path, UNet(8, (1,)))
    assert isinstance(load_network(path, UNet, "cpu"), UNet) and isinstance(load_network(str(path), nn.Module, "cpu"), UNet)


def test_files_that_are_broken_or_foreign(tmp_path):
    path, good = tmp_path / "x.safetensors", tmp_path / "good.safetensors"
    save_network(good, small())
    whole = good.read_bytes()
    for n in (0, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(WeightsError, match="x.safetensors is no whole safetensors"): load_network(path, VAE)
    path.write_bytes(pickle.dumps(dict(a=1)))
    with pytest.raises(WeightsError, match="pickled files are never opened"): load_network(path, VAE)
    save_file(dict(a=torch.zeros(2)), path)
    with pytest.raises(WeightsError, match="not written by zerodiff"): load_network(path, VAE)
    with pytest.raises(FileNotFoundError, match="no file at .*none.safetensors"): load_network(tmp_path / "none.safetensors", VAE)
    with pytest.raises(FileNotFoundError, match="got 'vae7', but zerodiff comes with"): load_network("vae7", VAE)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("change", [dict(multipliers=[]), dict(blocks=[]), dict(blocks=[1]), dict(latent=0), dict(latent="8"), dict(channels=-8), dict(patch=0), dict(wings=2)],
                         ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()))
def test_headers_that_cannot_be_built(tmp_path, change):
    good, path = tmp_path / "good.safetensors", tmp_path / "x.safetensors"
    save_network(good, small())
    head = file_header(good, ("network", "info"))["network"]
    head["args"] |= change
    save_file(load_file(good), path, metadata=dict(zerodiff=json.dumps(dict(format=1, network=head, info={}))))
    with pytest.raises(WeightsError, match="x.safetensors"): load_network(path, VAE)


@pytest.mark.parametrize("change", [dict(latent=3), dict(channels=16), dict(multipliers=[1, 2, 2]), dict(blocks=[2, 1]), dict(in_channels=1)], ids=str)
def test_headers_of_another_vae(tmp_path, change):
    good, path = tmp_path / "good.safetensors", tmp_path / "x.safetensors"
    save_network(good, small())
    head = file_header(good, ("network", "info"))["network"]
    head["args"] |= change
    save_file(load_file(good), path, metadata=dict(zerodiff=json.dumps(dict(format=1, network=head, info={}))))
    with pytest.raises(WeightsError, match="does not fit its own header"): load_network(path, VAE)


def test_bad_values_are_not_written(tmp_path):
    net, path = small(), tmp_path / "x.safetensors"
    with pytest.raises(TypeError, match="JSON"): save_network(path, net, bad={1, 2})
    for bad, says in ((math.nan, "holds NaN"), (1e6, "too large for float16")):
        with torch.no_grad(): net.decoder[0].bias[0] = bad
        with pytest.raises(ValueError, match=f"decoder.0.bias .*{says}"): save_network(path, net)
    assert not path.exists()


def test_a_trainer_leaves_the_network_that_compares_where_it_is():
    "It works on a copy: on a GPU the caller's own would move there."
    mine = eyes()
    run = VAETrainer(small(), GARDEN, steps=1, batch=8, precision="fp32", device="cpu", network=mine, weight=.1)
    assert run.loss.keywords["network"] is not mine


def test_draws_with_dice_from_another_device():
    far = Gaussian(torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, device="meta"))
    assert far.sample(torch.Generator().manual_seed(0)).shape == (2, 3)
