"""Defects found in well-known diffusion code, each as a check that passes for ours and fails for the defect itself.

Every test calls `check(ours)` and then shows that `check` raises for an implementation with the defect put in.
"""
import ast, builtins, dis, functools, importlib, inspect, pkgutil, types
from pathlib import Path

import pytest
import torch
from torch import nn

import zerodiff
from zerodiff.conditioning import ClassConditional, ClassEmbedding
from zerodiff.data import check_range, garden, to_float
from zerodiff.guidance import branches, guide
from zerodiff.inversion import ddim_invert, switch
from zerodiff.sampling import ddim, ddpm, randn, samplers
from zerodiff.schedule import GaussianMixture, Prediction, cosine_schedule, from_betas, linear_schedule, sigmoid_schedule, timesteps
from zerodiff.training import EMA, Batches, Denoiser
from zerodiff.unet import UNet

schedule = cosine_schedule()


def catches(check, broken):
    "The check must fail for the defect, by its own assertion or by the crash the defect brings."
    with pytest.raises((AssertionError, ValueError, RuntimeError)): check(broken)


def shaken(network):
    "In float64, with random weights in place of a new network's zeros."
    torch.manual_seed(0)
    for p in network.double().requires_grad_(False).parameters(): p.normal_(std=.1)
    return network


# --- guidance ---------------------------------------------------------------------------------------------------------

def check_formula(guide, weights, batches=(1, 2, 3), channels=3):
    network = shaken(ClassConditional(UNet(16, (1,), cond_dim=8, in_channels=channels), 5))
    d = Denoiser(network, schedule, "v")
    for n in batches:
        x, t, c = torch.randn(n, channels, 8, 8, dtype=torch.float64), torch.tensor([900, 500, 100])[:n], torch.arange(n)
        a, b = d.raw(x, t, c), d.raw(x, t)
        for w in weights:
            want, got = d.prediction(b + w * (a - b), x, t), guide(d, c, scale=w)(x, t)
            for p, q in zip(got, want): assert p.shape == q.shape and torch.allclose(p, q, atol=1e-9 * (1 + abs(w))), f"batch {n}, w = {w}"


def _unpacks_one_tensor(denoiser, cond, scale):
    def with_scale(x, t):
        if scale == 1: return denoiser.raw(x, t, cond)             # one tensor where the caller unpacks two
        a, b = branches(denoiser, x, t, cond, denoiser.network.null(len(cond)))
        return b + scale * (a - b), b
    def denoise(x, t):
        out, _ = with_scale(x, t)
        return denoiser.prediction(out.expand_as(x), x, t)
    return denoise


@pytest.mark.parametrize("n", [1, 2, 3])
def test_guidance_at_one_crashes_or_unpacks_the_batch(n):
    "lucidrains/denoising-diffusion-pytorch: at w=1, batches of 1 and 3 raise, and a batch of 2 is silently wrong."
    check = functools.partial(check_formula, weights=(1,), batches=(n,))
    check(guide)
    catches(check, _unpacks_one_tensor)
    check_formula(_unpacks_one_tensor, weights=(6,), batches=(n,))  # elsewhere the defect is invisible


@pytest.mark.parametrize("w", [-10, -1, 0, .5])
def test_guidance_ignored_up_to_one(w):
    "diffusers' pipelines: guidance is done only where guidance_scale > 1; smaller and negative weights are taken for 1."
    check = functools.partial(check_formula, weights=(w,))
    check(guide)
    catches(check, lambda d, c, scale: guide(d, c, scale=scale if scale > 1 else 1))


def test_guidance_on_three_of_four_channels():
    "DiT issue 41: only the first three channels of a four-channel latent are guided."
    def three(d, c, scale):
        def denoise(x, t):
            a, b = branches(d, x, t, c, d.network.null(len(c)))
            return d.prediction(torch.cat([(b + scale * (a - b))[:, :3], a[:, 3:]], 1), x, t)
        return denoise
    check = functools.partial(check_formula, weights=(4,), channels=4)
    check(guide)
    catches(check, three)


def check_rescaled(guide):
    "Rescaling by phi as in 2305.08891, each sample by its own two standard deviations, and nothing else done to the push."
    d = Denoiser(shaken(ClassConditional(UNet(16, (1,), cond_dim=8), 5)), schedule, "eps")
    x, t, c = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([900, 500, 100]), torch.arange(3)
    a, b = d.raw(x, t, c), d.raw(x, t)
    for w in (-2., 6.):
        plain = b + w * (a - b)
        for phi in (-10., 0., .7, 10.):
            want = torch.stack([phi * p * q.std() / p.std() + (1 - phi) * p for p, q in zip(plain, a)])
            assert torch.allclose(guide(d, c, scale=w, rescale=phi)(x, t).eps, want, atol=1e-9 * (1 + abs(phi)) * want.abs().max()), f"w = {w}, phi = {phi}"


