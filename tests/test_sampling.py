"""Samplers: parity with diffusers, golden vectors, closed forms on Gaussian mixtures, orders, randomness, errors.

`python tests/test_sampling.py` writes tests/golden/sampling.json anew, from the diffusers that is installed.
"""
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import zerodiff.sampling as sampling
from zerodiff.schedule import GaussianMixture, NoiseSchedule, Prediction, cosine_schedule, linear_schedule, timesteps
from zerodiff.sampling import Step, crosses, ddim, ddpm, dpmpp_2m, generators, half_log_snr, heun, levels, path, randn, sample, samplers

GOLDEN = Path(__file__).parent / "golden" / "sampling.json"
SCHEDULES = {"linear": (linear_schedule, "linear"), "cosine": (cosine_schedule, "squaredcos_cap_v2")}
ETAS = (0., .5, 1.)


def velocity(x, t):
    "A made-up network that predicts v: smooth, cheap, different at every t."
    t = torch.as_tensor(t, device=x.device).reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    return torch.tanh(1.3 * x + t / 700) - .4 * x


def denoiser(schedule):
    def denoise(x, t):
        v = velocity(x, t)
        return Prediction(schedule.to_x0(v, x, t, "v"), schedule.to_eps(v, x, t, "v"))
    return denoise


