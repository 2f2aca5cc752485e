"""Attention against torch's own, its linear form against the quadratic one, what each network promises, and what all of them refuse."""
import copy
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zerodiff.attention import (AdaLayer, DiT, Layer, LinearAttention, MultiHead, SelfAttention, ViT, attend, attention_weights, from_patches,
                                fused_pays, grid_position, linear_attention, linear_state, linear_weights, plain_attention, to_patches)
from zerodiff.conditioning import ClassConditional
from zerodiff.data import garden
from zerodiff.guidance import guide
from zerodiff.sampling import sample
from zerodiff.schedule import cosine_schedule
from zerodiff.training import Denoiser, Trainer, diffusion_loss, load, save_weights
from zerodiff.unet import UNet, attention_slot, build

TENANTS = {"SelfAttention": SelfAttention, "LinearAttention": LinearAttention}


def qkv(*shape, seed=0, dtype=torch.float64, e=None):
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(*shape, generator=rng, dtype=dtype) for _ in range(3))
    return q, k, v if e is None else torch.randn(*shape[:-1], e, generator=rng, dtype=dtype)


def awake(module, seed=0):
    "The module with random weights everywhere: much of a new one is zero."
    torch.manual_seed(seed)
    for p in module.parameters(): nn.init.normal_(p, std=.1)
    return module


# --- the look-up

@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 9))
def test_agrees_with_torch(b, n, m, d, e):
    (q, _, _), (_, k, v) = qkv(b, 2, n, d), qkv(b, 2, m, d, seed=1, e=e)
    want = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(plain_attention(q, k, v), want) and torch.allclose(attend(q, k, v), want)
    assert torch.allclose(attention_weights(q, k).sum(-1), torch.ones(b, 2, n, dtype=torch.float64))


def test_gradients_agree_with_torch():
    q, k, v = (x.requires_grad_() for x in qkv(2, 3, 20, 8))
    ours, theirs = (torch.autograd.grad(f(q, k, v).square().sum(), (q, k, v)) for f in (plain_attention, F.scaled_dot_product_attention))
    for a, b in zip(ours, theirs): assert torch.allclose(a, b)


def test_the_rule_counts_bytes():
    mib8 = torch.zeros(1, 2, 1024, 4)                                    # 2 x 1024 x 1024 x 4 bytes are 8 MiB
    assert not fused_pays(mib8, mib8)
    assert fused_pays(torch.zeros(1, 2, 1025, 4), mib8) and not fused_pays(torch.zeros(1, 2, 1025, 4).bfloat16(), mib8.bfloat16())
    assert fused_pays(torch.zeros(1, 1, 1, 4, device="meta"), torch.zeros(1, 1, 1, 4, device="meta"))        # whatever is no CPU


@pytest.mark.parametrize("n", [64, 1500])
def test_attend_takes_what_the_rule_says(n, monkeypatch):
    called, fused = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a: called.append(1) or fused(*a))
    q, k, v = qkv(1, 2, n, 8, dtype=torch.float32)
    assert torch.allclose(attend(q, k, v), plain_attention(q, k, v), atol=1e-5)
    assert bool(called) == fused_pays(q, k) == (n == 1500)


def test_constant_values_come_back():
    "A weighted mean of ones is one, in both forms: a softmax over the wrong axis fails here."
    q, k, v = qkv(2, 3, 20, 8)
    for form in (plain_attention, linear_attention): assert torch.allclose(form(q, k, torch.ones_like(v)), torch.ones_like(v))


