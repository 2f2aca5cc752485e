"""Switching, inversion, restyling: round trips and orders on exact denoisers, parity with diffusers, what is asked of the network, errors."""
import math

import pytest
import torch
from torch import nn

from zerodiff.conditioning import ClassConditional
from zerodiff.guidance import guide
from zerodiff.inversion import ddim_invert, heun_invert, inpaint, restyle, slerp, step_to_t, switch, switch_sweep, unclipped
from zerodiff.sampling import Step, ddim, ddpm, dpmpp_2m, generators, heun, levels, path, sample, samplers
from zerodiff.schedule import GaussianMixture, NoiseSchedule, Prediction, cosine_schedule, linear_schedule, timesteps
from zerodiff.training import Denoiser
from zerodiff.unet import UNet

schedule = cosine_schedule()
CLASSES = [GaussianMixture(torch.tensor(m, dtype=torch.float64), .35) for m in ([[0., 0.], [1.2, 1.2]], [[-1.5, .2], [-1., -1.3]])]


def exact(k, schedule=schedule):
    return lambda x, t: CLASSES[k].denoise(x, t, schedule)


def noise(n=64, seed=0):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def end(steps):
    for step in steps: pass
    return step.x


def rms(a, b): return (a - b).square().mean().sqrt().item()


def dice(): return torch.Generator().manual_seed(3)


class Counted:
    "Passes on to a denoiser and writes down each t asked."
    def __init__(self, denoise): self.denoise, self.asked = denoise, []
    def __call__(self, x, t):
        assert t.shape == (len(x),) and t.dtype == torch.int64 and (t == t[0]).all()
        self.asked.append(int(t[0]))
        return self.denoise(x, t)


class Made(nn.Module):
    "A made-up network, smooth, different at every t."
    def forward(self, x, t, cond=None):
        return torch.tanh(1.3 * x + t.view(-1, *[1] * (x.ndim - 1)) / 700) - .4 * x


# ---------------------------------------------------------------- switch

@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_step_to_t_is_the_t_of_the_kth_step(spacing):
    ts = timesteps(1000, 20, spacing).tolist()
    assert [step_to_t(k, 20, 1000, spacing) for k in range(21)] == [1000] + ts


@pytest.mark.parametrize("k,N", [(-1, 20), (21, 20), (3, 1001)])
def test_step_to_t_out_of_range(k, N):
    with pytest.raises(ValueError, match=f"k: got {k} of {N} steps, expected 0..N"): step_to_t(k, N, 1000)


@pytest.mark.parametrize("name", samplers)
def test_switch_at_the_ends_is_plain(name):
    x, N = noise(), 12
    run = lambda d: end(samplers[name](d, x, schedule, N, rng=dice()))
    for k, only in (0, 1), (N, 0):
        assert torch.equal(run(switch(exact(0), exact(1), step_to_t(k, N, 1000))), run(exact(only)))
    assert not torch.equal(run(exact(0)), run(exact(1)))


def ending(denoise, t):
    "The same denoiser, which says that it ends after step t."
    other = Counted(denoise)
    other.breaks = (t,)
    return other


@pytest.mark.parametrize("k", [1, 5, 11])
@pytest.mark.parametrize("name", samplers)
def test_switch_is_two_runs(name, k):
    "For each sampler: the steps of condition 1 up to where the k-th leads, then a fresh run under condition 2."
    x, N = noise(), 12
    ts = [t for t, _ in path(schedule, N)]
    first, second = Counted(exact(0)), Counted(exact(1))
    whole = end(samplers[name](switch(first, second, step_to_t(k, N, 1000)), x, schedule, N, rng=dice()))
    rng, a, b = dice(), ending(exact(0), ts[k - 1]), Counted(exact(1))
    half = end(samplers[name](a, x, schedule, ts[:k], stop=ts[k], rng=rng))
    assert torch.equal(whole, end(samplers[name](b, half, schedule, ts[k:], rng=rng)))
    assert first.asked == a.asked and second.asked == b.asked and set(first.asked) == set(ts[:k])