def test_guidance_projects_unasked():
    "lucidrains since 2024-10: the part of the push parallel to the conditional output is removed by default, so the same w and phi give other pictures."
    check_rescaled(guide)
    catches(check_rescaled, functools.partial(guide, project=True))


# --- schedules and training steps -------------------------------------------------------------------------------------

def check_reaches_noise(make):
    for T in (50, 100, 200, 250, 256, 500, 1000): assert make(T).alpha_bar[-1] < 1e-3, f"T = {T}"


def test_schedule_leaves_signal_at_the_last_step():
    "A much-copied tutorial: DDPM's betas 1e-4 .. 0.02 unscaled for T other than 1000; alpha_bar ends at .132 for T = 200."
    for make in (linear_schedule, cosine_schedule, sigmoid_schedule): check_reaches_noise(make)
    unscaled = lambda T: from_betas(torch.linspace(1e-4, .02, T, dtype=torch.float64))
    assert abs(unscaled(200).alpha_bar[-1] - .132) < 1e-3 and abs(unscaled(50).alpha_bar[-1] - .603) < 1e-3
    catches(check_reaches_noise, unscaled)


def check_trains_every_step(batches):
    "Each t of 0..T-1 is drawn, as often as each other."
    drawn = torch.cat([batches.draw(k)[2] for k in range(500)])
    count = torch.bincount(drawn, minlength=10)
    assert len(count) == 10 and count.min() > .8 * len(drawn) / 10 and count.max() < 1.2 * len(drawn) / 10


class _NeverTheLast(Batches):
    def draw(self, step, drop=None):
        x0, cond, t, eps = super().draw(step, drop)
        rng = torch.Generator().manual_seed(step)
        return x0, cond, torch.randint(0, self.T - 1, t.shape, generator=rng), eps


def test_last_step_is_never_trained():
    "HF's course, unit 2: randint(0, 999) excludes 999, yet sampling starts there."
    data = garden(16, size=8)
    check_trains_every_step(Batches(data, 10, 8))
    catches(check_trains_every_step, _NeverTheLast(data, 10, 8))
    assert all(timesteps(T, n)[0] == T - 1 for T in (100, 1000) for n in (1, 7, 50))   # and ours starts there


def check_warm_up(make):
    "Twenty steps after the weights have moved from 0 to 1, most of their average should have followed."
    layer = nn.Linear(1, 1, bias=False).requires_grad_(False)
    layer.weight.zero_()
    ema = make(layer)
    layer.weight.fill_(1.)
    for step in range(20): ema.update(step)
    assert ema.average["weight"].item() > .9


class _NoWarmUp(EMA):
    @torch.no_grad()
    def update(self, step):
        for name, weight in self.module.named_parameters(): self.average[name].lerp_(weight, 1 - self.decay)


def test_ema_without_warm_up():
    "A fixed decay of .999 from the first step on: the average is the random start for thousands of steps."
    check_warm_up(EMA)
    catches(check_warm_up, _NoWarmUp)


# --- conditions and pictures ------------------------------------------------------------------------------------------

def check_drop(drop):
    "The number hidden in batches of 64 has a binomial's mean and variance."
    rng, labels = torch.Generator().manual_seed(0), torch.arange(64) % 5
    count = torch.stack([(drop(labels, .1, rng) == 5).sum() for _ in range(2000)]).double()
    assert abs(count.mean() - 6.4) < .5 and .8 < count.var() / (64 * .1 * .9) < 1.25


def _drop_per_batch(labels, p, generator):
    return torch.full_like(labels, 5) if torch.rand((), generator=generator) < p else labels


def test_label_dropout_once_per_batch():
    "One throw of the dice hides all labels of a batch, or none."
    check_drop(ClassEmbedding(5, 4).drop)
    catches(check_drop, _drop_per_batch)


