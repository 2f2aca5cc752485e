"""The noise schedule: agreement with diffusers, frozen numbers, properties, messages; and the Gaussian mixture."""
import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from zerodiff.schedule import (ForwardProcess, GaussianMixture, NoiseSchedule, Prediction, cosine_schedule, from_betas,
                               linear_schedule, make_schedule, sigmoid_schedule, timesteps)

MAKERS = {"linear": linear_schedule, "cosine": cosine_schedule, "sigmoid": sigmoid_schedule}
SPACINGS = ("trailing", "leading", "linspace")
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def rng(seed=0): return torch.Generator().manual_seed(seed)

def normal(*shape, seed=0, dtype=torch.float32): return torch.randn(shape, generator=rng(seed), dtype=dtype)


# ---- agreement with diffusers, which counts t from 0 as we do

THEIRS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}

def theirs(name, T, cls=DDPMScheduler, **kw):
    scale = 1000 / T
    return cls(num_train_timesteps=T, beta_schedule=THEIRS[name], beta_start=1e-4 * scale, beta_end=.02 * scale, **kw)

@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("T", (100, 250, 1000))
@pytest.mark.parametrize("cls", (DDPMScheduler, DDIMScheduler))
def test_parity_alpha_bar_add_noise_velocity(name, T, cls):
    ours, other = MAKERS[name](T), theirs(name, T, cls)
    assert torch.allclose(ours.alpha_bar, other.alphas_cumprod.double(), rtol=0, atol=1e-5)
    t = torch.arange(T)
    x0, eps = normal(T, 3, 4, 4, seed=1), normal(T, 3, 4, 4, seed=2)
    x_t = ours.add_noise(x0, t, eps)
    assert torch.allclose(x_t, other.add_noise(x0, eps, t), rtol=0, atol=1e-5)
    v = ours.at(t, x0)[0] * eps - ours.at(t, x0)[1] * x0
    assert torch.allclose(v, other.get_velocity(x0, eps, t), rtol=0, atol=1e-5)
    ours64 = ours.to_v(x0.double(), ours.add_noise(x0.double(), t, eps.double()), t, "x0")
    assert torch.allclose(ours64.float(), other.get_velocity(x0, eps, t), rtol=0, atol=1e-5)

@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("T", (50, 240, 1000))
def test_parity_timesteps_where_steps_divide_T(T, spacing):
    for steps in (n for n in range(2, T + 1) if T % n == 0):
        for cls in DDPMScheduler, DDIMScheduler:
            other = theirs("linear", T, cls, timestep_spacing=spacing)
            other.set_timesteps(steps)
            assert timesteps(T, steps, spacing).tolist() == other.timesteps.tolist(), (cls.__name__, steps)


# ---- frozen numbers, from the formulas in 50-digit arithmetic (mpmath), independent of torch and of diffusers

GOLDEN = {      # alpha_bar at t = 0, 1, T/4, T/2, T-2, T-1
    ("linear", 1000): (0.9999, 0.999780092072, 0.521423030619, 0.077796658365, 4.11819363814e-5, 4.03582976538e-5),
    ("linear", 50): (0.998, 0.987897795918, 0.504827206484, 0.0549215115966, 1.2907942832e-5, 7.74476569923e-6),
    ("cosine", 1000): (0.999958715775, 0.999912575927, 0.845887986497, 0.492285172449, 2.42876690703e-6, 2.42876690703e-9),
    ("cosine", 50): (0.998252486466, 0.994569978238, 0.835620576951, 0.462706862017, 0.000971193029871, 9.71193029871e-7),
    ("sigmoid", 1000): (0.9996997208, 0.999397807367, 0.849863009183, 0.498342817882, 0.000300279199749, 3.00279199749e-7),
    ("sigmoid", 50): (0.993674778471, 0.986633689288, 0.840778044035, 0.466895973512, 0.00632522152856, 6.32522152856e-6),
}

