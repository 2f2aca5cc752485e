"Class conditioning: rows, label dropout, the null class, and what labels may be."
import pytest
import torch
from torch import nn

from zerodiff.conditioning import ClassConditional, ClassEmbedding
from zerodiff.data import garden
from zerodiff.schedule import cosine_schedule
from zerodiff.training import Batches, Denoiser, Trainer, load, save_weights
from zerodiff.unet import UNet, build


def small(classes=5, drop=.1, shake=True):
    torch.manual_seed(0)
    network = ClassConditional(UNet(16, (1,), cond_dim=8), classes, drop)
    if shake:
        for p in network.parameters(): nn.init.normal_(p, std=.1)
    return network


def test_lookup_is_one_hot_times_table():
    rows, c = ClassEmbedding(6, 4), torch.tensor([0, 5, 5, 6])
    assert torch.equal(rows(c), nn.functional.one_hot(c, 7).float() @ rows.table.weight)


@pytest.mark.parametrize("labels, error, says", [
    (torch.tensor([-1]), ValueError, "-1..-1, expected 0..4, or 5 for no class"),
    (torch.tensor([2, 6]), ValueError, "2..6, expected 0..4"),
    (torch.tensor([1.]), TypeError, "float32, expected int64"),
    (torch.tensor([1], dtype=torch.int32), TypeError, "int32, expected int64"),
    (torch.tensor([True]), TypeError, "bool, expected int64")])
def test_labels_out_of_range(labels, error, says):
    with pytest.raises(error, match=says): ClassEmbedding(5, 4)(labels)


@pytest.mark.parametrize("n, dim", [(0, 4), (3, 0), (-1, 4)])
def test_sizes_that_make_no_table(n, dim):
    with pytest.raises(ValueError, match="n, dim: got"): ClassEmbedding(n, dim)


def test_empty_batch_passes():
    rows, none = ClassEmbedding(5, 4), torch.zeros(0, dtype=torch.int64)
    assert rows(none).shape == (0, 4) and rows.drop(none, .5).shape == (0,)


@pytest.mark.parametrize("p", [.05, .1, .5])
def test_dropout_is_binomial_in_each_batch(p):
    "Mean and variance of the number hidden in a batch of 32 are the binomial's; labels that are kept are unchanged."
    rows, rng, labels = ClassEmbedding(5, 4), torch.Generator().manual_seed(1), torch.arange(32) % 5
    kept = torch.stack([rows.drop(labels, p, rng) for _ in range(4000)])
    hidden = kept == 5
    assert torch.equal(kept[~hidden], labels.expand(4000, -1)[~hidden])
    count = hidden.sum(1).double()
    assert abs(count.mean() - 32 * p) < 5 * (32 * p * (1 - p) / 4000) ** .5
    assert .85 < count.var() / (32 * p * (1 - p)) < 1.15
    z = hidden.double() - hidden.double().mean(0)                  # no two places of a batch go together
    correlation = (z.T @ z / 4000)[~torch.eye(32, dtype=bool)] / (p * (1 - p))
    assert correlation.abs().max() < .1 and abs(correlation.mean()) < .01


def test_dropout_ends_and_generator():
    rows, labels = ClassEmbedding(5, 4), torch.arange(5).repeat(20)
    assert torch.equal(rows.drop(labels, 0.), labels) and (rows.drop(labels, 1.) == 5).all()
    draw = lambda seed: rows.drop(labels, .5, torch.Generator().manual_seed(seed))
    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))
    assert draw(3).dtype == torch.int64


@pytest.mark.parametrize("p", [-.1, 1.5, float("nan")])
def test_dropout_share_must_be_a_probability(p):
    with pytest.raises(ValueError, match="p: got"): ClassEmbedding(5, 4).drop(torch.tensor([0]), p)
    with pytest.raises(ValueError, match="drop: got"): ClassConditional(UNet(16, (1,), cond_dim=8), 5, drop=p)


def test_training_labels_may_not_be_null():
    "Ids that start at 1 reach n, which is the null row: in training this must not pass."
    with pytest.raises(ValueError, match="start at 1"): ClassEmbedding(5, 4).drop(torch.arange(1, 6), .1)
    data = garden(8, size=16)
    data.labels = torch.full((8,), 5)
    with pytest.raises(ValueError, match="start at 1"): Trainer(Denoiser(small(), cosine_schedule()), data, steps=1, batch=4, device="cpu").fit()


