"Guidance at every real weight: against the formula, in x0 and eps, for each kind of network, at odd and even batches."
import pytest
import torch
from torch import nn

from zerodiff.conditioning import ClassConditional
from zerodiff.guidance import guide
from zerodiff.sampling import ddim, dpmpp_2m, heun, sample, samplers
from zerodiff.schedule import GaussianMixture, Prediction, cosine_schedule
from zerodiff.training import Denoiser
from zerodiff.unet import UNet

WEIGHTS = (-10, -1, 0, .5, 1, 6, 10)
schedule = cosine_schedule()


def shaken(network):
    "The network in float64 with random weights: a new UNet answers 0 to everything."
    torch.manual_seed(0)
    for p in network.double().requires_grad_(False).parameters(): p.normal_(std=.1)
    return network

def conditional(): return shaken(ClassConditional(UNet(16, (1,), cond_dim=8), 5))

def inputs(n):
    rng = torch.Generator().manual_seed(n)
    t = torch.tensor([950, 500, 30, 700, 100])[:n]
    return torch.randn(n, 3, 8, 8, generator=rng, dtype=torch.float64), t, torch.arange(n)


class Counting(nn.Module):
    def __init__(self, network): super().__init__(); self.network, self.calls = network, []
    def null(self, n, device=None): return self.network.null(n, device)
    def forward(self, x, t, cond=None):
        self.calls.append(len(x))
        return self.network(x, t, cond)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("w", WEIGHTS)
def test_formula(w, predicts, n):
    "eps_w = eps_null + w (eps_c - eps_null), and the same in x0, from two plain calls; x0 and eps make x_t."
    d, (x, t, c) = Denoiser(conditional(), schedule, predicts), inputs(n)
    got, with_c, without = guide(d, c, scale=w)(x, t), d(x, t, c), d(x, t)
    assert isinstance(got, Prediction)
    for g, a, b in zip(got, with_c, without):
        want = b + w * (a - b)
        assert torch.allclose(g, want, atol=1e-9 * want.abs().max())
    alpha, sigma = schedule.at(t, x)
    assert torch.allclose(alpha * got.x0 + sigma * got.eps, x, atol=1e-9)


@pytest.mark.parametrize("w", WEIGHTS)
def test_clipping_comes_after_mixing(w):
    d, (x, t, c) = Denoiser(conditional(), schedule, "v", clip=1.), inputs(3)
    open_ = guide(Denoiser(d.network, schedule, "v"), c, scale=w)(x, t)
    got = guide(d, c, scale=w)(x, t)
    assert torch.allclose(got.x0, open_.x0.clamp(-1, 1), atol=1e-9)
    alpha, sigma = schedule.at(t, x)
    assert torch.allclose(alpha * got.x0 + sigma * got.eps, x, atol=1e-9)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_and_zero_are_plain_to_the_last_bit(n, predicts):
    d, (x, t, c) = Denoiser(conditional().float(), schedule, predicts, clip=1.), inputs(n)
    x = x.float()
    for one in (1, 1., True): assert all(map(torch.equal, guide(d, c, scale=one)(x, t), d(x, t, c)))
    for zero in (0, 0., -0.): assert all(map(torch.equal, guide(d, c, scale=zero)(x, t), d(x, t)))
    assert all(map(torch.equal, guide(d, c)(x, t), d.given(c)(x, t)))               # the default is plain


@pytest.mark.parametrize("w, calls", [(1, [3]), (0, [3]), (1.5, [6]), (-3, [6]), (torch.ones(3), [6])])
def test_calls_of_the_network(w, calls):
    d, (x, t, c) = Denoiser(Counting(conditional()), schedule), inputs(3)
    guide(d, c, scale=w)(x, t)
    assert d.network.calls == calls


def test_a_weight_for_each_sample_equals_a_loop():
    d, (x, t, c) = Denoiser(conditional(), schedule), inputs(5)
    w = torch.tensor([-10., 0., .5, 1., 6.])
    together = guide(d, c, scale=w)(x, t)
    for i in range(5):
        alone = guide(d, c[i:i + 1], scale=w[i].item())(x[i:i + 1], t[i:i + 1])
        for a, b in zip(together, alone): assert torch.allclose(a[i:i + 1], b, atol=1e-9)


def test_one_int_for_t():
    d, (x, _, c) = Denoiser(conditional(), schedule), inputs(3)
    for w in (0, 1, 4., torch.tensor([1., 2., 3.])):
        assert all(map(torch.equal, guide(d, c, scale=w)(x, 400), guide(d, c, scale=w)(x, torch.full((3,), 400))))


@pytest.mark.parametrize("sampler", samplers.values(), ids=samplers)
@pytest.mark.parametrize("w", [-2., 1, torch.tensor([0., 1., 5.])], ids=["-2", "1", "each"])
def test_all_samplers(sampler, w):
    "Guided sampling equals sampling from a hand-written denoiser that mixes two plain calls."
    d, (_, _, c) = Denoiser(conditional(), schedule, clip=1.), inputs(3)
    w4 = w.view(3, 1, 1, 1) if isinstance(w, torch.Tensor) else w
    def by_hand(x, t):
        x = x.double()
        return Prediction(*(v.float() for v in d.prediction(d.raw(x, t) + w4 * (d.raw(x, t, c) - d.raw(x, t)), x, t)))
    inner = guide(d, c, scale=w)
    def ours(x, t): return Prediction(*(v.float() for v in inner(x.double(), t)))
    a, b = (sample(f, (3, 3, 8, 8), schedule, 5, sampler, seed=3, device="cpu") for f in (ours, by_hand))
    assert torch.allclose(a, b, atol=1e-4) and a.isfinite().all()