@pytest.mark.parametrize("name, T", GOLDEN)
def test_golden_alpha_bar(name, T):
    got = MAKERS[name](T).alpha_bar[[0, 1, T // 4, T // 2, T - 2, T - 1]]
    assert torch.allclose(got, torch.tensor(GOLDEN[name, T], dtype=torch.float64), rtol=1e-9, atol=0)

def test_golden_add_noise_and_conversions():
    """x0 = .5, eps = -1 at t = 500 of the cosine schedule, from alpha_bar = 0.492285172449 in the same arithmetic."""
    s, one = cosine_schedule(), torch.ones(1, 1, dtype=torch.float64)
    x_t = s.add_noise(.5 * one, 500, -one)
    assert x_t.item() == pytest.approx(-0.361725922171, abs=1e-9)
    assert s.to_v(-one, x_t, 500, "eps").item() == pytest.approx(-1.05790092033, abs=1e-9)
    assert s.snr(500).item() == pytest.approx(0.969609603137, rel=1e-9)

@pytest.mark.parametrize("spacing, T, steps, expected", [
    ("trailing", 1000, 5, [999, 799, 599, 399, 199]), ("leading", 1000, 5, [800, 600, 400, 200, 0]),
    ("linspace", 1000, 5, [999, 749, 500, 250, 0]), ("trailing", 1000, 3, [999, 666, 332]),
    ("leading", 10, 3, [6, 3, 0]), ("linspace", 10, 1, [9]), ("trailing", 10, 1, [9]), ("leading", 10, 1, [0])])
def test_golden_timesteps(spacing, T, steps, expected): assert timesteps(T, steps, spacing).tolist() == expected


# ---- properties

@every_maker
@settings(deadline=None, max_examples=40)
@given(T=st.integers(50, 1000))
def test_schedules_fall_and_end_in_noise(make, T):
    s = make(T)
    assert s.T == T == len(s.alpha_bar) and s.alpha_bar.dtype == torch.float64
    assert (s.alpha_bar.diff() < 0).all()
    assert 0 < s.alpha_bar[-1] < 1e-3 and .97 < s.alpha_bar[0] < 1
    betas = 1 - s.alpha_bar[1:] / s.alpha_bar[:-1]
    assert betas.max() <= .999 + 1e-12

@every_maker
def test_the_shortest_schedules_work(make):
    for T in range(2, 50): assert (make(T).alpha_bar.diff() < 0).all()

@pytest.mark.parametrize("name", ("cosine", "sigmoid"))
@pytest.mark.parametrize("T", (50, 100, 250, 256, 1000))
def test_the_clip_bites_exactly_once(name, T):
    a = torch.cat([torch.ones(1), MAKERS[name](T).alpha_bar])
    assert ((1 - a[1:] / a[:-1]) > .999 - 1e-9).nonzero().flatten().tolist() == [T - 1]

def test_unscaled_linear_is_what_the_check_refuses():
    for T, last in (200, .132), (50, .603):
        unscaled = from_betas(torch.linspace(1e-4, .02, T)).alpha_bar[-1]
        assert unscaled == pytest.approx(last, abs=5e-4) and unscaled > 1e-3
        assert linear_schedule(T).alpha_bar[-1] < 1e-3

@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 2e-5), (torch.float64, 1e-12)))
@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(sorted(MAKERS)), T=st.sampled_from((50, 200, 1000)), u=st.floats(0, 1), seed=st.integers(0, 9))
def test_round_trips(dtype, tolerance, name, T, u, seed):
    """Whatever is predicted, to_x0, to_eps and to_v give the truth, to rounding times what the division by alpha or sigma does to it."""
    s, t = MAKERS[name](T), torch.tensor([int(u * (T - 1))])
    x0, eps = normal(1, 3, 8, 8, seed=seed, dtype=dtype), normal(1, 3, 8, 8, seed=seed + 100, dtype=dtype)
    alpha, sigma = s.at(t, x0)
    x_t, v = s.add_noise(x0, t, eps), alpha * eps - sigma * x0
    truth = {"x0": x0, "eps": eps, "v": v}
    for predicts, pred in truth.items():
        gain = 1 + {"x0": 1 / sigma, "eps": 1 / alpha, "v": torch.zeros(())}[predicts].max().item()
        for to in truth:
            got = getattr(s, f"to_{to}")(pred, x_t, t, predicts)
            assert got.dtype == dtype and got.shape == x_t.shape
            assert (got - truth[to]).abs().max() < tolerance * gain, (predicts, to)

