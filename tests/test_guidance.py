"""Guidance at every real weight: against the formula, in x0 and eps, for each kind of network, at odd and even batches;
then what acts on top of it: rescaling, interval, projection, CFG++; then the measures."""
import pytest
import torch
from torch import nn

from zerodiff.conditioning import ClassConditional
from zerodiff.guidance import branches, clipped_share, colourfulness, diversity, edges, guide, guide_plus, guided_raw
from zerodiff.sampling import ddim, heun, levels, path, sample, samplers
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


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), torch.ones(2), torch.ones(3, 1), torch.tensor([1., 2., float("nan")])])
def test_weights_that_cannot_be(scale):
    "Said at once, with the argument's name; of a function of t, when it is asked."
    d, (x, t, c) = Denoiser(conditional(), schedule), inputs(3)
    for name in ("scale", "rescale"):
        with pytest.raises(ValueError, match=f"^{name}: got"): guide(d, c, **{name: scale})
        asked = guide(d, c, **{"scale": 2., name: lambda t: scale})
        with pytest.raises(ValueError, match=f"^{name}: got"): asked(x, t)
    with pytest.raises(ValueError, match="^scale: got"): guide_plus(d, c, scale=scale)


def test_lengths_that_do_not_fit():
    d, (x, t, c) = Denoiser(conditional(), schedule), inputs(3)
    for w in (0, 1, 3.):
        with pytest.raises(ValueError, match="cond: got conditions for 2"): guide(d, c[:2], scale=w)(x, t)
    with pytest.raises(ValueError, match="null: got shape"): guide(d, c, null=c[:1], scale=2.)
    with pytest.raises(ValueError, match="expected 0..4"): guide(d, c + 5, scale=2.)(x, t)


OPTIONS = [dict(), dict(rescale=.7), dict(project=True), dict(rescale=.7, output="eps", interval=(20, 960))]

@pytest.mark.parametrize("how", OPTIONS, ids=str)
def test_bfloat16_and_float32_stay_close(how):
    "Against float64: float32 to 1e-5, bfloat16 (autocast) to 5 %; the answers are float32, since the mixing is done there."
    d, (x, t, c) = Denoiser(conditional(), schedule), inputs(3)
    exact = guide(d, c, scale=3., **how)(x, t).x0
    d, x = Denoiser(conditional().float(), schedule), x.float()
    full = guide(d, c, scale=3., **how)(x, t)
    with torch.autocast("cpu", torch.bfloat16): low = guide(d, c, scale=3., **how)(x, t)
    for got, within in ((full, 1e-5), (low, .05)):
        assert got.x0.dtype == got.eps.dtype == torch.float32
        assert (got.x0 - exact).norm() / exact.norm() < within
    assert not torch.equal(low.x0, full.x0)


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


# --- rescaling --------------------------------------------------------------------------------------------------------

PHIS = (-10, -1, .5, .7, 1, 6, 10)

def two_calls(d, x, t, c, output=None):
    "The outputs with and without the condition, of the kind `output`, by two plain calls."
    turn = getattr(schedule, f"to_{output or d.predicts}")
    return tuple(turn(d.raw(x, t, cond), x, t, d.predicts) for cond in (c, None))


@pytest.mark.parametrize("how", [dict(), dict(project=True), dict(output="eps"), dict(interval=(50, 900))], ids=str)
@pytest.mark.parametrize("w", WEIGHTS)
def test_phi_of_zero_changes_nothing(w, how):
    d, (x, t, c) = Denoiser(conditional(), schedule, clip=1.), inputs(3)
    plain = guide(d, c, scale=w, **how)(x, t)
    assert all(map(torch.equal, plain, guide(d, c, scale=w, rescale=0, **how)(x, t)))
    for zero in (torch.zeros(3), lambda t: torch.zeros(len(t))):                   # the same numbers, by the long way
        for a, b in zip(plain, guide(d, c, scale=w, rescale=zero, **how)(x, t)): assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("output", ["eps", "x0", "v"])