@pytest.mark.parametrize("form", [plain_attention, linear_attention])
def test_order_of_the_keys_does_not_matter(form):
    (q, k, v), order = qkv(2, 3, 20, 8), torch.randperm(20, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(form(q, k[..., order, :], v[..., order, :]), form(q, k, v))
    assert not torch.allclose(form(q, k[..., order, :], v), form(q, k, v))


def test_scale_keeps_the_softmax_soft():
    "How many of 64 keys are looked at, exp of the entropy, must not depend on the number of features."
    for d in (4, 64, 1024):
        q, k, _ = qkv(50, 64, d)
        w = attention_weights(q, k)
        assert 35 < (-(w * w.log()).sum(-1)).exp().mean() < 48


# --- linear attention

@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 9))
def test_linear_is_its_quadratic_form(b, n, m, d, e):
    (q, _, _), (_, k, v) = qkv(b, 2, n, d), qkv(b, 2, m, d, seed=1, e=e)
    explicit = torch.einsum("bhnc,bhmc->bhnm", q.softmax(3), k.softmax(2))
    assert torch.allclose(linear_attention(q, k, v), explicit @ v) and torch.allclose(linear_weights(q, k), explicit)
    assert torch.allclose(explicit.sum(-1), torch.ones(b, 2, n, dtype=torch.float64))


def test_state_has_a_fixed_size_and_the_weights_its_rank():
    for m in (3, 50, 500): assert linear_state(*qkv(1, 1, m, 8, e=5)[1:]).shape == (1, 1, 8, 5)
    k = 30 * F.normalize(qkv(60, 8)[0], dim=1)
    assert torch.linalg.matrix_rank(linear_weights(k, k)) <= 8 < torch.linalg.matrix_rank(attention_weights(k, k)) == 60
    assert (attention_weights(k, k).argmax(1) == torch.arange(60)).all() and (linear_weights(k, k).argmax(1) == torch.arange(60)).sum() < 30


def flops(f, *args):
    with FlopCounterMode(display=False) as counter, torch.no_grad(): f(*args)
    return counter.get_total_flops()


def test_cost_is_a_square_and_a_line():
    for n in (64, 256, 1024):
        x = qkv(2, 3, n, 16, dtype=torch.float32)
        assert flops(plain_attention, *x) == 2 * 3 * 4 * n * n * 16 and flops(linear_attention, *x) == 2 * 3 * 4 * n * 16 * 16


# --- heads

def test_multihead_is_torchs():
    torch.manual_seed(0)
    ours, theirs, x = MultiHead(48, heads=3), nn.MultiheadAttention(48, 3, batch_first=True), torch.randn(2, 30, 48)
    theirs.in_proj_weight, theirs.out_proj = ours.qkv.weight, ours.out
    out, weights = theirs(x, x, x, average_attn_weights=False)
    assert torch.allclose(ours(x), out, atol=1e-6) and torch.allclose(ours.maps(x), weights, atol=1e-6)


@pytest.mark.parametrize("linear", [False, True])
def test_heads_are_equivariant_and_their_maps_are_what_they_use(linear):
    torch.manual_seed(1)
    net, x, order = MultiHead(48, heads=3, linear=linear).double(), torch.randn(2, 30, 48).double(), torch.randperm(30)
    assert torch.allclose(net(x[:, order]), net(x)[:, order])
    v = net.split(x)[2]
    assert torch.allclose(net.out((net.maps(x) @ v).transpose(1, 2).flatten(2)), net(x))


def test_default_heads_divide_the_channels():
    for channels, heads in {8: 1, 32: 1, 64: 2, 80: 2, 96: 3, 112: 2, 256: 8, 352: 11}.items(): assert MultiHead(channels).heads == heads
    for heads in (0, 5, -1):
        with pytest.raises(ValueError, match=f"heads: got {heads} for 64 channels"): MultiHead(64, heads)


# --- places and patches

def test_positions_tell_displacement():
    code = grid_position(6, 9, 64).view(6, 9, 64).double()
    for dy, dx in ((0, 1), (2, 0), (3, 4)):
        like = (code[dy:, dx:] * code[:6 - dy, :9 - dx]).sum(-1)
        assert like.max() - like.min() < 1e-4
    assert torch.pdist(code.flatten(0, 1)).min() > .5
    with pytest.raises(ValueError, match="dim: got 30"): grid_position(2, 2, 30)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3))
def test_patches_there_and_back(p, rows, columns, c):
    x = torch.arange(2. * c * rows * p * columns * p).view(2, c, rows * p, columns * p)
    tokens = to_patches(x, p)
    assert tokens.shape == (2, rows * columns, c * p * p) and torch.equal(from_patches(tokens, p, rows), x)
    assert torch.equal(tokens[1, -1], x[1, :, -p:, -p:].flatten())