def test_2m_carries_no_history_over_the_switch():
    "Its first step under condition 2 is DDIM's, though the guess before was another's; without `breaks` it is not."
    x, N, k = noise(), 12, 5
    ts = [t for t, _ in path(schedule, N)]
    mixed = switch(exact(0), exact(1), ts[k - 1])
    steps = list(dpmpp_2m(mixed, x, schedule, N))
    (x0, eps), (a, s) = exact(1)(steps[k - 1].x, torch.full((64,), ts[k])), levels(schedule, ts[k + 1])
    torch.testing.assert_close(steps[k].x, a * x0 + s * eps, rtol=1e-10, atol=1e-10)
    carried = list(dpmpp_2m(lambda x, t: mixed(x, t), x, schedule, N))
    assert torch.equal(carried[k - 1].x, steps[k - 1].x) and rms(carried[k].x, steps[k].x) > 1e-3
    (x0, eps), (a, s) = exact(1)(steps[k].x, torch.full((64,), ts[k + 1])), levels(schedule, ts[k + 2])
    assert rms(steps[k + 1].x, a * x0 + s * eps) > 1e-4                # and from the next step on it remembers again


@pytest.mark.parametrize("sampler", [dpmpp_2m, heun])
def test_order_over_the_switch(sampler):
    "Second order with the break known, first without. The ruler switches where the k-th step leads."
    x = noise()
    def off(N, wrap):
        ts = [t for t, _ in path(schedule, N)]
        ruler = end(heun(switch(exact(0), exact(1), ts[N // 2] + 1), x, schedule, 1000, stop=199))
        return rms(end(sampler(wrap(switch(exact(0), exact(1), ts[N // 2 - 1])), x, schedule, N, stop=199)), ruler)
    order = lambda wrap: math.log2(off(20, wrap) / off(80, wrap)) / 2
    assert order(lambda d: d) > 1.8
    assert order(lambda d: lambda x, t: d(x, t)) < 1.3


def test_switches_can_be_nested():
    "Three conditions; only the breaks that lie where their denoiser is in force are kept."
    x, N = noise(), 12
    ts = [t for t, _ in path(schedule, N)]
    late, early = ts[8], ts[3]
    inner = switch(exact(1), exact(0), late)
    three = switch(exact(0), inner, early)
    assert three.breaks == (early, late) and switch(inner, exact(0), early).breaks == (early,)
    assert switch(exact(0), switch(exact(1), exact(0), early), late).breaks == (late,)
    x1 = end(dpmpp_2m(exact(0), x, schedule, ts[:4], stop=ts[4]))
    x2 = end(dpmpp_2m(exact(1), x1, schedule, ts[4:9], stop=ts[9]))
    assert torch.equal(end(dpmpp_2m(three, x, schedule, N)), end(dpmpp_2m(exact(0), x2, schedule, ts[9:])))


def test_switch_with_guidance_and_heun_asks_by_t():
    "Guidance and Heun call more than once a step; no condition is asked for on the other side."
    network = ClassConditional(UNet(16, (1,), cond_dim=8), 3)
    d, c = Denoiser(network, schedule), torch.zeros(2, dtype=torch.int64)
    first, second = Counted(guide(d, c, scale=2.)), Counted(guide(d, c + 1, scale=2.))
    end(heun(switch(first, second, step_to_t(3, 8, 1000)), torch.randn(2, 3, 8, 8), schedule, 8))
    assert min(first.asked) == step_to_t(3, 8, 1000) > max(second.asked)


def test_switch_refuses_a_batch_on_both_sides():
    with pytest.raises(ValueError, match="t: got steps on both sides of 500"):
        switch(exact(0), exact(1), 500)(noise(2), torch.tensor([499, 500]))
    assert torch.equal(switch(exact(0), exact(1), 500)(noise(2), 500).x0, exact(0)(noise(2), 500).x0)


# ---------------------------------------------------------------- switch_sweep

@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m])
def test_sweep_equals_single_runs_and_shares_their_beginnings(sampler, spacing):
    x, N, ks = noise(), 12, [0, 1, 5, 6, 12]
    first, second = Counted(exact(0)), Counted(exact(1))
    found = dict(switch_sweep(first, second, x, schedule, N, ks, sampler, spacing))
    assert list(found) == ks and len(first.asked) == 12 and len(second.asked) == sum(12 - k for k in ks)
    for k, got in found.items():
        alone = sampler(switch(exact(0), exact(1), step_to_t(k, N, 1000, spacing)), x, schedule, N, spacing=spacing)
        assert torch.equal(got, end(alone))


def test_sweep_walks_no_further_than_asked():
    first, second = Counted(exact(0)), Counted(exact(1))
    list(switch_sweep(first, second, noise(), schedule, 12, (2, 4)))
    assert len(first.asked) == 4 and len(second.asked) == 10 + 8


def test_sweep_takes_the_steps_themselves():
    (_, got), = switch_sweep(exact(0), exact(1), noise(), schedule, [900, 500, 100], [1])
    assert torch.equal(got, end(ddim(switch(exact(0), exact(1), 900), noise(), schedule, [900, 500, 100])))


@pytest.mark.parametrize("ks", [[3, 2], [1, 1], [-1, 4], [4, 13]])
def test_sweep_wants_rising_ks(ks):
    with pytest.raises(ValueError, match=r"ks: got .*expected rising numbers within 0..12"):
        list(switch_sweep(exact(0), exact(1), noise(), schedule, 12, ks))


@pytest.mark.parametrize("sampler", [ddpm, heun])
def test_sweep_refuses_samplers_that_it_would_get_wrong(sampler):
    with pytest.raises(ValueError, match=f"sampler: got {sampler.__name__}, expected ddim or dpmpp_2m"):
        list(switch_sweep(exact(0), exact(1), noise(), schedule, 12, [3], sampler))


# ---------------------------------------------------------------- inversion: orders, exactness

def trip(N, up, down, **options):
    "Round trip from t = 100 to 900, N steps each way: the noise found and the RMS loss."
    points = CLASSES[0].sample(64, torch.Generator().manual_seed(1))
    ts = torch.linspace(900, 100, N + 1).round().long()
    high = end(up(exact(0), points, schedule, ts[:-1], start=100, **options))
    return high, rms(end(down(exact(0), high, schedule, ts[:-1], stop=100)), points)


@pytest.mark.parametrize("options,up,down,noise_order,trip_order", [
    (dict(at="source"), ddim_invert, ddim, 1, 1), (dict(at="target"), ddim_invert, ddim, 1, 1),
    (dict(refine=3), ddim_invert, ddim, 1, 4), ({}, heun_invert, heun, 2, 3)], ids=["source", "target", "refined", "heun"])
def test_order_of_the_noise_and_of_the_round_trip(options, up, down, noise_order, trip_order):
    "Up and down again, the errors of an even order cancel (h^3 and -h^3), those of DDIM add up; each refinement is worth one order."
    truth = trip(800, heun_invert, heun)[0]
    (a, off_a), (b, off_b) = trip(40, up, down, **options), trip(160, up, down, **options)
    assert abs(math.log2(rms(a, truth) / rms(b, truth)) / 2 - noise_order) < .15
    assert abs(math.log2(off_a / off_b) / 2 - trip_order) < .25


def test_inversion_on_one_gaussian_has_a_closed_answer():
    bell = GaussianMixture(torch.tensor([[.5, -.3]], dtype=torch.float64), .4)
    x, d = bell.sample(50, torch.Generator().manual_seed(0)), lambda x, t: bell.denoise(x, t, schedule)
    (a, s), (b, z) = levels(schedule, 100), levels(schedule, 900)
    start = a * bell.means + (x - bell.means) * math.sqrt(a**2 * .16 + s**2) / .4
    truth = b * bell.means + (x - bell.means) * math.sqrt(b**2 * .16 + z**2) / .4
    ts = torch.arange(900, 100, -10)
    assert rms(end(heun_invert(d, start, schedule, ts, start=100)), truth) < 3e-4
    assert rms(end(ddim_invert(d, start, schedule, ts, start=100)), truth) < .03


def test_refining_converges_to_an_exact_round_trip():
    off = [trip(20, ddim_invert, ddim, refine=r)[1] for r in (0, 1, 2, 4, 8, 16)]
    assert all(b < a / 4 for a, b in zip(off, off[1:])) and off[-1] < 1e-10


def test_refined_inversion_of_a_network_from_the_clean_picture():
    "The jump from t = -1 included, up to t = 859: exact as soon as the rounds settle."
    made = Denoiser(Made(), schedule, "v").given(None)
    x, ts = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=dice()) / 2, [t for t, _ in path(schedule, 50)][7:]
    off = [rms(end(ddim(made, end(ddim_invert(made, x, schedule, ts, refine=r)), schedule, ts)), x) for r in (0, 4, 60)]
    assert off[0] > 1e-2 > 1e-3 > off[1] and off[2] < 1e-10


@pytest.mark.parametrize("at,refine,asked", [("source", 0, [0, 99, 199, 299]), ("target", 0, [99, 199, 299, 399]),
                                             ("source", 1, [0, 99, 99, 199, 199, 299, 299, 399]),
                                             ("target", 1, [99, 99, 199, 199, 299, 299, 399, 399])])
def test_what_ddim_invert_asks(at, refine, asked):
    spy = Counted(exact(0))
    steps = list(ddim_invert(spy, noise(), schedule, [399, 299, 199, 99], at=at, refine=refine))
    assert spy.asked == asked and [s.t for s in steps] == [99, 199, 299, 399] and all(isinstance(s, Step) for s in steps)


def test_what_heun_invert_asks_and_yields():
    spy = Counted(exact(0))
    steps = list(heun_invert(spy, noise(), schedule, [199, 99]))
    assert spy.asked == [0, 99, 99, 199] and [s.t for s in steps] == [99, 199]


def test_inversion_goes_on_from_where_it_stopped():
    "A path in two parts, by `start`, is the path in one."
    x, ts = noise(), [899, 599, 299, 99]
    for invert in ddim_invert, heun_invert:
        whole = list(invert(exact(0), x, schedule, ts))
        low = end(invert(exact(0), x, schedule, ts[2:]))
        assert torch.equal(end(invert(exact(0), low, schedule, ts[:2], start=299)), whole[-1].x)
        assert torch.equal(low, whole[1].x)


@pytest.mark.parametrize("kind,make", [("linear", linear_schedule), ("squaredcos_cap_v2", cosine_schedule)])
@pytest.mark.parametrize("steps", [10, 50])
def test_parity_with_diffusers(kind, make, steps):
    "diffusers' DDIMInverseScheduler, trailing, unclipped, an eps-predicting network: our at='target'. N divides T. Each step from our x."
    diffusers = pytest.importorskip("diffusers")
    ours, network = make(), Made()
    theirs = diffusers.DDIMInverseScheduler(1000, 1e-4, .02, kind, clip_sample=False, timestep_spacing="trailing")
    assert theirs.config.prediction_type == "epsilon"
    theirs.set_timesteps(steps)
    x = torch.randn(2, 3, 4, 4, generator=dice())
    found = list(ddim_invert(Denoiser(network, ours, "eps").given(None), x, ours, steps, at="target"))
    assert [s.t for s in found] == theirs.timesteps.tolist()
    for step in found:
        want = theirs.step(network(x, torch.full((2,), step.t)), step.t, x).prev_sample
        torch.testing.assert_close(step.x, want.float(), rtol=1e-5, atol=1e-5)
        x = step.x


@pytest.mark.parametrize("options, up, down, order", [(dict(at="source"), ddim_invert, ddim, 1), (dict(refine=3), ddim_invert, ddim, 2), ({}, heun_invert, heun, 2)], ids=["source", "refined", "heun"])
def test_inversion_goes_back_over_a_switch(options, up, down, order):
    "Where the way down changed its denoiser, the old one had been asked; the way up has to ask it too."
    def off(N):
        both = switch(exact(0), exact(1), step_to_t(N // 2, N, 1000))
        points = end(down(both, noise(), schedule, N))
        return rms(end(down(both, end(up(both, points, schedule, N, **options)), schedule, N)), points)
    assert off(160) < off(40) / 4 ** order * 1.6


# ---------------------------------------------------------------- switching is inverting

@pytest.mark.parametrize("w", [1, 6])
def test_switching_is_inverting_and_decoding_in_the_limit(w):
    class Exact(nn.Module):
        def null(self, n, device=None): return torch.full((n,), 2)
        def forward(self, x, t, cond):
            mixtures = (*CLASSES, GaussianMixture(torch.cat([m.means for m in CLASSES]), .35))
            return torch.stack([m.denoise(x, t, schedule).eps for m in mixtures])[cond, torch.arange(len(x))]
    d = Denoiser(Exact(), schedule, "eps")
    one, two = (guide(d, torch.full((64,), c), scale=w) for c in (0, 1))
    def gap(N, **options):
        ts = [t for t, _ in path(schedule, N)]
        switched = end(ddim(switch(one, two, step_to_t(N // 2, N, 1000)), noise(), schedule, N))
        up = end(ddim_invert(one, end(ddim(one, noise(), schedule, N)), schedule, ts[N // 2:], **options))
        return rms(end(ddim(two, up, schedule, ts[N // 2:])), switched)
    for at in "source", "target":
        assert 4 < gap(50, at=at) / gap(250, at=at) < 6 and gap(50, at=at) < .1        # first order
    assert gap(50, refine=20) < 1e-9                                                    # and none, if the way back is exact


# ---------------------------------------------------------------- unclipped

def test_unclipped_shares_weights_and_leaves_the_original():
    d = Denoiser(UNet(16, (1,)), schedule, "v", clip=1.)
    d.info = dict(size=8)
    free = unclipped(d)
    assert free.clip is None and d.clip == 1 and free.info == d.info and free.schedule is d.schedule and free.predicts == "v"
    assert all(a is b for a, b in zip(free.parameters(), d.parameters(), strict=True))
    x = 3 * torch.randn(2, 3, 8, 8, generator=dice())
    assert d(x, 50).x0.abs().max() == 1 and free(x, 50).x0.abs().max() > 1
    next(d.parameters()).data.add_(1.)
    assert torch.equal(free.raw(x, 50), d.raw(x, 50))


def test_clipping_on_one_way_spoils_a_round_trip():
    "Points inside the range, a network whose guesses leave it: fine if clipped on neither or on both ways, spoiled on one."
    class Overshoots(nn.Module):
        def forward(self, x, t, cond=None): return 1.4 * torch.tanh(2 * x)
    kinds = {clip: Denoiser(Overshoots(), schedule, "x0", clip).given(None) for clip in (None, 1.)}
    x = torch.rand(200, 2, dtype=torch.float64, generator=dice()) * 1.6 - .8
    ts = torch.linspace(800, 200, 200).long().unique().flip(0)
    low = x * levels(schedule, 200)[0]
    off = {(a, b): rms(end(heun(kinds[b], end(heun_invert(kinds[a], low, schedule, ts[:-1], start=200)), schedule, ts[:-1], stop=200)), low)
           for a in kinds for b in kinds}
    assert max(off[None, None], off[1., 1.]) < 2e-3 and min(off[None, 1.], off[1., None]) > .02


# ---------------------------------------------------------------- restyle

def picture(n=2): return torch.rand(n, 3, 8, 8, generator=dice()) * 2 - 1


def made(schedule=schedule): return Denoiser(Made(), schedule).given(None)


def test_restyle_at_strength_0_and_1():
    x = picture()
    (only,) = restyle(made(), x, schedule, 0)
    assert torch.equal(only.x, x)
    # at 1 it is sampling from the noise that the dice gave, but for alpha_T = 5e-5 of the picture
    rng = generators(0, 2)
    plain = end(dpmpp_2m(made(), sample_noise(), schedule, 20))
    assert rms(end(restyle(made(), x, schedule, 1, 20, rng=rng)), plain) < 1e-3
    assert rms(end(restyle(made(), -x, schedule, 1, 20, rng=generators(0, 2))), plain) < 1e-3


def sample_noise():
    return torch.stack([torch.randn(3, 8, 8, generator=g) for g in generators(0, 2)])


@pytest.mark.parametrize("strength,steps,first,count", [(.5, 20, 499, 10), (1., 20, 999, 20), (.02, 20, 19, 1), (.001, 20, 0, 1), (.3, 1, 299, 1)])
def test_restyle_begins_at_its_level(strength, steps, first, count):
    spy = Counted(made())
    found = list(restyle(spy, picture(), schedule, strength, steps, ddim, dice()))
    assert spy.asked[0] == first and len(found) == count == len(spy.asked)


def test_restyle_goes_from_the_photo_to_its_own_way():
    "With the exact denoiser of class 1: more strength, further from the point, nearer to the class."
    x = CLASSES[0].sample(300, torch.Generator().manual_seed(0))
    far, ends = [], {}
    for s in (0., .1, .4, .7, 1.):
        ends[s] = end(restyle(exact(1), x, schedule, s, 40, rng=generators(0, 300)))
        far.append(rms(ends[s], x))
    assert far == sorted(far) and far[0] == 0
    assert CLASSES[1].log_prob(ends[1.], -1, schedule).mean() > CLASSES[1].log_prob(ends[.1], -1, schedule).mean() + 2


@pytest.mark.parametrize("name", samplers)
def test_restyle_takes_every_sampler_and_picture_i_is_its_own(name):
    two = end(restyle(made(), picture(), schedule, .6, 8, samplers[name], generators(4, 2)))
    one = end(restyle(made(), picture()[1:], schedule, .6, 8, samplers[name], generators(4, 1, start=1)))
    assert two.shape == picture().shape and torch.allclose(two[1:], one, atol=1e-6)


@pytest.mark.parametrize("strength", [-.1, 1.01, float("nan")])
def test_restyle_refuses_other_strengths(strength):
    with pytest.raises(ValueError, match="strength: got .*expected 0..1"): next(restyle(made(), picture(), schedule, strength))


# ---------------------------------------------------------------- inpaint

@pytest.mark.parametrize("per_picture", [False, True])
@pytest.mark.parametrize("name", samplers)
def test_inpaint_keeps_the_known_part_exactly(name, per_picture):
    x, mask = picture(), torch.zeros(2 if per_picture else 1, 1, 8, 8)
    mask[..., 3:] = 1
    if per_picture: mask[1] = 1 - mask[1]
    got = sample(inpaint(made(), x, mask, schedule), (2, 3, 8, 8), schedule, 12, name)
    known = mask.bool().expand_as(x)
    assert torch.equal(got[known], x[known]) and not torch.allclose(got[~known], x[~known], atol=.05)


def test_inpaint_answers_x0_and_eps_that_agree():
    x, x_t, mask = picture(), torch.randn(2, 3, 8, 8, generator=dice()), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    for t in (0, 300, 999):
        (x0, eps), (alpha, sigma) = inpaint(made(), x, mask, schedule)(x_t, t), schedule.at(t, x)
        assert torch.allclose(alpha * x0 + sigma * eps, x_t, atol=1e-5) and torch.equal(x0[..., :4], x[..., :4])
        assert torch.equal(x0[..., 4:], made()(x_t, t).x0[..., 4:])


def test_inpaint_keeps_breaks():
    mixed = switch(made(), made(), 500)
    assert inpaint(mixed, picture(), torch.ones(1, 1, 8, 8), schedule).breaks == (500,)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (1, 3, 8, 8), (3, 1, 8, 8), (1, 1, 4, 8)])
def test_inpaint_refuses_other_masks(shape):
    with pytest.raises(ValueError, match=r"mask: got shape .*expected \(1 or 2, 1, 8, 8\)"): inpaint(made(), picture(), torch.ones(shape), schedule)


# ---------------------------------------------------------------- slerp

def test_slerp_ends_lengths_and_angles():
    a, b = torch.randn(2, 5, 3, 32, 32, dtype=torch.float64, generator=dice())
    assert torch.allclose(slerp(a, b, 0), a) and torch.allclose(slerp(a, b, 1.), b)
    length = lambda z: z.flatten(1).norm(dim=1)
    for f in (.2, .5, .8):
        low, high = torch.minimum(length(a), length(b)), torch.maximum(length(a), length(b))
        assert (length(slerp(a, b, f)) > .97 * low).all() and (length(slerp(a, b, f)) < 1.03 * high).all()
    assert (length((a + b) / 2) < .75 * length(a)).all()                     # the straight line falls short
    # unit vectors stay on the sphere, at the share f of the angle
    u, v = (z / length(z).view(-1, 1, 1, 1) for z in (a, b))
    angle = lambda p, q: (p * q).flatten(1).sum(1).acos()
    m = slerp(u, v, .3)
    assert torch.allclose(length(m), torch.ones(5, dtype=torch.float64)) and torch.allclose(angle(u, m), .3 * angle(u, v))


def test_slerp_one_f_for_each():
    a, b = torch.randn(2, 3, 3, 4, 4, generator=dice())
    f = torch.tensor([0., .5, 1.])
    got = slerp(a, b, f)
    assert all(torch.allclose(got[i:i + 1], slerp(a[i:i + 1], b[i:i + 1], f[i].item()), atol=1e-6) for i in range(3))
    assert slerp(a[:1], b[:1], f).shape == (3, 3, 4, 4)                      # one pair, many places


def test_slerp_of_parallel_noises():
    a = torch.randn(2, 3, 4, 4, generator=dice())
    assert torch.allclose(slerp(a, a, .3), a, atol=1e-6) and torch.allclose(slerp(a, 2 * a, .5), 1.5 * a, atol=1e-5)


def test_slerp_refuses_opposite_ends():
    a = torch.randn(2, 3, 4, 4, generator=dice())
    with pytest.raises(ValueError, match="b: points away from a"): slerp(a, -a, .25)


def test_slerp_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"b: got shape .*expected a's"): slerp(torch.randn(2, 3), torch.randn(2, 4), .5)


# ---------------------------------------------------------------- the other errors, and what is left untouched

def test_inversion_errors():
    with pytest.raises(ValueError, match="at: got 'middle', expected 'source' or 'target'"): next(ddim_invert(exact(0), noise(), schedule, 5, at="middle"))
    with pytest.raises(ValueError, match="refine: got -1, expected 0 or more"): next(ddim_invert(exact(0), noise(), schedule, 5, refine=-1))
    for invert in ddim_invert, heun_invert:
        with pytest.raises(ValueError, match="steps: got .*falling"): next(invert(exact(0), noise(), schedule, [5, 9]))
        with pytest.raises(ValueError, match="within 999..301"): next(invert(exact(0), noise(), schedule, [500, 100], start=300))


def test_pictures_are_not_changed_and_no_graph_is_kept():
    weight = torch.ones((), requires_grad=True)
    def d(x, t):
        p = made()(x, t)
        return Prediction(weight * p.x0, weight * p.eps)
    x = picture()
    before = x.clone()
    for found in ddim_invert(d, x, schedule, 4), heun_invert(d, x, schedule, 4), restyle(d, x, schedule, .5, 4, rng=dice()):
        assert not any(s.x.requires_grad for s in found)
    assert not any(got.requires_grad for _, got in switch_sweep(d, d, x, schedule, 4, [0, 2, 4]))
    assert torch.equal(x, before)


def test_finite_where_no_signal_is_left_at_T():
    ab = cosine_schedule().alpha_bar.clone()
    ab[-1] = 0
    zero = NoiseSchedule(ab)
    d = Denoiser(Made(), zero).given(None)
    assert end(ddim_invert(d, picture(), zero, 10)).isfinite().all() and end(heun_invert(d, picture(), zero, 10)).isfinite().all()