@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("w", [-10, 0, .5, 6, 10])
def test_phi_is_a_scalar_gain(w, phi, output):
    "Every value of a sample is multiplied by the same g = 1 + phi (r - 1), r = std(cond) / std(guided), to 1e-6, in float32."
    d, (x, t, c) = Denoiser(conditional().float(), schedule), inputs(3)
    x = x.float()
    null = d.network.null(3)
    with_cond, _ = (getattr(schedule, f"to_{output}")(raw, x, t, "v") for raw in branches(d, x, t, c, null))
    guided, got = (guided_raw(d, x, t, c, null, float(w), p, output=output) for p in (0., float(phi)))
    r = with_cond.double().flatten(1).std(1) / guided.double().flatten(1).std(1)
    assert (r - 1).abs().max() > 1e-4                              # so that there is something to see
    for want, u, g in zip(1 + phi * (r - 1), guided.double(), got.double()):
        found = (g * u).sum() / u.square().sum()                   # the scalar nearest to their ratio
        assert abs(found - want) <= 1e-6 * (1 + abs(phi))
        assert (g - found * u).norm() <= 1e-6 * (g.norm() + u.norm())


def test_the_gain_is_zero_at_phi_of_one_over_one_less_r_and_negative_past_it():
    d, (x, t, c) = Denoiser(conditional(), schedule), inputs(3)
    with_cond, without = two_calls(d, x, t, c)
    guided = without + 6 * (with_cond - without)
    r = with_cond.flatten(1).std(1) / guided.flatten(1).std(1)
    critical = 1 / (1 - r)                                          # g at k times this is 1 - k
    null = d.network.null(3)
    assert guided_raw(d, x, t, c, null, 6., critical).abs().max() < 1e-9 * guided.abs().max()
    assert torch.allclose(guided_raw(d, x, t, c, null, 6., 1.5 * critical), -.5 * guided, atol=1e-9 * guided.abs().max())


def test_phi_does_nothing_at_w_of_one():
    d, (x, t, c) = Denoiser(conditional(), schedule), inputs(3)
    for w in (1, torch.ones(3)):
        for phi in (-10., .7, torch.tensor([3., -3., 10.])):
            for a, b in zip(guide(d, c, scale=w, rescale=phi)(x, t), d(x, t, c)): assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("phi", PHIS)
def test_rescaling_as_in_diffusers(phi):
    rescale_noise_cfg = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    for predicts in ("eps", "x0", "v"):
        d, (x, t, c) = Denoiser(conditional(), schedule, predicts), inputs(3)
        with_cond, without = two_calls(d, x, t, c)
        for w in WEIGHTS:
            want = rescale_noise_cfg(without + w * (with_cond - without), with_cond, phi)
            got = guided_raw(d, x, t, c, d.network.null(3), w, float(phi))
            assert (got - want).abs().max() <= 1e-5 * want.abs().max()


class Lucid(nn.Module):
    "A Unet of denoising-diffusion-pytorch as a network of ours: cond None is its null."
    def __init__(self, unet): super().__init__(); self.unet = unet
    def forward(self, x, t, cond=None):
        keep = cond is not None
        return self.unet(x, t, cond if keep else torch.zeros(len(x), dtype=torch.int64), cond_drop_prob=0. if keep else 1.)


@pytest.mark.parametrize("project", [False, True], ids=["plain", "projected"])
def test_as_in_denoising_diffusion_pytorch(project):
    "Its guidance at w other than 1 (there it breaks), for phi from -10 to 10, with and without its removal of the parallel part."
    lucid = pytest.importorskip("denoising_diffusion_pytorch.classifier_free_guidance")
    torch.manual_seed(0)
    unet = lucid.Unet(8, num_classes=5, dim_mults=(1, 2), attn_dim_head=4, attn_heads=2).requires_grad_(False).eval()
    d, (x, t, c) = Denoiser(Lucid(unet), schedule, "eps"), inputs(3)
    x = x.float()
    for w in (-10., 0., .5, 6.):
        for phi in (-10., 0., .7, 10.):
            want, _ = unet.forward_with_cond_scale(x, t, classes=c, cond_scale=w, rescaled_phi=phi, remove_parallel_component=project)
            got = guided_raw(d, x, t, c, None, w, phi, project=project)
            assert (got - want).abs().max() < 1e-5 * max(1, want.abs().max())