def test_heun_calls_both_branches_at_once():
    d, (x, _, c) = Denoiser(Counting(conditional()), schedule), inputs(2)
    for _ in heun(guide(d, c, scale=3.), x, schedule, 4): pass
    assert d.network.calls == [4] * 7                              # two calls a step, one at the last


def test_vectors_as_conditions():
    "A UNet that takes vectors has no null of its own: None means it gets none, or a vector may be given."
    d, (x, t, _) = Denoiser(shaken(UNet(16, (1,), cond_dim=8)), schedule), inputs(2)
    c, other = torch.randn(2, 2, 8, dtype=torch.float64).unbind(0)
    for null in (None, other):
        for w in WEIGHTS:
            want = d.raw(x, t, null) + w * (d.raw(x, t, c) - d.raw(x, t, null))
            assert torch.allclose(guide(d, c, null, w)(x, t).x0, d.prediction(want, x, t).x0, atol=1e-9 * max(1, want.abs().max()))
    counting = Denoiser(CountingPlain(d.network), schedule)
    guide(counting, c, scale=2.)(x, t)
    assert counting.network.calls == [2, 2]                        # None cannot stand in one batch with vectors
    guide(counting, c, other, 2.)(x, t)
    assert counting.network.calls[2:] == [4]


class CountingPlain(nn.Module):
    def __init__(self, network): super().__init__(); self.network, self.calls = network, []
    def forward(self, x, t, cond=None): self.calls.append(len(x)); return self.network(x, t, cond)


def test_another_null_is_a_negative_prompt():
    d, (x, t, c) = Denoiser(conditional(), schedule), inputs(3)
    away = torch.tensor([4, 4, 4])
    want = d(x, t, away).eps + 3 * (d(x, t, c).eps - d(x, t, away).eps)
    assert torch.allclose(guide(d, c, null=away, scale=3.)(x, t).eps, want, atol=1e-9 * want.abs().max())


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), torch.ones(2), torch.ones(3, 1), torch.tensor(2.), torch.tensor([1., 2., float("nan")])])
def test_weights_that_cannot_be(scale):
    d, (_, _, c) = Denoiser(conditional(), schedule), inputs(3)
    with pytest.raises(ValueError, match="scale: got"): guide(d, c, scale=scale)


def test_lengths_that_do_not_fit():
    d, (x, t, c) = Denoiser(conditional(), schedule), inputs(3)
    for w in (0, 1, 3.):
        with pytest.raises(ValueError, match="cond: got conditions for 2"): guide(d, c[:2], scale=w)(x, t)
    with pytest.raises(ValueError, match="null: got shape"): guide(d, c, null=c[:1], scale=2.)
    with pytest.raises(ValueError, match="expected 0..4"): guide(d, c + 5, scale=2.)(x, t)


def test_bfloat16_stays_close():
    d, (x, t, c) = Denoiser(conditional().float(), schedule), inputs(3)
    x = x.float()
    with torch.autocast("cpu", torch.bfloat16): low = guide(d, c, scale=3.)(x, t)
    full = guide(d, c, scale=3.)(x, t)
    assert low.x0.dtype == torch.float32 and (low.x0 - full.x0).norm() / full.x0.norm() < .05


class Exact(nn.Module):
    "Exact eps of one-Gaussian classes 0 and 1 in 1-D, or of both together (2)."
    def __init__(self):
        super().__init__()
        means = torch.tensor([[-1.], [1.]], dtype=torch.float64)
        self.mixtures = [GaussianMixture(means[:1], .3), GaussianMixture(means[1:], .3), GaussianMixture(means, .3)]
    def null(self, n, device=None): return torch.full((n,), 2)
    def forward(self, x, t, cond=None):
        eps = torch.stack([m.denoise(x, t, schedule).eps for m in self.mixtures])
        return eps[self.null(len(x)) if cond is None else cond, torch.arange(len(x))]


@pytest.mark.parametrize("w", WEIGHTS)
def test_guided_eps_is_the_gradient_of_the_tilted_density(w):
    network, x = Exact(), torch.linspace(-3, 3, 21, dtype=torch.float64)[:, None].requires_grad_()
    for t in (50, 400, 900):
        log_p, log_c = (network.mixtures[k].log_prob(x, t, schedule) for k in (2, 0))
        score = torch.autograd.grad((log_p + w * (log_c - log_p)).sum(), x)[0]
        got = guide(Denoiser(network, schedule, "eps"), torch.zeros(21, dtype=torch.int64), scale=w)(x.detach(), t).eps
        assert torch.allclose(got, -schedule.at(t, x)[1] * score, atol=1e-7)


def test_samples_go_where_the_weight_says():
    d, c = Denoiser(Exact(), schedule, "eps"), torch.zeros(400, dtype=torch.int64)
    share = {w: (sample(guide(d, c, scale=w), (400, 1), schedule, 40, seed=1, device="cpu") < 0).float().mean().item() for w in (-1, 0, 1, 4)}
    assert share[-1] < .3 and .4 < share[0] < .6 and share[1] > .98 and share[4] > .98