@every_maker
def test_v_is_the_derivative_along_the_circle(make):
    s, t = make(), torch.arange(1000)
    x0, eps = normal(1000, 4, dtype=torch.float64), normal(1000, 4, seed=1, dtype=torch.float64)
    alpha, sigma = s.at(t, x0)
    phi = torch.atan2(sigma, alpha).expand(1000, 4).clone().requires_grad_()
    slope, = torch.autograd.grad((phi.cos() * x0 + phi.sin() * eps).sum(), phi)
    x_t = s.add_noise(x0, t, eps)
    assert (s.to_v(eps, x_t, t, "eps") - slope).abs().max() < 1e-9
    assert (s.to_v(x0, x_t, t, "x0") - slope).abs().max() < 1e-9

@every_maker
def test_add_noise_mean_and_variance(make):
    s, n = make(), 200_000
    for t in 0, 10, 500, 999:
        x_t = s.add_noise(torch.full((n,), .7), t, normal(n, seed=t))
        alpha, var = s.alpha_bar[t].sqrt(), 1 - s.alpha_bar[t]
        assert abs(x_t.mean() - .7 * alpha) < 5 * (var / n).sqrt()
        assert abs(x_t.var() / var - 1) < 5 * (2 / n) ** .5

def test_the_chain_of_single_steps_has_the_closed_form():
    a = cosine_schedule(50).alpha_bar
    betas = 1 - a / torch.cat([a.new_ones(1), a[:-1]])
    x, n = torch.full((100_000,), .7), 100_000
    for t, beta in enumerate(betas.tolist()):
        x = (1 - beta) ** .5 * x + beta ** .5 * normal(n, seed=t)
        assert abs(x.mean() - .7 * a[t].sqrt()) < 5 * ((1 - a[t]) / n).sqrt() and abs(x.var() / (1 - a[t]) - 1) < 5 * (2 / n) ** .5

@settings(deadline=None, max_examples=200)
@given(T=st.integers(1, 1200), share=st.floats(0, 1), spacing=st.sampled_from(SPACINGS))
def test_timesteps_properties(T, share, spacing):
    steps = 1 + round(share * (T - 1))
    t = timesteps(T, steps, spacing)
    assert t.dtype == torch.int64 and t.shape == (steps,) and (t.diff() < 0).all()
    first = (steps - 1) * (T // steps) if spacing == "leading" else T - 1
    assert t[0] == first and 0 <= t[-1] < T
    if spacing == "trailing": assert abs(t[-1] - (T / steps - 1)) <= .5
    elif steps > 1 or spacing == "leading": assert t[-1] == 0

def test_timesteps_for_every_small_T():
    for T in range(1, 41):
        for steps in range(1, T + 1):
            for spacing in SPACINGS: assert (timesteps(T, steps, spacing).diff() < 0).all(), (T, steps, spacing)
        assert all(torch.equal(timesteps(T, T, s), torch.arange(T).flip(0)) for s in SPACINGS)


# ---- shapes, dtypes, the clean end, configurations

def test_at_shapes_dtype_and_clean_end():
    s, like = cosine_schedule(), torch.zeros(4, 3, 2, 2, dtype=torch.bfloat16)
    alpha, sigma = s.at(torch.tensor([-1, 0, 5, 999]), like)
    assert alpha.shape == sigma.shape == (4, 1, 1, 1) and alpha.dtype == sigma.dtype == torch.bfloat16
    assert alpha[0] == 1 and sigma[0] == 0
    x, eps = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1)
    assert torch.equal(s.add_noise(x, -1, eps), x)
    t = torch.tensor([-1, 0, 5, 999])
    one_by_one = torch.cat([s.add_noise(x[i:i + 1], int(t[i]), eps[i:i + 1]) for i in range(4)])
    assert torch.equal(s.add_noise(x, t, eps), one_by_one)                   # every picture gets its own t