def test_w_and_phi_for_each_sample_equal_a_loop():
    w, phi = torch.tensor([-10., 0., .5, 1., 6.]), torch.tensor([10., -10., .7, 3., 1.])
    for how in (dict(), dict(project=True), dict(output="eps"), dict(interval=(100, 700)), dict(output="x0", project=True, interval=(60, 960))):
        d, (x, t, c) = Denoiser(conditional(), schedule, clip=1.), inputs(5)
        together = guide(d, c, scale=w, rescale=phi, **how)(x, t)
        for i in range(5):
            one = slice(i, i + 1)
            alone = guide(d, c[one], scale=w[i].item(), rescale=phi[i].item(), **how)(x[one], t[one])
            for a, b in zip(together, alone): assert torch.allclose(a[one], b, atol=1e-9), (how, i)


def test_functions_of_t():
    "They get t as (B,), and may answer a number, or a value for each sample."
    d, (x, t, c) = Denoiser(conditional(), schedule), inputs(3)
    want = guide(d, c, scale=1 + t / 100, rescale=t / 500)(x, t)
    got = guide(d, c, scale=lambda t: 1 + t / 100, rescale=lambda t: t / 500)(x, t)
    for a, b in zip(got, want): assert torch.allclose(a, b, atol=1e-12)
    number = guide(d, c, scale=lambda t: 3. if t[0] > 400 else 1)
    for step, w in ((700, 3.), (300, 1)):
        for a, b in zip(number(x, step), guide(d, c, scale=w)(x, step)): assert torch.equal(a, b)


# --- interval ---------------------------------------------------------------------------------------------------------

def test_both_limits_of_the_interval_belong_to_it():
    d, (x, _, c) = Denoiser(conditional(), schedule), inputs(3)
    f, on, off = guide(d, c, scale=6., interval=(200, 600)), guide(d, c, scale=6.), guide(d, c)
    for t in (200, 201, 400, 599, 600): assert all(map(torch.equal, f(x, t), on(x, t))), t
    for t in (0, 199, 601, 999): assert all(map(torch.equal, f(x, t), off(x, t))), t
    t = torch.tensor([199, 600, 200])                              # in one batch
    for a, i, o in zip(f(x, t), on(x, t), off(x, t)):
        assert torch.allclose(a[0], o[0], atol=1e-9) and torch.allclose(a[1:], i[1:], atol=1e-9) and not torch.allclose(i[0], o[0], atol=1e-3)


@pytest.mark.parametrize("w", [0, -3., torch.tensor([0., 2., 5.])], ids=["0", "-3", "each"])
def test_outside_the_interval_the_condition_alone_is_asked(w):
    d, (x, _, c) = Denoiser(Counting(conditional()), schedule), inputs(3)
    f = guide(d, c, scale=w, interval=(200, 600))
    for t in (100, 700): f(x, t)
    assert d.network.calls == [3, 3]
    assert all(map(torch.equal, f(x, 100), d(x, 100, c)))


@pytest.mark.parametrize("interval", [(600, 200), (1,), (1, 2, 3)])
def test_intervals_that_cannot_be(interval):
    with pytest.raises(ValueError, match="^interval: got"): guide(Denoiser(conditional(), schedule), torch.arange(3), scale=2., interval=interval)


# --- projection and the output it acts on -----------------------------------------------------------------------------

@pytest.mark.parametrize("output", [None, "eps", "x0", "v"])
@pytest.mark.parametrize("w", WEIGHTS)
def test_projection(w, output):
    "Sample by sample, with plain dot products: the push loses its part along the conditional output."
    d, (x, t, c) = Denoiser(conditional(), schedule), inputs(3)
    with_cond, without = two_calls(d, x, t, c, output)
    got = guided_raw(d, x, t, c, d.network.null(3), w, project=True, output=output)
    for a, b, g in zip(with_cond, without, got):
        a, b, g = a.flatten(), b.flatten(), g.flatten()
        unit = a / a.norm()
        push = (a - b) - torch.dot(a - b, unit) * unit
        assert torch.allclose(g, a + (w - 1) * push, atol=1e-9 * (1 + abs(w)) * a.norm())
        assert abs(torch.dot(g - a, unit)) < 1e-9 * (1 + abs(w)) * a.norm()
        assert abs(torch.dot(a - b, unit)) > .01 * (a - b).norm()                                  # there was something to remove


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_without_rescaling_and_projection_the_output_does_not_matter(predicts):
    d, (x, t, c) = Denoiser(conditional(), schedule, predicts), inputs(3)
    for w in WEIGHTS:
        want = guide(d, c, scale=w)(x, t)
        for output in ("eps", "x0", "v"):
            for a, b in zip(guide(d, c, scale=w, output=output)(x, t), want): assert torch.allclose(a, b, atol=1e-8 * (1 + b.abs().max()))