# --- the UNet's slot

@pytest.mark.parametrize("name", TENANTS)
def test_a_new_tenant_changes_nothing(name):
    tenant, h = attention_slot(f"zerodiff.attention.{name}", 64), torch.randn(2, 64, 6, 10)
    assert type(tenant) is TENANTS[name] and torch.equal(tenant(h), h)
    assert awake(tenant)(h).shape == h.shape and not torch.allclose(tenant(h), h, atol=.01)


@pytest.mark.parametrize("name", TENANTS)
def test_a_tenant_sees_every_pixel_in_any_layout(name):
    tenant, h = awake(TENANTS[name](32)), torch.randn(2, 32, 5, 7, requires_grad=True)
    assert torch.allclose(tenant(h), tenant(h.contiguous(memory_format=torch.channels_last)), atol=1e-5)
    reach, = torch.autograd.grad(tenant(h)[0, :, 0, 0].sum(), h)
    assert (reach[0].abs().sum(0) > 0).all() and not reach[1].any()


@pytest.mark.parametrize("name", TENANTS)
def test_unet_with_tenants_is_rebuilt_from_a_file(name, tmp_path):
    net = ClassConditional(UNet(32, (1, 2), cond_dim=8, attention=f"zerodiff.attention.{name}", attention_levels=(0, 1)), 5)
    denoiser = Denoiser(awake(net), cosine_schedule(), "v", 1.)
    save_weights(tmp_path / "net.safetensors", denoiser, half=False)
    again = load(tmp_path / "net.safetensors", "cpu")
    x, t, c = torch.randn(2, 3, 8, 8), torch.tensor([10, 900]), torch.tensor([0, 3])
    assert sum(isinstance(m, TENANTS[name]) for m in again.modules()) == 5
    assert torch.allclose(again.raw(x, t, c), denoiser.raw(x, t, c), atol=1e-5)


# --- ViT

def test_vit_overfits_one_batch():
    torch.manual_seed(0)
    net, (x, y) = ViT(21, channels=32, depth=2), garden(24, 16).batch(range(24))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(80):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    assert (net(x).argmax(1) == y).all() and loss < .1


@pytest.mark.parametrize("linear", [False, True])
def test_vit_needs_positions_to_tell_orders_apart(linear):
    x, order = torch.randn(2, 3, 16, 16), torch.randperm(16, generator=torch.Generator().manual_seed(0))
    mixed = from_patches(to_patches(x, 4)[:, order], 4, 4)
    for position in (True, False):
        torch.manual_seed(0)
        net = ViT(5, channels=32, depth=2, position=position, linear=linear)
        assert torch.allclose(net(x), net(mixed), atol=1e-5) == (not position)


def test_vit_maps_are_those_of_its_layers():
    torch.manual_seed(0)
    net, x, seen = ViT(5, channels=64, depth=3), torch.randn(2, 3, 16, 24), []
    for layer in net.layers: layer.attention.register_forward_pre_hook(lambda m, args: seen.append(m.maps(args[0])))
    net(x)
    maps = net.maps(x)
    assert maps.shape == (3, 2, 2, 24, 24) and torch.allclose(maps, torch.stack(seen[:3]), atol=1e-6)
    assert torch.allclose(maps.sum(-1), torch.ones(1), atol=1e-5)


def test_whole_networks_in_bfloat16():
    x, t = torch.randn(2, 3, 16, 16).bfloat16(), torch.tensor([3, 900])
    assert ViT(5, channels=32, depth=1).bfloat16()(x).dtype == torch.bfloat16
    assert DiT(32, 1, 2).bfloat16()(x, t).dtype == torch.bfloat16