def test_steps_of_any_integer_type():
    "Bytes are no mask."
    s, t = cosine_schedule(10), torch.tensor([0, 9, 3])
    for dtype in (torch.uint8, torch.int32): assert torch.equal(s.snr(t.to(dtype)), s.snr(t))


def test_snr():
    s, t = cosine_schedule(), torch.arange(1000).reshape(10, 100)
    assert s.snr(t).shape == (10, 100) and s.snr(t).dtype == torch.float64
    assert torch.allclose(s.snr(t).flatten(), s.alpha_bar / (1 - s.alpha_bar), rtol=1e-12)
    assert s.snr(-1) == float("inf") and s.snr(3).shape == ()

def test_zero_terminal_snr_stays_finite():
    s = NoiseSchedule(torch.tensor([.9, .5, 0.]))
    x0, eps = normal(1, 5), normal(1, 5, seed=1)
    x_t = s.add_noise(x0, 2, eps)
    assert torch.equal(x_t, eps) and torch.equal(s.to_x0(-x0, x_t, 2, "v"), x0)
    assert s.to_x0(eps * 1.01, x_t, 2, "eps").isfinite().all() and s.snr(2) == 0

@every_maker
def test_config_makes_the_same_schedule_again(make):
    s = make(123)
    again = make_schedule(json.loads(json.dumps(s.config)))
    assert torch.equal(again.alpha_bar, s.alpha_bar) and again.config == s.config
    other = make_schedule({**s.config, "T": 77})
    assert other.T == 77 and s.config["T"] == 123

def test_arguments_reach_the_schedule():
    s = make_schedule(dict(name="sigmoid", T=100, start=-1, end=2, tau=.7))
    assert s.config == dict(name="sigmoid", T=100, start=-1, end=2, tau=.7)
    assert not torch.allclose(s.alpha_bar, sigmoid_schedule(100).alpha_bar, atol=1e-3)
    assert not torch.allclose(cosine_schedule(100, s=.1).alpha_bar, cosine_schedule(100).alpha_bar, atol=1e-3)


# ---- messages

x = torch.zeros(2, 3)
@pytest.mark.parametrize("call, error, message", [
    (lambda: timesteps(1000, 0), ValueError, r"steps: got 0, expected 1\.\.1000"),
    (lambda: timesteps(50, 51), ValueError, r"steps: got 51, expected 1\.\.50"),
    (lambda: timesteps(50, 5, "even"), ValueError, "spacing: got 'even', expected 'trailing'"),
    (lambda: linear_schedule(1), ValueError, "T: got 1, expected a whole number"),
    (lambda: cosine_schedule(0), ValueError, "T: got 0"),
    (lambda: sigmoid_schedule(12.5), ValueError, "T: got 12.5"),
    (lambda: sigmoid_schedule(start=3, end=-3), ValueError, "expected start < end"),
    (lambda: sigmoid_schedule(tau=0), ValueError, "tau > 0"),
    (lambda: make_schedule(dict(name="cubic", T=10)), ValueError, "got name 'cubic', expected one of linear, cosine, sigmoid"),
    (lambda: make_schedule(dict(T=10)), ValueError, "got name None"),
    (lambda: make_schedule(dict(name="linear", s=1)), TypeError, "s"),
    (lambda: NoiseSchedule(torch.ones(2, 2)), ValueError, r"alpha_bar: got shape \(2, 2\)"),
    (lambda: NoiseSchedule(torch.tensor([1.5, .5])), ValueError, r"alpha_bar: got 0\.5\.\.1\.5"),
    (lambda: NoiseSchedule(torch.tensor([.9, float("nan")])), ValueError, "alpha_bar: got nan"),
    (lambda: NoiseSchedule(torch.tensor([.5, .5])), ValueError, "alpha_bar: got values that do not fall"),
    (lambda: NoiseSchedule(torch.linspace(1, 0, 10)), ValueError, "some noise at the first step"),
    (lambda: cosine_schedule(10).add_noise(torch.zeros(2, 3, dtype=torch.uint8), 1, x), TypeError, "x: got torch.uint8, expected floats"),
    (lambda: cosine_schedule(10).add_noise(x, 10, x), ValueError, r"t: got 10\.\.10, expected steps within -1\.\.9"),
    (lambda: cosine_schedule(10).add_noise(x, torch.tensor([-2, 3]), x), ValueError, r"t: got -2\.\.3"),
    (lambda: cosine_schedule(10).add_noise(x, torch.tensor([.5, .1]), x), TypeError, "t: got torch.float32, expected integer"),
    (lambda: cosine_schedule(10).add_noise(x, torch.tensor([1, 2, 3]), x), ValueError, "t: got 3 steps for a batch of 2"),
    (lambda: cosine_schedule(10).to_x0(x, x, 1, "score"), ValueError, "predicts: got 'score', expected 'eps', 'x0' or 'v'"),
    (lambda: cosine_schedule(10).to_eps(x, x, 1, "score"), ValueError, "predicts: got 'score'"),
    (lambda: cosine_schedule(10).to_v(x, x, 1, "score"), ValueError, "predicts: got 'score'"),
    (lambda: GaussianMixture(torch.zeros(3), .1), ValueError, r"means: got shape \(3,\), expected \(K, D\)"),
    (lambda: GaussianMixture(torch.zeros(3, 2), [.1, .2]), ValueError, r"stds: got shape \(2,\), expected \(3,\)"),
    (lambda: GaussianMixture(torch.zeros(3, 2), 0.), ValueError, "stds: got 0, expected positive"),
    (lambda: GaussianMixture(torch.zeros(2, 2), 1., [1., -1.]), ValueError, "weights: got -1"),
])
def test_messages(call, error, message):
    with pytest.raises(error, match=message): call()