class Turned(nn.Module):
    "A network that says the same as that of `denoiser`, as eps, x0 or v."
    def __init__(self, denoiser, predicts): super().__init__(); self.denoiser, self.predicts = denoiser, predicts
    def null(self, n, device=None): return self.denoiser.network.null(n, device)
    def forward(self, x, t, cond=None):
        return getattr(schedule, f"to_{self.predicts}")(self.denoiser.raw(x, t, cond), x, t, self.denoiser.predicts)


@pytest.mark.parametrize("output", ["eps", "x0", "v"])
@pytest.mark.parametrize("how", [dict(rescale=.7), dict(rescale=-5.), dict(project=True), dict(project=True, rescale=torch.tensor([.5, 2., -1.]))], ids=str)
def test_output_is_what_a_network_of_that_kind_would_give(how, output):
    "A v network asked for output='eps' is guided as an eps network that says the same."
    v, (x, t, c) = Denoiser(conditional(), schedule, "v"), inputs(3)
    other = Denoiser(Turned(v, output), schedule, output)
    want, got = guide(other, c, scale=6., **how)(x, t), guide(v, c, scale=6., output=output, **how)(x, t)
    for a, b in zip(got, want): assert torch.allclose(a, b, atol=1e-8 * (1 + b.abs().max()))
    alpha, sigma = schedule.at(t, x)
    assert torch.allclose(alpha * got.x0 + sigma * got.eps, x, atol=1e-8)
    if output != "v": assert not torch.allclose(got.x0, guide(v, c, scale=6., **how)(x, t).x0, atol=1e-3)      # it does matter


def test_an_output_that_is_none():
    with pytest.raises(ValueError, match="^output: got 'score'"): guide(Denoiser(conditional(), schedule), torch.arange(3), output="score")


@pytest.mark.parametrize("how", OPTIONS + [dict(rescale=torch.tensor([10., -10., .7]), project=True)], ids=str)
def test_clipping_comes_last(how):
    d, (x, t, c) = Denoiser(conditional(), schedule, "v", clip=1.), inputs(3)
    got, free = (guide(Denoiser(d.network, schedule, "v", clip), c, scale=6., **how)(x, t) for clip in (1., None))
    assert torch.allclose(got.x0, free.x0.clamp(-1, 1), atol=1e-9) and free.x0.abs().max() > 1
    alpha, sigma = schedule.at(t, x)
    assert torch.allclose(alpha * got.x0 + sigma * got.eps, x, atol=1e-9)


@pytest.mark.parametrize("sampler", samplers.values(), ids=samplers)
def test_all_samplers_take_every_option(sampler):
    "Three pictures with three phi in one batch are the three drawn alone."
    d, c, phi = Denoiser(conditional(), schedule, clip=1.), torch.arange(3), torch.tensor([-2., .7, 3.])
    how = dict(interval=(100, 900), project=True, output="eps")
    def single(f): return lambda x, t: Prediction(*(v.float() for v in f(x.double(), t)))
    draw = lambda c, phi, start: sample(single(guide(d, c, scale=lambda t: 2 + t / 500, rescale=phi, **how)), (len(c), 3, 8, 8), schedule, 5, sampler, seed=3, start=start, device="cpu")
    together = draw(c, phi, 0)
    assert together.isfinite().all()
    for i in range(3): assert torch.allclose(draw(c[i:i + 1], phi[i].item(), i), together[i:i + 1], atol=1e-4)


# --- CFG++ ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("lam", [0, .3, .6, 1, torch.tensor([0., .5, 1.])], ids=str)
def test_cfg_plus_plus(lam):
    "x0 from the guided output, eps from the unconditional one, by one call."
    d, (x, t, c) = Denoiser(Counting(conditional()), schedule, clip=1.), inputs(3)
    got = guide_plus(d, c, scale=lam)(x, t)
    assert d.network.calls == [6]
    assert torch.allclose(got.x0, guide(d, c, scale=lam)(x, t).x0, atol=1e-9) and torch.allclose(got.eps, d(x, t).eps, atol=1e-9)
    with pytest.raises(ValueError, match="cond: got conditions for 3"): guide_plus(d, c)(x[:2], t[:2])