def test_none_is_the_null_class_and_the_null_row_is_used():
    network, x, t = small(), torch.randn(3, 3, 8, 8), torch.tensor([900, 500, 10])
    with torch.no_grad():
        null = network(x, t)
        assert torch.equal(null, network(x, t, network.null(3)))
        network.embedding.table.weight[5] += 1
        assert not torch.allclose(null, network(x, t))


def test_each_sample_answers_its_own_label():
    network, x, t = small(), torch.randn(6, 3, 8, 8), torch.full((6,), 500)
    labels = torch.arange(6)
    with torch.no_grad():
        together = network(x, t, labels)
        alone = torch.cat([network(x[i:i + 1], t[:1], labels[i:i + 1]) for i in range(6)])
        same = network(x[:1].expand(6, -1, -1, -1), t, labels)
    assert torch.allclose(together, alone, atol=1e-5)
    assert all((same[i] - same[j]).abs().max() > 1e-3 for i in range(6) for j in range(i))


def test_gradient_reaches_only_the_rows_in_the_batch():
    network = small()
    network(torch.randn(2, 3, 8, 8), torch.tensor([5, 900]), torch.tensor([1, 5])).square().sum().backward()
    touched = network.embedding.table.weight.grad.abs().amax(1) > 0
    assert touched.tolist() == [False, True, False, False, False, True]


@pytest.mark.parametrize("cond", [torch.tensor([1]), torch.zeros(2, 1, dtype=torch.int64), torch.arange(4)])
def test_labels_for_another_number_of_pictures(cond):
    with pytest.raises(ValueError, match="cond: got shape"): small()(torch.randn(2, 3, 8, 8), torch.tensor([5, 6]), cond)


def test_a_network_without_condition():
    with pytest.raises(ValueError, match="cond_dim=0"): ClassConditional(UNet(16, (1,)), 5)


def test_config_and_file_round_trip(tmp_path):
    network = small()
    again = build(network.config)
    assert again.config == network.config and again.drop_share == .1 and again.embedding.n == 5
    denoiser = Denoiser(network, cosine_schedule(), clip=1.)
    save_weights(tmp_path / "w.safetensors", denoiser, half=False)
    loaded = load(tmp_path / "w.safetensors", device="cpu")
    x, c = torch.randn(2, 3, 8, 8), torch.tensor([0, 5])
    assert torch.allclose(loaded(x, 300, c).x0, denoiser(x, 300, c).x0, atol=1e-5)


def test_training_hides_labels_one_by_one():
    "What reaches the network in training: batches in which some labels, and rarely all, are null."
    network, seen = small(drop=.25, shake=False), []
    network.embedding.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    data = garden(64, size=16)
    data.labels = data.labels % 5
    Trainer(Denoiser(network, cosine_schedule()), data, steps=25, batch=32, device="cpu").fit()
    share = (torch.stack(seen) == 5).float().mean(1)
    assert len(seen) == 25 and .15 < share.mean() < .35
    assert ((share > 0) & (share < 1)).all()


def test_the_null_row_learns_the_mean_of_all_and_class_rows_the_mean_of_theirs():
    rng = torch.Generator().manual_seed(0)
    truth, rows = torch.tensor([[-1.], [0.], [4.]]), ClassEmbedding(3, 1)
    optimizer = torch.optim.SGD(rows.parameters(), lr=1.)
    for k in range(1500):
        c = torch.randint(3, (60,), generator=rng)
        loss = (rows(rows.drop(c, .2, rng)) - truth[c]).square().mean()
        for group in optimizer.param_groups: group["lr"] = 1. / (1 + .02 * k)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    assert torch.allclose(rows.table.weight.detach(), torch.tensor([[-1.], [0.], [4.], [1.]]), atol=.1)


def test_drawn_labels_depend_on_seed_and_step_alone():
    network, data = small(drop=.5), garden(64, size=16)
    data.labels = data.labels % 5
    draw = lambda step: Batches(data, 1000, 16).draw(step, network.drop)[1]
    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))