# ---- the Gaussian mixture, whose answers every other test leans on

def mixture(dtype=torch.float64, D=2):
    return GaussianMixture(normal(5, D, seed=7, dtype=dtype) * 1.5, torch.tensor([.1, .2, .3, .5, .8], dtype=dtype),
                           torch.tensor([1., 2., 3., 2., 2.], dtype=dtype))

@pytest.mark.parametrize("D", (1, 2, 5))
@pytest.mark.parametrize("t", (-1, 0, 200, 700, 999))
@every_maker
def test_mixture_score_is_the_gradient_of_its_log_density(make, t, D):
    m, s = mixture(D=D), make()
    x = (2 * normal(64, D, seed=3, dtype=torch.float64)).requires_grad_()
    slope, = torch.autograd.grad(m.log_prob(x, t, s).sum(), x)
    assert torch.allclose(m.score(x, t, s), slope, rtol=1e-9, atol=1e-9)

@pytest.mark.parametrize("t", (0, 200, 700, 999))
def test_mixture_denoiser_obeys_tweedie(t):
    """E[x0|x_t] = (x_t + sigma^2 score) / alpha, with the score by autograd, and x_t = alpha x0 + sigma eps."""
    m, s = mixture(), linear_schedule()
    x = (2 * normal(64, 2, seed=3, dtype=torch.float64)).requires_grad_()
    slope, = torch.autograd.grad(m.log_prob(x, t, s).sum(), x)
    alpha, sigma = s.at(t, x)
    said = m.denoise(x, t, s)
    assert isinstance(said, Prediction) and said.x0.shape == said.eps.shape == x.shape
    assert torch.allclose(said.x0, (x + sigma ** 2 * slope) / alpha, rtol=1e-8, atol=1e-8)
    assert torch.allclose(said.eps, -sigma * slope, rtol=1e-9, atol=1e-9)
    assert torch.allclose(alpha * said.x0 + sigma * said.eps, x, rtol=0, atol=1e-9)

def test_mixture_denoiser_without_noise_is_the_identity():
    x = normal(10, 2, dtype=torch.float64)
    said = mixture().denoise(x, -1, cosine_schedule())
    assert torch.allclose(said.x0, x) and (said.eps == 0).all()