def test_cfg_plus_plus_is_for_ddim():
    "The other samplers read x0 alone, or mix the two, and would silently make something else of it."
    d = Denoiser(conditional(), schedule).float()
    for name in samplers:
        if name == "ddim": assert sample(guide_plus(d, torch.arange(2)), (2, 3, 8, 8), schedule, 2, name).isfinite().all()
        else:
            with pytest.raises(ValueError, match=f"sampler: got {name}, expected ddim"): sample(guide_plus(d, torch.arange(2)), (2, 3, 8, 8), schedule, 2, name)


def test_labels_are_conditions_for_networks_that_take_more():
    from zerodiff.text import ClassOrVector
    d, (x, t, c) = Denoiser(shaken(ClassOrVector(UNet(16, (1,), cond_dim=8), 5, 4)).float(), schedule), inputs(3)
    x = x.float()
    for make in (guide, guide_plus):
        assert torch.equal(make(d, c, scale=2.)(x, t).x0, make(d, d.network.condition(c), scale=2.)(x, t).x0)


def test_conditions_go_where_the_pictures_are():
    "Tried on the device without memory, which is always another one."
    class Picky(nn.Module):
        def forward(self, x, t, cond):
            assert x.device == t.device == cond.device
            return x
    x, t, c = inputs(3)
    assert Denoiser(Picky(), schedule).raw(x.to("meta"), t, c).shape == x.shape


@pytest.mark.parametrize("steps", [5, 20])
def test_cfg_plus_plus_is_guidance_with_a_weight_for_each_step(steps):
    "Under DDIM without clipping: w = lambda / (1 - e^-h), h the step's rise of log(alpha / sigma)."
    d, c = Denoiser(Exact(), schedule, "eps"), torch.arange(40) % 2
    w = {}
    for t, s in path(schedule, steps):
        (a, b), (a_, b_) = levels(schedule, t), levels(schedule, s)
        w[t] = .6 / (1 - (b_ / a_) / (b / a))
    x = torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    *_, plus = ddim(guide_plus(d, c, scale=.6), x, schedule, steps)
    *_, same = ddim(guide(d, c, scale=lambda t: w[int(t[0])]), x, schedule, steps)
    *_, other = ddim(guide(d, c, scale=.6), x, schedule, steps)
    assert torch.allclose(plus.x, same.x, atol=1e-6) and not torch.allclose(plus.x, other.x, atol=.05)


# --- measures ---------------------------------------------------------------------------------------------------------

def test_colourfulness():
    grey = torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4) * 2 - 1
    red = torch.tensor([1., -1, -1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert colourfulness(torch.cat([grey, red, (grey + red) / 2])).tolist() == pytest.approx([0, 1, .5])


def test_clipped_share_counts_what_a_byte_holds_as_0_or_255():
    x = torch.zeros(2, 3, 4, 4)
    x[0, 0, 0, :3] = torch.tensor([1., -1., 1.7])
    x[0, 1, 0, 0] = 253 / 127.5 - 1                                # byte 253: not at the end
    assert clipped_share(x).tolist() == pytest.approx([3 / 48, 0])


def test_edges():
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2. - 1
    ramp = torch.linspace(-1, 1, 5).expand(3, 5, 5)                # rises by .5 across, by 0 down
    assert edges(board.expand(1, 3, 4, 4)).tolist() == [1] and edges(ramp[None]).tolist() == pytest.approx([.125])


def test_diversity():
    x = torch.tensor([[0., 0], [5, 5], [3, 4], [3, 4], [9, 9]])
    labels = torch.tensor([7, 2, 7, 7, 3])                         # class 7: three pictures; 2 and 3: one each
    assert diversity(x, labels).tolist() == pytest.approx([(5 + 5 + 0) / 3 / 2 ** .5])
    assert diversity(x.view(5, 2, 1, 1), labels).tolist() == pytest.approx(diversity(x, labels).tolist())
    assert len(diversity(x, torch.tensor([1, 0, 1, 1, 0]))) == 2
    with pytest.raises(ValueError, match="no class twice"): diversity(x, torch.arange(5))
    with pytest.raises(ValueError, match="labels: got 2 for 5"): diversity(x, torch.arange(2))
