"""The UNet: what it computes, what it refuses, what it costs, and that its configuration makes it again."""
import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zerodiff import unet as module
from zerodiff.conditioning import ClassConditional
from zerodiff.unet import Block, ChannelNorm, Network, Stage, UNet, attention_slot, build, find, timestep_embedding, zeroed

SHIPPED = dict(channels=128, multipliers=(1, 2, 2), cond_dim=256, patch=2)


def wake(net, seed=0):
    "Give every zeroed convolution weights, so that the network answers something."
    torch.manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.Conv2d) and not m.weight.any(): m.reset_parameters()
    return net


def make(seed=0, **kw):
    torch.manual_seed(seed)
    return wake(UNet(**{**dict(channels=16, multipliers=(1, 2), cond_dim=8), **kw}))


def inputs(n=4, size=16, cond_dim=8, channels=3, dtype=torch.float32):
    rng = torch.Generator().manual_seed(1)
    t = torch.tensor([0, 10, 500, 999])[:n]
    return torch.randn(n, channels, size, size, generator=rng).to(dtype), t, torch.randn(n, cond_dim, generator=rng).to(dtype)


def shapes(net): return {k: v.shape for k, v in net.state_dict().items()}


# --- time

def test_timestep_embedding_closed_form():
    t, d = torch.tensor([0, 1, 7, 512, 999]), 12
    e = timestep_embedding(t, d)
    for i, step in enumerate(t.tolist()):
        for k in range(d // 2):
            angle = step * 10_000 ** (-2 * k / d)
            assert abs(e[i, k] - math.cos(angle)) < 1e-4 and abs(e[i, k + d // 2] - math.sin(angle)) < 1e-4
    assert e.dtype == torch.float32


def test_timestep_embedding_likeness_depends_on_the_distance_alone():
    e = timestep_embedding(torch.arange(1000), 64)
    for gap in 1, 30, 400:
        like = (e[gap:] * e[:-gap]).sum(1)
        assert like.max() - like.min() < 2e-3


def test_timestep_embedding_tells_all_steps_apart():
    e = timestep_embedding(torch.arange(1000), 16)
    apart = torch.cdist(e.double(), e.double()) + 10 * torch.eye(1000)
    assert apart.min() > .05
    share = timestep_embedding(torch.arange(1000) / 1000, 16)     # the field's bug: time as a share of the way
    assert share.diff(dim=0).norm(dim=1).max() < .01


def test_timestep_embedding_is_the_same_for_every_integer_type_and_batch():
    t = torch.tensor([3, 77, 120])
    e = timestep_embedding(t, 32)
    assert torch.equal(timestep_embedding(t.int(), 32), e) and torch.equal(timestep_embedding(t[1:2], 32), e[1:2])


def test_timestep_embedding_refuses_odd_dim():
    with pytest.raises(ValueError, match="dim: got 7, expected an even number"): timestep_embedding(torch.tensor([1]), 7)


def test_time_as_a_share_is_refused():
    x, t, c = inputs()
    with pytest.raises(TypeError, match="t: got torch.float32, expected integer steps"): make()(x, t / 1000, c)


# --- blocks

def test_channel_norm_closed_form_and_locality():
    h = torch.randn(2, 8, 4, 4, dtype=torch.float64) * 5 + 3
    z = ChannelNorm()(h)
    torch.testing.assert_close(z.mean(1), torch.zeros(2, 4, 4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(z, (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt())
    other = h.clone()
    other[:, :, 1, 2] = torch.randn(2, 8, dtype=torch.float64)
    changed = (ChannelNorm()(other) != z).any(1)
    assert changed[:, 1, 2].all() and changed.sum() == 2


def test_block_begins_as_identity_and_zero_scale_silences_it():
    torch.manual_seed(0)
    block, x, emb = Block(16, 16, 8), torch.randn(2, 16, 8, 8), torch.randn(2, 8)
    assert torch.equal(block(x, emb), x)
    wake(block), zeroed(block.film)
    block.film.bias.data[:16] = -1                                # gamma = -1, beta = 0
    torch.testing.assert_close(block(x, emb), x + block.conv2.bias[:, None, None])


def test_film_scales_and_shifts():
    torch.manual_seed(0)
    block, x, emb = wake(Block(4, 6, 3)), torch.randn(2, 4, 5, 5), torch.randn(2, 3)
    gamma, beta = block.film(emb).split(6, dim=1)
    norm = ChannelNorm()
    h = norm(block.conv1(F.silu(norm(x)))) * (1 + gamma[:, :, None, None]) + beta[:, :, None, None]
    torch.testing.assert_close(block(x, emb), block.skip(x) + block.conv2(F.silu(h)))


def test_stage_is_its_blocks_in_a_row():
    torch.manual_seed(0)
    stage = wake(Stage(8, 4, 5, blocks=3))
    assert [b.conv1.in_channels for b, _ in stage] == [8, 4, 4]
    h, emb = torch.randn(1, 8, 4, 4), torch.randn(1, 5)
    expected = stage[2][0](stage[1][0](stage[0][0](h, emb), emb), emb)
    assert torch.equal(stage(h, emb), expected)


# --- the whole

def test_an_untrained_unet_answers_zero():
    assert not UNet(16, (1, 2), cond_dim=8)(*inputs()).any()


@pytest.mark.parametrize("kw", [dict(), dict(blocks=2), dict(patch=2), dict(multipliers=(1,)), dict(multipliers=(2, 1, 3)),
                                dict(out_channels=6), dict(in_channels=1)])
def test_every_variation_answers_at_the_size_of_the_question(kw):
    net = make(**kw)
    x, t, c = inputs(channels=kw.get("in_channels", 3))
    x = torch.cat([x, x], dim=-1)                                 # 16 x 32: height and width are not confused
    y = net(x, t, c)
    assert y.shape == (4, kw.get("out_channels") or x.shape[1], 16, 32) and y.isfinite().all() and y.std() > .05


def test_gradient_reaches_every_parameter():
    net = make(blocks=2, multipliers=(1, 2, 2), attention=lambda c: nn.Conv2d(c, c, 1), attention_levels=(1,))
    net(*inputs()).square().sum().backward()
    dead = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_a_zeroed_network_wakes_within_three_steps():
    torch.manual_seed(0)
    net = UNet(16, (1, 2), cond_dim=8)
    optimizer = torch.optim.SGD(net.parameters(), .1)
    awake = []
    for _ in range(3):
        optimizer.zero_grad()
        (net(*inputs()) - 1).square().mean().backward()
        optimizer.step()
        awake.append({k for k, p in net.named_parameters() if p.grad.any()})
    assert awake[0] == {"out.2.weight", "out.2.bias"} and awake[2] == {k for k, _ in net.named_parameters()}


def test_pictures_of_a_batch_do_not_see_each_other():
    net = make().double()
    x, t, c = inputs(dtype=torch.float64)
    y = net(x, t, c)
    for i in range(4): torch.testing.assert_close(net(x[i:i + 1], t[i:i + 1], c[i:i + 1]), y[i:i + 1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(net(x.flip(0), t.flip(0), c.flip(0)).flip(0), y, rtol=1e-9, atol=1e-12)


def test_time_and_condition_change_the_answer_of_their_own_picture():
    net = make()
    x, t, c = inputs()
    y, other_c, other_t = net(x, t, c), c.clone(), t.clone()
    other_c[1] += 1
    other_t[2] += 1                                               # a single step is enough
    for new, row in (net(x, t, other_c), 1), (net(x, other_t, c), 2):
        differs = (new - y).abs().amax((1, 2, 3))
        assert differs[row] > 1e-4 and differs[[i for i in range(4) if i != row]].max() < 1e-5


def test_no_condition_adds_nothing():
    net = make()
    x, t, c = inputs()
    zeroed(net.cond)
    torch.testing.assert_close(net(x, t), net(x, t, c))
    without = make(cond_dim=0)
    assert without.cond is None and without(x, t).std() > .05


@pytest.mark.parametrize("patch,levels", [(1, 1), (1, 2), (2, 2), (2, 3), (4, 1)])
def test_translation_by_the_multiple_and_by_nothing_less(patch, levels):
    net = make(cond_dim=0, multipliers=(1, 2, 2)[:levels], patch=patch).double()
    assert net.multiple == patch * 2 ** (levels - 1)
    for m in net.modules():
        if isinstance(m, nn.Conv2d): m.padding_mode = "circular"
    x, t, _ = inputs(1, 32, dtype=torch.float64)
    with torch.no_grad():
        y = net(x, t)
        for axis in -1, -2:
            off = [((net(x.roll(k, axis), t) - y.roll(k, axis)).norm() / y.norm()).item() for k in range(net.multiple + 1)]
            assert off[0] == 0 and off[-1] < 1e-10 and all(o > 1e-3 for o in off[1:-1])


def test_every_skip_arrives():
    net, left, right = make(multipliers=(1, 2, 2)), {}, {}
    for i in range(3):
        net.down[i].register_forward_hook(lambda m, args, out, i=i: left.update({i: out}))
        net.up[i].register_forward_pre_hook(lambda m, args, i=i: right.update({i: args[0].chunk(2, 1)[1]}))
    net(*inputs())
    assert all(torch.equal(left[i], right[i]) for i in range(3)) and len(left) == 3


def test_reach_is_many_times_that_of_a_stack():
    net = make(channels=16, multipliers=(1, 2, 2), cond_dim=0)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)).requires_grad_()
    net(x, torch.zeros(2, dtype=torch.int64))[:, :, 48, 48].sum().backward()
    seen = int((x.grad.abs().sum((0, 1)) > 0).any(0).sum())
    convolutions = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in net.modules())
    assert convolutions == 18 and 2 * (2 * 18 + 1) < seen < 96    # far, but still local: no norm looks at the whole picture


def test_patch_is_lossless_and_undone():
    x = torch.randn(2, 3, 8, 12)
    for patch in 1, 2, 4:
        folded = F.pixel_unshuffle(x, patch)
        assert folded.shape == (2, 3 * patch ** 2, 8 // patch, 12 // patch) and torch.equal(F.pixel_shuffle(folded, patch), x)
    net = UNet(16, (1,), patch=2)                                 # and the network's channels lie in just that order
    class Through(nn.Module):
        def forward(self, h, emb): return h
    net.stem, net.down, net.up, net.middle, net.out = nn.Identity(), nn.ModuleList(), nn.ModuleList(), Through(), nn.Identity()
    assert torch.equal(net(x[..., :8], torch.tensor([1, 2])), x[..., :8])


def test_dropout_only_in_training():
    net, plain = make(dropout=.5), make()
    plain.load_state_dict(net.state_dict())
    args = inputs()
    net.train(), plain.train()
    assert not torch.equal(net(*args), net(*args)) and torch.equal(plain(*args), plain(*args))
    net.eval()
    assert torch.equal(net(*args), net(*args)) and torch.equal(net(*args), plain(*args))
    assert torch.equal(plain.eval()(*args), plain.train()(*args))


def test_bf16_and_channels_last_are_close():
    net, (x, t, c) = make(channels=32, multipliers=(1, 2, 2), patch=2), inputs(size=32)
    with torch.no_grad():
        y = net(x, t, c)
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), t, c)
        with torch.autocast("cpu", torch.bfloat16): auto = net(x, t, c).float()
        whole = copy.deepcopy(net).bfloat16()(x.bfloat16(), t, c.bfloat16()).float()
    off = lambda z: ((z - y).norm() / y.norm()).item()
    assert off(last) < 1e-5 and 1e-5 < off(auto) < .03 and 1e-5 < off(whole) < .05


# --- the slot

class Count(nn.Module):
    "Stands in a slot, and notes what comes by."
    def __init__(self, channels): super().__init__(); self.channels, self.got = channels, []
    def forward(self, h): self.got.append(tuple(h.shape)); return h


def test_attention_stands_behind_each_block_of_its_levels_and_of_the_middle():
    net = make(multipliers=(1, 2, 4), blocks=2, attention=Count, attention_levels=(0, 2))
    net(*inputs(2))
    got = {k: (m.channels, m.got) for k, m in net.named_modules() if isinstance(m, Count)}
    expected = {f"{side}.{level}.{i}.1": (width, [(2, width, s, s)])
                for side in ("down", "up") for level, width, s in ((0, 16, 16), (2, 64, 4)) for i in range(2)}
    assert got == expected | {"middle_slot": (64, [(2, 64, 4, 4)])}


def test_attention_sees_the_block_and_its_answer_is_used():
    class Zero(nn.Module):
        def __init__(self, channels): super().__init__()
        def forward(self, h): return h * 0
    args = inputs()
    torch.testing.assert_close(make(attention=Count, attention_levels=(0, 1))(*args), make()(*args))
    silent = make(attention=Zero, attention_levels=(0, 1))
    y = silent(*args)                                             # nothing is left but the last bias
    torch.testing.assert_close(y, silent.out[-1].bias[:, None, None].expand_as(y))


def test_attention_by_name_is_found_and_stands_in_json(monkeypatch):
    monkeypatch.setattr(module, "Count", Count, raising=False)
    net = UNet(16, (1, 2), attention="zerodiff.unet.Count", attention_levels=[1])
    again = build(json.loads(json.dumps(net.config)))
    assert [k for k, m in again.named_modules() if isinstance(m, Count)] == ["down.1.0.1", "up.1.0.1", "middle_slot"]
    assert isinstance(attention_slot(None, 4), nn.Identity)


@pytest.mark.parametrize("name, says", [
    ("torch.nn.Identity", "got 'torch.nn.Identity', expected a name within zerodiff"), ("zerodiff.unet.nothing", "not in this version"),
    ("zerodiff.unet.build", "is not a Module"), ("zerodiff.unet.math", "is not a Module")])
def test_attention_names_nothing_but_modules_of_zerodiff(name, says):
    with pytest.raises(ValueError, match=says): UNet(16, (1, 2), attention=name)


# --- what it refuses

@pytest.mark.parametrize("kw, shape, says", [
    (dict(), (2, 3, 15, 16), "x: got 15x16 pixels, expected multiples of 2"),
    (dict(multipliers=(1, 2, 2), patch=2), (2, 3, 32, 36), "x: got 32x36 pixels, expected multiples of 8"),
    (dict(), (2, 16, 16, 3), r"x: got shape \(2, 16, 16, 3\), expected \(B, 3, H, W\)"),
    (dict(), (3, 16, 16), r"x: got shape \(3, 16, 16\), expected \(B, 3, H, W\)"),
    (dict(in_channels=1), (2, 3, 16, 16), r"expected \(B, 1, H, W\)")])
def test_pictures_that_do_not_fit(kw, shape, says):
    with pytest.raises(ValueError, match=says): make(**kw)(torch.randn(shape), torch.tensor([1, 2]))


def test_conditions_that_do_not_fit():
    x, t, c = inputs()
    with pytest.raises(ValueError, match="cond: got a vector of 7, expected 8"): make()(x, t, c[:, :7])
    with pytest.raises(ValueError, match=r"cond: got a vector of 8, expected None \(this network has no condition\)"): make(cond_dim=0)(x, t, c)


@pytest.mark.parametrize("channels", [0, 15])
def test_channels_that_cannot_be_halved(channels):
    with pytest.raises(ValueError, match=f"channels: got {channels}, expected an even number"): UNet(channels)


# --- a network that says how it was made

CONFIGURATIONS = [UNet(16, (1, 2)), UNet(channels=8, multipliers=[2], cond_dim=3, dropout=.25, patch=2, out_channels=6),
                  UNet(8, (1, 1, 2), 2, attention_levels=(0,)), ClassConditional(UNet(8, (1,), cond_dim=4), 5, drop=.3)]


@pytest.mark.parametrize("net", CONFIGURATIONS, ids=range(len(CONFIGURATIONS)))
def test_config_through_json_builds_the_same_network(net):
    again = build(json.loads(json.dumps(net.config)))
    assert type(again) is type(net) and again is not net
    assert again.config == net.config == json.loads(json.dumps(net.config)) and shapes(again) == shapes(net)
    again.load_state_dict(wake(net).state_dict())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    assert torch.equal(again.eval()(x, t), net.eval()(x, t))


def test_config_is_the_same_however_the_arguments_were_given():
    assert UNet(16, (1, 2), 1).config == UNet(blocks=1, multipliers=[1, 2], channels=16).config
    args = UNet(16).config["args"]
    assert args["multipliers"] == [1, 2, 2] and args["dropout"] == 0 and args["attention"] is None and len(args) == 10


def test_config_of_a_child_is_its_own_and_survives_a_copy():
    class Child(UNet):
        def __init__(self, size: int): super().__init__(size, (1,))
    class Same(UNet): pass
    assert Child(8).config["args"] == {"size": 8} and Child(8).config["class"].endswith("Child")
    assert Same(8, (1,)).config["args"] == UNet(8, (1,)).config["args"]
    net = CONFIGURATIONS[3]
    assert copy.deepcopy(net).config == net.config


@pytest.mark.parametrize("name, says", [
    ("os.system", "got 'os.system', expected a name within zerodiff"), ("builtins.eval", "expected a name within zerodiff"),
    ("torch.nn.Linear", "expected a name within zerodiff"), ("zerodiffusion.unet.UNet", "expected a name within zerodiff"),
    ("UNet", "expected a name within zerodiff"), ("", "expected a name within zerodiff"), ("zerodiff.unet.", "not in this version"),
    ("zerodiff.nothing.UNet", "not in this version"), ("zerodiff.unet.Wings", "not in this version"),
    ("zerodiff.training.os.system", "not in this version"), ("zerodiff..os.system", "not in this version"),
    ("zerodiff.unet.torch", "is not a Network"), ("zerodiff.unet.Block", "is not a Network"), ("zerodiff.unet.build", "is not a Network"),
    ("zerodiff.unet.UNet.forward", "not in this version")])
def test_build_refuses_what_is_no_network_of_zerodiff(name, says):
    with pytest.raises(ValueError, match=says): build({"class": name, "args": {}})


def test_build_refuses_a_network_inside_another_in_the_same_way():
    with pytest.raises(ValueError, match="expected a name within zerodiff"):
        build({"class": "zerodiff.conditioning.ClassConditional", "args": {"network": {"class": "os.system", "args": {"command": "true"}}, "classes": 2}})


def test_build_refuses_arguments_of_another_version():
    with pytest.raises(ValueError, match="zerodiff.unet.UNet of this version of zerodiff: got an unexpected keyword argument 'wings'"):
        build({"class": "zerodiff.unet.UNet", "args": {"wings": 2}})


def test_config_refuses_what_cannot_stand_in_json():
    net = UNet(8, (1,), attention=Count)                          # may be used, but not written down
    with pytest.raises(TypeError, match="zerodiff.unet.UNet, argument attention: got .*Count.*, expected a value that can stand in JSON"): net.config


def test_a_network_names_its_arguments():
    with pytest.raises(TypeError, match=r"Loose.__init__: got \* or \*\* arguments"):
        class Loose(Network):
            def __init__(self, **kw): super().__init__()
    class Bare(Network): pass
    assert Bare().config["args"] == {} and find("zerodiff.unet.Network", Network) is Network


# --- what it costs

def cost(size, **kw):
    with torch.device("meta"):
        net, x, c = UNet(**kw), torch.empty(1, 3, size, size), torch.empty(1, kw["cond_dim"])
        with FlopCounterMode(display=False) as counter: net(x, torch.zeros(1, dtype=torch.int64), c)
    return net, counter.get_total_flops()


def parameters(channels, multipliers, cond_dim, patch):
    "The number of parameters of a UNet with one block a level, counted by hand."
    conv = lambda i, o, k=3: k * k * i * o + o                    # with its bias; a linear layer is k = 1
    e, p, w = 4 * channels, 3 * patch ** 2, [channels * m for m in multipliers]
    block = lambda i, o: conv(i, o) + conv(e, 2 * o, 1) + conv(o, o) + (conv(i, o, 1) if i != o else 0)
    between = sum(conv(a, b) + conv(b, a, 1) for a, b in zip(w, w[1:]))
    levels = sum(block(a, a) + block(2 * a, a) for a in w) + block(w[-1], w[-1])
    return conv(channels, e, 1) + conv(e, e, 1) + conv(cond_dim, e, 1) + conv(p, w[0]) + between + levels + conv(w[0], p)


def test_shipped_configuration_costs_what_it_says():
    net, flops = cost(32, **SHIPPED)
    assert sum(p.numel() for p in net.parameters()) == parameters(**SHIPPED) == 11_161_740
    assert flops < 2.5e9 and flops == pytest.approx(1.006e9, rel=1e-3)
    with torch.device("meta"): whole = ClassConditional(UNet(**SHIPPED), 102)
    assert sum(p.numel() for p in whole.parameters()) == 11_161_740 + 103 * 256 == 11_188_108


def test_patch_saves_what_it_says():
    total = {patch: cost(64, **{**SHIPPED, "patch": patch}) for patch in (1, 2, 4)}
    flops = {k: f for k, (_, f) in total.items()}
    assert 3.9 < flops[1] / flops[2] < 4 and flops[4] < 2.5e9 < flops[2]
    counts = [sum(p.numel() for p in net.parameters()) for net, _ in total.values()]
    assert max(counts) < 1.01 * min(counts)