def start(shape=(2, 3, 4, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(11))


# ---------------------------------------------------------------- parity with diffusers, step by step

def theirs(name, kind, steps, exact_table=None, spacing="trailing"):
    "One of diffusers' schedulers, on its own float32 table of alpha_bar, or on a float64 one."
    diffusers = pytest.importorskip("diffusers")
    cls = dict(ddpm=diffusers.DDPMScheduler, ddim=diffusers.DDIMScheduler, dpmpp_2m=diffusers.DPMSolverMultistepScheduler)[name]
    more = dict(ddpm=dict(variance_type="fixed_small", clip_sample=False), ddim=dict(clip_sample=False),
                dpmpp_2m=dict(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"))[name]
    s = cls(num_train_timesteps=1000, beta_schedule=kind, beta_start=1e-4, beta_end=.02, prediction_type="v_prediction",
            timestep_spacing=spacing, **more)
    if exact_table is not None: s.alphas_cumprod = exact_table
    s.set_timesteps(steps)
    return s


def follow(name, scheduler, x, eta=0.):
    "Every x of diffusers' sampler from x; its noise comes from one generator with seed 5."
    rng = torch.Generator().manual_seed(5)
    for t in scheduler.timesteps:
        options = dict(ddpm=dict(generator=rng), ddim=dict(eta=eta, generator=rng), dpmpp_2m={})[name]
        x = scheduler.step(velocity(x, t), t, x, **options).prev_sample
        yield int(t), x


def ours(name, schedule, x, steps, eta=0.):
    options = dict(rng=torch.Generator().manual_seed(5), **(dict(eta=eta) if name == "ddim" else {}))
    return samplers[name](denoiser(schedule), x, schedule, steps, **options)


CASES = [("ddpm", 0.), *[("ddim", eta) for eta in ETAS], ("dpmpp_2m", 0.)]


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 10, 20, 50])
@pytest.mark.parametrize("name,eta", CASES)
def test_every_step_equals_diffusers(name, eta, steps, kind):
    """Each step starts from *our* x, so that errors do not add up and each is compared by itself; N divides T.

    diffusers keeps its own float32 table, but for eta = 1 on cosine: there nearly all noise at T is fresh, and the root of the
    little that is left loses its digits in float32 (1e-4 off at the first step)."""
    make, their_kind = SCHEDULES[kind]
    schedule, x = make(), start()
    table = schedule.alpha_bar if (eta, kind) == (1, "cosine") else None
    scheduler, rng = theirs(name, their_kind, steps, table), torch.Generator().manual_seed(5)
    mine = list(ours(name, schedule, x, steps, eta))
    assert [s.t for s in mine] == scheduler.timesteps.tolist()
    for step in mine:
        options = dict(ddpm=dict(generator=rng), ddim=dict(eta=eta, generator=rng), dpmpp_2m={})[name]
        expected = scheduler.step(velocity(x, step.t), step.t, x, **options).prev_sample
        torch.testing.assert_close(step.x, expected.float(), rtol=1e-5, atol=1e-5)
        x = step.x


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name,eta", CASES)
def test_a_thousand_steps_equal_diffusers_on_an_exact_table(name, eta, kind):
    """At N = T = 1000 neighbouring steps agree in almost all digits. diffusers' own float32 table is then too coarse by up
    to 1e-3, so it gets ours in float64: our float32 pictures must follow it to 1e-5 at every step."""
    make, their_kind = SCHEDULES[kind]
    schedule, x = make(), start()
    scheduler, rng = theirs(name, their_kind, 1000, schedule.alpha_bar), torch.Generator().manual_seed(5)
    for step in ours(name, schedule, x, 1000, eta):
        options = dict(ddpm=dict(generator=rng), ddim=dict(eta=eta, generator=rng), dpmpp_2m={})[name]
        expected = scheduler.step(velocity(x, step.t), step.t, x, **options).prev_sample.float()
        torch.testing.assert_close(step.x, expected, rtol=1e-5, atol=1e-5)
        x = step.x


@pytest.mark.parametrize("steps", [10, 100, 1000])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_ddpm_mean_and_variance_equal_diffusers(kind, steps, monkeypatch):
    make, their_kind = SCHEDULES[kind]
    schedule, x = make(), start()
    scheduler = theirs("ddpm", their_kind, steps, schedule.alpha_bar)
    for t, s in path(schedule, steps)[:-1:max(1, steps // 50)]:
        one = {}
        for z in (0., 1.):
            monkeypatch.setattr(sampling, "randn", lambda shape, rng=None, device=None: torch.full(shape, z))
            one[z] = next(ddpm(denoiser(schedule), x, schedule, [t, s])).x
        ab_t, ab_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
        x0 = schedule.to_x0(velocity(x, t), x, t, "v").double()
        mean = ab_s.sqrt() * (1 - ab_t / ab_s) / (1 - ab_t) * x0 + (ab_t / ab_s).sqrt() * (1 - ab_s) / (1 - ab_t) * x.double()
        torch.testing.assert_close(one[0.], mean.float(), rtol=1e-5, atol=1e-5)
        variance = scheduler._get_variance(t).float()
        torch.testing.assert_close((one[1.] - one[0.]).square(), variance.expand_as(x), rtol=1e-4, atol=1e-5)
        # and diffusers' own mean: its step, less the noise it drew
        rng = torch.Generator().manual_seed(3)
        stepped = scheduler.step(velocity(x, t), t, x, generator=rng).prev_sample
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(one[0.], (stepped - variance.sqrt() * drawn).float(), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- golden vectors, since diffusers moves

def freeze():
    "Write what the installed diffusers does, whole runs of ten steps from one noise, to GOLDEN."
    import diffusers
    runs = {}
    for kind, (make, their_kind) in SCHEDULES.items():
        for name, eta in CASES:
            scheduler = theirs(name, their_kind, 10, make().alpha_bar)        # a float64 table
            xs = [x.flatten().tolist() for _, x in follow(name, scheduler, start((1, 1, 2, 2)), eta)]
            runs[f"{kind} {name} eta={eta:g}"] = [[round(v, 7) for v in x] for x in xs]
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in runs.items())
    GOLDEN.write_text(f'{{\n  "diffusers": "{diffusers.__version__}",\n  "runs": {{\n{lines}\n  }}\n}}\n')


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name,eta", CASES)
def test_golden(name, eta, kind):
    expected = torch.tensor(json.loads(GOLDEN.read_text())["runs"][f"{kind} {name} eta={eta:g}"])
    x = start((1, 1, 2, 2))
    made = torch.stack([s.x.flatten() for s in ours(name, SCHEDULES[kind][0](), x, 10, eta)])
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- Gaussian mixtures: closed forms and distributions

def blossom():
    angle = torch.arange(5) * 2 * math.pi / 5
    means = torch.cat([torch.stack([angle.cos(), angle.sin()], 1), torch.zeros(1, 2)])
    return GaussianMixture(means, torch.tensor([.14] * 5 + [.07]), torch.tensor([.3, .1, .2, .05, .15, .2]))


def energy(x, y):
    within = lambda z: torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))
    return float(2 * torch.cdist(x, y).mean() - within(x) - within(y))


def last(steps):
    for step in steps: pass
    return step.x


@pytest.mark.parametrize("make", [linear_schedule, cosine_schedule])
@pytest.mark.parametrize("name,steps", [("ddpm", 500), ("ddim", 200), ("dpmpp_2m", 200), ("heun", 200)])
def test_reaches_the_right_distribution(name, steps, make):
    """Within what 3,000 points can tell. Ten pairs of real clouds had energy distances from -0.0006 to 0.0003, noise has 0.1.
    Weights of the six modes to 3 %; widths to 12 %, as the rarest mode has but some 150 points, and the last guess is a mean
    (with few steps all modes come out too narrow)."""
    mixture, schedule = blossom(), make()
    rng = torch.Generator().manual_seed(0)
    truth, x = mixture.sample(3000, rng), torch.randn(3000, 2, generator=rng)
    made = last(samplers[name](lambda x, t: mixture.denoise(x, t, schedule), x, schedule, steps, rng=rng))
    assert energy(made, truth) < .0015 < .03 < energy(x, truth)
    nearest = torch.cdist(made, mixture.means).argmin(1)
    shares = torch.bincount(nearest, minlength=6) / len(made)
    assert (shares - mixture.weights).abs().max() < .03
    for k in range(6):
        width = (made[nearest == k] - mixture.means[k]).square().mean().sqrt()
        assert abs(width / mixture.stds[k] - 1) < .12


@pytest.mark.parametrize("sampler,order", [(ddim, 1), (heun, 2), (dpmpp_2m, 2)])
def test_order_of_convergence(sampler, order):
    "On one Gaussian the ODE has a closed solution; float64, T = 100,000, from .9 T to .1 T, without the jump to clean."
    schedule = cosine_schedule(100_000)
    bell = GaussianMixture(torch.tensor([[.5, -.3]]), torch.tensor([.4]))
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    def error(n):
        ts = torch.linspace(.9 * schedule.T, .1 * schedule.T, n + 1).round().long()
        *_, step, _ = sampler(lambda x, t: bell.denoise(x, t, schedule), x, schedule, ts)
        (a_t, s_t), (a_s, s_s) = levels(schedule, int(ts[0])), levels(schedule, int(ts[-1]))
        m, S = bell.means.double(), bell.stds.double().square()
        truth = a_s * m + (x - a_t * m) * ((a_s**2 * S + s_s**2) / (a_t**2 * S + s_t**2)).sqrt()
        return (step.x - truth).square().mean().sqrt()
    slope = math.log2(error(64) / error(256)) / 2
    assert abs(slope - order) < .15


@pytest.mark.parametrize("sampler,order", [(ddim, 1), (heun, 2), (dpmpp_2m, 2)])
def test_order_of_convergence_on_a_mixture(sampler, order):
    schedule, mixture = cosine_schedule(100_000), blossom()
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    def end(f, n):
        ts = torch.linspace(.9 * schedule.T, .1 * schedule.T, n + 1).round().long()
        *_, step, _ = f(lambda x, t: mixture.denoise(x, t, schedule), x, schedule, ts)
        return step.x
    truth = end(heun, 2048)
    a, b = [(end(sampler, n) - truth).square().mean().sqrt() for n in (128, 512)]
    assert abs(math.log2(a / b) / 2 - order) < .2


def test_ddim_is_a_rotation():
    schedule, x = cosine_schedule(), start().double()
    step = next(ddim(denoiser(schedule), x, schedule, [700, 400]))
    (a, s), (a2, s2) = levels(schedule, 700), levels(schedule, 400)
    turn = math.atan2(s2, a2) - math.atan2(s, a)
    torch.testing.assert_close(step.x, math.cos(turn) * x + math.sin(turn) * velocity(x, 700), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("steps", [10, 250])
def test_ddim_with_eta_1_is_ddpm(dtype, tolerance, steps):
    schedule, x = linear_schedule(), start().to(dtype)
    dice = lambda: torch.Generator().manual_seed(2)
    for a, b in zip(ddim(denoiser(schedule), x, schedule, steps, eta=1., rng=dice()),
                    ddpm(denoiser(schedule), x, schedule, steps, rng=dice()), strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=tolerance, atol=tolerance)


def test_2m_without_memory_is_ddim():
    "Its first and last steps are first order: a run of two steps is DDIM's."
    schedule, x = cosine_schedule(), start().double()
    for a, b in zip(dpmpp_2m(denoiser(schedule), x, schedule, 2), ddim(denoiser(schedule), x, schedule, 2), strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- what is yielded, and what is asked

@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("name", samplers)
def test_yields_calls_and_clean_end(name, steps, spacing):
    schedule, x, asked = cosine_schedule(), start(), []
    def spy(x, t):
        assert t.dtype == torch.int64 and t.shape == (2,) and (t == t[0]).all()
        asked.append(int(t[0]))
        return denoiser(schedule)(x, t)
    made = list(samplers[name](spy, x, schedule, steps, spacing=spacing, rng=torch.Generator().manual_seed(0)))
    ts = timesteps(schedule.T, steps, spacing).tolist()
    assert [s.t for s in made] == ts and all(isinstance(s, Step) for s in made)
    assert asked == ([t for pair in zip(ts, ts[1:]) for t in pair] + ts[-1:] if name == "heun" else ts)
    assert torch.equal(made[-1].x, made[-1].x0)           # no noise, nothing left over
    assert all(s.x.shape == x.shape and s.x.dtype == x.dtype for s in made)


@pytest.mark.parametrize("name", samplers)
def test_the_input_is_not_changed_and_no_graph_is_kept(name):
    schedule, x = cosine_schedule(), start()
    before, weight = x.clone(), torch.ones((), requires_grad=True)
    def denoise(x, t):
        x0, eps = denoiser(schedule)(x, t)
        return Prediction(weight * x0, eps)
    kept = [(s.x, s.x.clone()) for s in samplers[name](denoise, x, schedule, 5)]
    assert torch.equal(x, before) and all(torch.equal(a, b) for a, b in kept)
    assert not any(a.requires_grad for a, _ in kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", samplers)
def test_other_precisions_stay_themselves(name, dtype):
    schedule = cosine_schedule()
    run = lambda x: last(samplers[name](denoiser(schedule), x, schedule, 10, rng=generators(0, 2)))
    made, expected = run(start().to(dtype)), run(start())
    assert made.dtype == dtype
    if dtype == torch.float64: torch.testing.assert_close(made.float(), expected, rtol=1e-4, atol=1e-4)
    else: assert (made.float() - expected).abs().mean() < .05


@pytest.mark.parametrize("name", samplers)
def test_runs_where_no_signal_is_left_at_T(name):
    "alpha_T = 0 exactly (zero terminal SNR): lambda is -inf there, and nothing becomes NaN."
    ab = cosine_schedule().alpha_bar.clone()
    ab[-1] = 0
    schedule = NoiseSchedule(ab)
    assert half_log_snr(*levels(schedule, 999)) == -math.inf
    assert last(samplers[name](denoiser(schedule), start(), schedule, 10)).isfinite().all()


# ---------------------------------------------------------------- randomness

@pytest.mark.parametrize("options", [dict(sampler=n) for n in samplers] + [dict(sampler="ddim", eta=.5)], ids=str)
def test_picture_i_does_not_depend_on_the_batch(options):
    schedule = cosine_schedule()
    draw = lambda n, **more: sample(denoiser(schedule), (n, 3, 8, 8), schedule, 7, **options, **more)
    seven = draw(7, seed=4)
    assert torch.equal(seven, draw(7, seed=4))
    assert torch.equal(seven[5:], draw(2, seed=4, start=5)) and torch.equal(seven[:1], draw(1, seed=4))
    assert not torch.equal(seven, draw(7, seed=5)) and not torch.equal(seven[0], seven[1])


def test_global_random_state_is_untouched():
    schedule, before = cosine_schedule(), torch.get_rng_state()
    sample(denoiser(schedule), (2, 3, 4, 4), schedule, 5, ddpm)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m, heun])
def test_deterministic_samplers_draw_nothing(sampler):
    schedule = cosine_schedule()
    a, b = [last(sampler(denoiser(schedule), start(), schedule, 8, rng=torch.Generator().manual_seed(i))) for i in (0, 1)]
    assert torch.equal(a, b)


def test_randn_from_no_one_and_many_generators():
    assert torch.equal(randn((3, 2), generators(0, 3))[2:], randn((1, 2), generators(0, 1, start=2)))
    assert torch.equal(randn((3, 2), torch.Generator().manual_seed(1)), torch.randn(3, 2, generator=torch.Generator().manual_seed(1)))
    assert randn((3, 2)).shape == (3, 2)
    x = randn((20_000, 4), generators(1, 20_000))
    assert abs(x.mean()) < .015 and abs(x.std() - 1) < .015 and abs((x[1:] * x[:-1]).mean()) < .015


# ---------------------------------------------------------------- arguments and errors

def test_steps_may_be_a_number_or_the_steps_themselves():
    schedule = cosine_schedule()
    ways = [sample(denoiser(schedule), (2, 3, 4, 4), schedule, steps)
            for steps in (10, timesteps(1000, 10), timesteps(1000, 10).tolist(), timesteps(1000, 10).numpy(), torch.tensor(10))]
    assert all(torch.equal(ways[0], w) for w in ways)
    assert path(schedule, [600, 20]) == [(600, 20), (20, -1)]
    assert len(path(schedule, 1000)) == 1000


@pytest.mark.parametrize("steps,message", [
    (0, "steps: got 0, expected 1..1000"), (1001, "steps: got 1001, expected 1..1000"), (-3, "steps: got -3"),
    ([], "steps: got .*expected one or more falling"), ([10, 20], r"steps: got \[10, 20\], expected .*falling"),
    ([5, 5], "falling"), ([1000, 3], "within 999..0"), ([3, -1], "within 999..0")])
@pytest.mark.parametrize("name", samplers)
def test_wrong_steps(name, steps, message):
    schedule = cosine_schedule()
    with pytest.raises(ValueError, match=message): sample(denoiser(schedule), (2, 3, 4, 4), schedule, steps, name)
    with pytest.raises(ValueError, match=message): next(samplers[name](denoiser(schedule), start(), schedule, steps))


@pytest.mark.parametrize("steps", [20., torch.tensor([9., 3.]), True])
def test_steps_of_a_wrong_type(steps):
    with pytest.raises(TypeError, match="steps: got .*expected an int"): path(cosine_schedule(), steps)


def test_other_errors_name_their_argument():
    schedule = cosine_schedule()
    d, x = denoiser(schedule), start()
    with pytest.raises(ValueError, match="sampler: got 'euler', expected one of ddpm, ddim, dpmpp_2m, heun"):
        sample(d, (1, 3, 4, 4), schedule, sampler="euler")
    with pytest.raises(ValueError, match="spacing: got 'even'"): sample(d, (1, 3, 4, 4), schedule, spacing="even")
    for eta in (-.1, 1.5):
        with pytest.raises(ValueError, match=f"eta: got {eta}, expected 0..1"): next(ddim(d, x, schedule, 5, eta=eta))
    with pytest.raises(ValueError, match="rng: got 3 generators, expected 2"): next(ddpm(d, x, schedule, 5, rng=generators(0, 3)))
    with pytest.raises(ValueError, match="shape: got .*at least 1"): sample(d, (0, 3, 4, 4), schedule)
    with pytest.raises(TypeError, match="clip"): sample(d, (1, 3, 4, 4), schedule, clip=1.)


def test_progress_bar_only_when_asked_and_never_in_a_log(capsys, monkeypatch):
    schedule = cosine_schedule()
    def said(**options):
        sample(denoiser(schedule), (1, 3, 4, 4), schedule, 4, **options)
        return capsys.readouterr().err
    assert said() == said(progress=True) == ""                            # pytest's stderr is no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert said() == "" and "0/4" in said(progress=True)


# ---------------------------------------------------------------- stopping early, and denoisers that change on the way

@pytest.mark.parametrize("name", samplers)
def test_stopping_and_going_on_is_the_same_run(name):
    "But for 2M, which has lost its memory when it goes on."
    schedule, x = cosine_schedule(), start().double()
    ts = timesteps(1000, 12).tolist()
    whole = list(samplers[name](denoiser(schedule), x, schedule, 12, rng=torch.Generator().manual_seed(0)))
    rng = torch.Generator().manual_seed(0)
    first = list(samplers[name](denoiser(schedule), x, schedule, ts[:5], stop=ts[5], rng=rng))
    assert [s.t for s in first] == ts[:5] and all(torch.equal(a.x, b.x) for a, b in zip(first, whole))
    rest = list(samplers[name](denoiser(schedule), first[-1].x, schedule, ts[5:], rng=rng))
    assert [s.t for s in rest] == ts[5:]
    if name != "dpmpp_2m": assert torch.equal(rest[-1].x, whole[-1].x)
    else: assert not torch.equal(rest[0].x, whole[5].x)


@pytest.mark.parametrize("name", samplers)
def test_a_number_of_steps_with_stop_takes_those_above(name):
    schedule, x = cosine_schedule(), start()
    for stop in (499, 450):
        made = list(samplers[name](denoiser(schedule), x, schedule, 20, stop=stop, rng=torch.Generator().manual_seed(0)))
        assert [s.t for s in made] == [t for t in timesteps(1000, 20).tolist() if t > stop]
        assert path(schedule, 20, stop=stop)[-1][1] == stop


def test_where_a_stopped_run_is():
    "On one Gaussian the marginal at `stop` is known: DDIM and Heun end there, with noise still in it."
    schedule, bell = cosine_schedule(), GaussianMixture(torch.tensor([[.5, -.3]], dtype=torch.float64), .4)
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, s = levels(schedule, 400)
    for sampler in (ddim, heun, dpmpp_2m):
        got = last(sampler(lambda x, t: bell.denoise(x, t, schedule), x, schedule, 100, stop=400))
        assert (got.mean(0) - a * bell.means[0]).abs().max() < .04
        assert (got.std(0) / math.sqrt(.16 * a**2 + s**2) - 1).abs().max() < .03


def test_sample_takes_stop():
    schedule = cosine_schedule()
    got = sample(denoiser(schedule), (2, 3, 4, 4), schedule, 10, "ddim", stop=499)
    assert torch.equal(got, last(ddim(denoiser(schedule), randn((2, 3, 4, 4), generators(0, 2)), schedule, 10, stop=499)))


@pytest.mark.parametrize("stop", [-2, 999, 1500])
def test_stop_out_of_range(stop):
    with pytest.raises(ValueError, match=f"stop: got {stop}, expected -1..998"): path(cosine_schedule(), 10, stop=stop)


@pytest.mark.parametrize("steps", [[900, 500], [900, 400]])
def test_given_steps_must_lie_above_stop(steps):
    with pytest.raises(ValueError, match="falling steps within 999..501"): path(cosine_schedule(), steps, stop=500)


def breaking(schedule, *breaks):
    d = denoiser(schedule)
    def denoise(x, t): return d(x, t)
    denoise.breaks = breaks
    return denoise


@pytest.mark.parametrize("t,s,crossed", [(699, 599, True), (700, 650, False), (650, 649, True), (649, 600, False), (999, 699, False), (99, -1, False)])
def test_what_crosses_a_break(t, s, crossed):
    "A break b is the last step of the old denoiser: crossed by a move from b or above to below b."
    d = breaking(cosine_schedule(), 650)
    assert crosses(d, t, s) == (s < 650 <= t) == crossed
    assert not crosses(denoiser(cosine_schedule()), t, s) and crosses(breaking(cosine_schedule(), 100, 650), t, s) == crossed


def test_2m_starts_afresh_after_a_break():
    schedule, x = cosine_schedule(), start().double()
    ts = timesteps(1000, 10).tolist()
    broken = list(dpmpp_2m(breaking(schedule, ts[4]), x, schedule, 10))
    legs = list(dpmpp_2m(denoiser(schedule), x, schedule, ts[:5], stop=ts[5]))
    legs += dpmpp_2m(denoiser(schedule), legs[-1].x, schedule, ts[5:])
    assert all(torch.equal(a.x, b.x) for a, b in zip(broken, legs, strict=True))
    smooth = list(dpmpp_2m(denoiser(schedule), x, schedule, 10))
    assert [torch.equal(a.x, b.x) for a, b in zip(broken, smooth)] == [True] * 5 + [False] * 5


def test_heun_takes_a_plain_step_into_a_break():
    "It calls once there, and turns by the velocity at hand."
    schedule, x, asked = cosine_schedule(), start().double(), []
    ts = timesteps(1000, 6).tolist()
    def spy(x, t):
        asked.append(int(t[0]))
        return denoiser(schedule)(x, t)
    spy.breaks = (ts[2],)
    steps = list(heun(spy, x, schedule, 6))
    assert asked == [ts[0], ts[1], ts[1], ts[2], ts[2], ts[3], ts[4], ts[4], ts[5], ts[5]]
    (a, s), (a2, s2) = levels(schedule, ts[2]), levels(schedule, ts[3])
    v = velocity(steps[1].x, ts[2])
    torch.testing.assert_close(steps[2].x, steps[1].x + (math.atan2(s2, a2) - math.atan2(s, a)) * v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_breaks_do_not_matter_to_samplers_of_one_step(name):
    schedule = cosine_schedule()
    run = lambda d: last(samplers[name](d, start(), schedule, 8, rng=torch.Generator().manual_seed(0)))
    assert torch.equal(run(denoiser(schedule)), run(breaking(schedule, 500, 249)))


if __name__ == "__main__": freeze()