def test_vit_takes_any_size_that_its_patches_divide():
    net = ViT(5, channels=32, depth=1)
    assert net(torch.randn(1, 3, 20, 8)).shape == (1, 5)
    with pytest.raises(ValueError, match="x: got 30x32 pixels, expected multiples of 4"): net(torch.randn(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"): net(torch.randn(1, 1, 32, 32))
    again = build(json.loads(json.dumps(net.config)))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


def test_layer_is_two_residuals():
    torch.manual_seed(0)
    layer, x = Layer(32), torch.randn(2, 7, 32)
    h = x + layer.attention(layer.norm1(x))
    assert torch.equal(layer(x), h + layer.mlp(layer.norm2(h)))


# --- DiT

def small_dit(**kw): return ClassConditional(DiT(32, depth=2, cond_dim=16, **kw), classes=5)


def test_a_new_dit_is_identity_inside_and_silent_outside():
    layer, x = AdaLayer(32, 48), torch.randn(2, 9, 32)
    assert torch.equal(layer(x, torch.randn(2, 48)), x)
    assert not small_dit()(torch.randn(2, 3, 8, 8), torch.tensor([0, 999]), torch.tensor([0, 4])).any()


def test_adalayer_with_open_gates_is_a_layer():
    "Gates of 1, shifts and scales of 0 are a transformer layer without its own norm weights."
    torch.manual_seed(0)
    layer, x = AdaLayer(32, 48), torch.randn(2, 9, 32)
    layer.film.bias.data[64:96] = layer.film.bias.data[160:] = 1.
    plain = Layer(32, affine=False)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("film")})
    assert torch.allclose(layer(x, torch.randn(2, 48)), plain(x), atol=1e-6)


@pytest.mark.parametrize("linear", [False, True])
def test_dit_listens_to_time_and_class_of_its_own_sample(linear):
    net = awake(small_dit(linear=linear))
    x, t, c = torch.randn(3, 3, 8, 12), torch.tensor([5, 500, 900]), torch.tensor([0, 1, 2])
    out = net(x, t, c)
    assert out.shape == x.shape and torch.allclose(net(x[1:2], t[1:2], c[1:2]), out[1:2], atol=1e-4)
    for other in (net(x, t + 50, c), net(x, t, c + 1), net(x, t)): assert not torch.allclose(other, out, atol=1e-2)
    assert torch.equal(net(x, t), net(x, t, net.null(3)))
    with pytest.raises(ValueError, match="cond"): net(x, t, torch.tensor([0]))
    with pytest.raises(ValueError, match="multiples of 2"): net(x[..., :7], t, c)


def test_dit_in_place_of_the_unet(tmp_path):
    "Trainer, weights file, guidance and sampler take it as it is; and it learns one batch by heart."
    torch.manual_seed(0)
    data = garden(16, 8)
    data.labels %= 5
    trainer = Trainer(Denoiser(small_dit(), cosine_schedule(), "v", clip=1.), data, steps=4, batch=16, lr=3e-3, warmup=1, device="cpu")
    denoiser = trainer.fit().denoiser
    x0, c = data.batch(range(16))
    rng = torch.Generator().manual_seed(0)
    t, eps = torch.arange(16) * 62, torch.randn(x0.shape, generator=rng)
    optimizer, losses = torch.optim.AdamW(denoiser.parameters(), 3e-3), []
    for _ in range(150):
        losses.append(diffusion_loss(denoiser, x0, t, eps, c))
        optimizer.zero_grad(); losses[-1].backward(); optimizer.step()
    assert losses[-1] < .2 * losses[0]
    save_weights(tmp_path / "dit.safetensors", denoiser, half=False)
    again = load(tmp_path / "dit.safetensors", "cpu")
    assert isinstance(again.network.network, DiT)
    draw = lambda d: sample(guide(d, torch.tensor([1, 2]), scale=3.), (2, 3, 8, 8), d.schedule, 4, seed=0, device="cpu")
    with torch.no_grad(): assert torch.allclose(draw(again), draw(denoiser), atol=1e-4)


def test_copies_keep_working():
    "The averaged weights are a deep copy of the network."
    net = awake(small_dit())
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([3])
    assert torch.equal(copy.deepcopy(net)(x, t), net(x, t))