def check_centred(convert):
    images = garden(64, size=16).images
    x = convert(images)
    assert x.dtype == torch.float32 and convert(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
    check_range(x)                                                 # raises for what looks like [0, 1]


def test_pictures_left_in_0_to_1():
    "ToTensor() alone: pictures in [0, 1] while the noise is centred on 0."
    check_centred(to_float)
    check_centred(lambda images: torch.cat([garden(64, size=16).batch(range(64))[0]]) if images.ndim == 4 else to_float(images))
    catches(check_centred, lambda images: images.float() / 255)
    with pytest.raises(ValueError, match="0, 1"): check_range(garden(64, size=16).images.float() / 255)


# --- samplers ---------------------------------------------------------------------------------------------------------

def run(sampler, steps=5, seed=0, denoise=None, **options):
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return list(sampler(denoise or _guess, x, schedule, steps, rng=torch.Generator().manual_seed(seed), **options))


def _guess(x, t):
    "The exact denoiser of pictures that are N(0, 1) in every pixel."
    alpha, sigma = schedule.at(t, x)
    return Prediction(alpha * x, sigma * x)


def check_reaches_the_end(sampler):
    "N steps, and the last x is a clean picture: the network's last guess of x0."
    steps = run(sampler)
    assert [s.t for s in steps] == timesteps(schedule.T, 5).tolist()
    assert torch.allclose(steps[-1].x, steps[-1].x0, atol=1e-6)


@pytest.mark.parametrize("sampler", samplers.values(), ids=samplers)
def test_sampler_skips_its_last_step(sampler):
    "minDiffusion's ddim: the loop ends one step early, and a noisy x is returned."
    def short(*args, **kw):
        *first, _ = sampler(*args, **kw)
        yield from first
    check_reaches_the_end(sampler)
    catches(check_reaches_the_end, short)


def _noisy_end(denoise, x, schedule, steps, *, spacing="trailing", rng=None):
    for step in ddpm(denoise, x, schedule, steps, spacing=spacing, rng=rng):
        last = step.t == timesteps(schedule.T, steps, spacing)[-1]
        yield step._replace(x=step.x + .01 * randn(x.shape, rng, x.device)) if last else step


def test_noise_at_the_final_step():
    "labml's p_sample: noise is added after the last denoising as well, and stays in the picture."
    check_reaches_the_end(ddpm)
    check_reaches_the_end(functools.partial(ddim, eta=1.))
    catches(check_reaches_the_end, _noisy_end)


def check_deterministic(ddim):
    a, b = run(ddim, seed=1)[-1].x, run(ddim, seed=2)[-1].x
    assert torch.equal(a, b)


def test_ddim_is_noisy_by_default():
    "lucidrains' guidance file: eta=1 is the default, which makes inversion wrong."
    check_deterministic(ddim)
    assert inspect.signature(ddim).parameters["eta"].default == 0
    catches(check_deterministic, functools.partial(ddim, eta=1.))


def check_tells_timesteps(sampler):
    "The network hears int64 steps (B,) of the schedule, the ones `timesteps` names, and not their places in the list."
    heard = []
    def listening(x, t):
        assert t.shape == (2,) and t.dtype == torch.int64 and (t == t[0]).all()
        heard.append(int(t[0]))
        return _guess(x, t)
    run(sampler, steps=5, denoise=listening)
    assert sorted(set(heard), reverse=True) == timesteps(schedule.T, 5).tolist()


@pytest.mark.parametrize("sampler", samplers.values(), ids=samplers)
def test_index_used_as_timestep(sampler):
    "A pull request to Stable Diffusion: the loop's index i went to the network in place of the step t."
    def by_index(denoise, x, schedule, steps, **options):
        places = {int(t): i for i, t in enumerate(timesteps(schedule.T, steps).flip(0))}
        wrong = lambda x, t: denoise(x, torch.full_like(t, places[int(t[0])]))
        return sampler(wrong, x, schedule, steps, **options)
    check_tells_timesteps(sampler)
    catches(check_tells_timesteps, by_index)


# --- inversion --------------------------------------------------------------------------------------------------------

_two_bumps = GaussianMixture(torch.tensor([[-.5], [.5]], dtype=torch.float64), .15)


def check_round_trip(down=ddim, up=ddim_invert):
    "Points of a mixture go up to noise and come back, each to its own place."
    x = _two_bumps.sample(200, torch.Generator().manual_seed(0))
    denoise = lambda x, t: _two_bumps.denoise(x, t, schedule)
    *_, top = up(denoise, x, schedule, 200)
    *_, back = down(denoise, top.x, schedule, 200, rng=torch.Generator().manual_seed(1))
    assert (back.x - x).abs().mean() < .02


def test_round_trip_with_noise_by_default():
    "lucidrains' guidance file: with eta=1, or with ancestral sampling, what inversion found is thrown away on the way down."
    check_round_trip()
    for noisy in (functools.partial(ddim, eta=1.), functools.partial(ddim, eta=.3), ddpm): catches(check_round_trip, noisy)


def check_inversion_hears_timesteps(up):
    heard = []
    def listening(x, t):
        heard.append(int(t[0]))
        return _guess(x, t)
    for _ in up(listening, torch.zeros(2, 1, 4, 4), schedule, 5, at="target"): pass
    assert heard == timesteps(schedule.T, 5).flip(0).tolist()


def test_index_used_as_timestep_going_up():
    "The same slip as in sampling, better hidden: counting 0, 1, 2 ... runs the right way here."
    def by_index(denoise, x, schedule, steps, **options):
        places = {int(t): i for i, t in enumerate(timesteps(schedule.T, steps).flip(0))}
        return ddim_invert(lambda x, t: denoise(x, torch.full_like(t, places[int(t[0])])), x, schedule, steps, **options)
    check_inversion_hears_timesteps(ddim_invert)
    catches(check_inversion_hears_timesteps, by_index)


def check_leaves_the_range(invert):
    "Points beyond 1, as latents have them, come back from inversion to where they were."
    wide = GaussianMixture(torch.tensor([[-2.], [2.]], dtype=torch.float64), .3)
    x, denoise = wide.sample(200, torch.Generator().manual_seed(0)), lambda x, t: wide.denoise(x, t, schedule)
    *_, top = invert(denoise, x, schedule, 200)
    *_, back = ddim(denoise, top.x, schedule, 200)
    assert (back.x - x).abs().mean() < .1


def test_inversion_clips_by_default():
    "diffusers' DDIMInverseScheduler: clip_sample=True unless told otherwise, which moves whatever lies beyond 1."
    def clips(denoise, x, schedule, steps):
        def clipped(x, t):
            x0 = denoise(x, t).x0.clamp(-1, 1)
            return Prediction(x0, schedule.to_eps(x0, x, t, "x0"))
        return ddim_invert(clipped, x, schedule, steps)
    check_leaves_the_range(ddim_invert)
    catches(check_leaves_the_range, clips)


def check_switches_by_t(switch):
    "Whatever the sampler calls, condition 1 is asked at the first three of six steps alone, condition 2 at the others alone."
    for sampler in samplers.values():
        heard = {1: set(), 2: set()}
        def condition(k): return lambda x, t: (heard[k].add(int(t[0])), _guess(x, t))[1]
        ts = timesteps(schedule.T, 6).tolist()
        run(sampler, steps=6, denoise=switch(condition(1), condition(2), ts[2]))
        assert heard == {1: set(ts[:3]), 2: set(ts[3:])}


def test_condition_switched_by_counting_calls():
    "A counter in a callback: right for one call a step, and off by half the steps with Heun, which calls twice."
    def by_count(first, second, until_t):
        calls = []
        def denoise(x, t):
            calls.append(t)
            return (first if len(calls) <= 3 else second)(x, t)
        return denoise
    check_switches_by_t(switch)
    catches(check_switches_by_t, by_count)


# --- the package ------------------------------------------------------------------------------------------------------

MODULES = sorted(m.name for m in pkgutil.iter_modules(zerodiff.__path__) if not m.name.startswith("_"))


def codes(code):
    yield code
    for c in code.co_consts:
        if isinstance(c, types.CodeType): yield from codes(c)


@pytest.mark.parametrize("name", MODULES)
def test_exported_code_uses_notebook_globals(name):
    "fastai's course: an exported function reads a variable that exists only in the notebook."
    module = importlib.import_module(f"zerodiff.{name}")
    source = Path(module.__file__).read_text()
    assert (missing := undefined(source, vars(module))) <= {"get_ipython"}, missing      # which only notebooks have; it is tried
    assert undefined(source + "\ndef broken(x):\n    return denoiser_of_the_notebook(x)\n", vars(module)) - {"get_ipython"} == {"denoiser_of_the_notebook"}


def undefined(source, known):
    "Names that functions in this source read as globals, and that neither the module nor Python defines."
    found = set()
    for code in codes(compile(source, "module", "exec")):
        if code.co_name == "<module>": continue
        found |= {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return {n for n in found if n not in known and not hasattr(builtins, n)}


def cuda_calls(source):
    return [node.lineno for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"]


@pytest.mark.parametrize("name", MODULES)
def test_exported_code_calls_cuda(name):
    "fastai's course: .cuda() in exported functions, which fails on every other machine."
    source = (Path(zerodiff.__file__).parent / f"{name}.py").read_text()
    assert cuda_calls(source) == []
    assert len(cuda_calls(source + "\ndef broken(x):\n    return x.cuda()\n")) == 1