@pytest.mark.parametrize("t", (-1, 300, 999))
def test_mixture_density_sums_to_one(t):
    axis = torch.linspace(-9, 9, 721, dtype=torch.float64)
    p = mixture().log_prob(torch.cartesian_prod(axis, axis), t, cosine_schedule()).exp()
    assert p.sum().item() * (18 / 720) ** 2 == pytest.approx(1, abs=1e-6)

def test_mixture_samples_have_its_mean_and_covariance():
    m, n = mixture(), 200_000
    x, w = m.sample(n, rng()), m.weights
    mean = w @ m.means
    cov = (w[:, None] * m.means).T @ m.means - mean[:, None] * mean + (w @ m.stds ** 2) * torch.eye(2)
    assert x.dtype == torch.float64 and x.shape == (n, 2)
    assert torch.allclose(x.mean(0), mean, atol=.02) and torch.allclose(x.T.cov(), cov, atol=.04)
    assert torch.equal(x[:10], m.sample(n, rng())[:10])

def test_mixture_weights_are_shares_of_the_sample():
    far = GaussianMixture(torch.tensor([[-50.], [0.], [50.]]), 1., [1, 2, 5])
    x, n = far.sample(80_000, rng()).flatten(), 80_000
    for lo, hi, share in (-99, -25, 1 / 8), (-25, 25, 2 / 8), (25, 99, 5 / 8):
        assert ((x > lo) & (x < hi)).double().mean().item() == pytest.approx(share, abs=5 * (share / n) ** .5)

def test_mixture_posterior_mean_beats_every_other_guess():
    """By regression: no affine correction of the denoiser's answer lowers its squared error."""
    m, s, t, n = mixture(), cosine_schedule(), 400, 100_000
    x0 = m.sample(n, rng(1))
    said = m.denoise(s.add_noise(x0, t, normal(n, 2, seed=2, dtype=torch.float64)), t, s).x0
    best = (said - x0).square().mean()
    for other in (said * 1.03, said * .97, said + .05, said - .05):
        assert (other - x0).square().mean() > best
    residual = (x0 - said) - (x0 - said).mean(0)
    assert ((residual * said).mean(0) / (residual.std(0) * said.std(0))).abs().max() < 5 / n ** .5

def test_mixture_takes_a_t_for_each_point_and_the_dtype_of_x():
    m, s = mixture(), cosine_schedule()
    x, t = normal(4, 2, dtype=torch.float64), torch.tensor([0, 10, 500, 999])
    for i in range(4):
        assert torch.allclose(m.score(x, t, s)[i], m.score(x[i:i + 1], int(t[i]), s)[0])
        assert torch.allclose(m.denoise(x, t, s).x0[i], m.denoise(x[i:i + 1], int(t[i]), s).x0[0])
    single = m.denoise(x.float(), t, s)
    assert single.x0.dtype == torch.float32 and torch.allclose(single.x0.double(), m.denoise(x, t, s).x0, atol=1e-4)
    assert mixture(torch.float32).sample(3, rng()).dtype == torch.float32

def test_one_blob_is_the_textbook_gaussian():
    """One Gaussian: E[x0|x_t] = m + alpha s^2 (x_t - alpha m) / (alpha^2 s^2 + sigma^2), worked out by hand for alpha = .6, sigma = .8."""
    m = GaussianMixture(torch.tensor([[1., -1.]], dtype=torch.float64), .5)
    s = ForwardProcess(torch.tensor([.36, .1]))                              # alpha = .6, sigma = .8, V = .09 + .64 = .73
    x = torch.tensor([[1.33, -.6]], dtype=torch.float64)                     # gaps .73 and 0
    assert torch.allclose(m.denoise(x, 0, s).x0, torch.tensor([[1.15, -1.]], dtype=torch.float64), atol=1e-7)
    assert torch.allclose(m.denoise(x, 0, s).eps, torch.tensor([[.8, 0.]], dtype=torch.float64), atol=1e-7)
    assert torch.allclose(m.score(x, 0, s), torch.tensor([[-1., 0.]], dtype=torch.float64), atol=1e-7)
