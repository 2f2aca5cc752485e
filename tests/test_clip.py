"""CLIP: the loss against open_clip's own, the words, captions that never lie, files, the cache, and the encoder on a small open_clip model."""
import json
import math
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.datasets import Flowers102

from zerodiff.clip import (CLIP, FORM_OF, FORMS, OPENINGS, SHADES, ClipEncoder, ImageTower, Said, TextTower, Vocabulary, across, check_sentences, clip_loss,
                           digest, holds, load_clip, save_clip, to_size, vectors_of, words, write)
from zerodiff.data import COLOURS, Pictures, garden, to_float
from zerodiff.training import WeightsError, file_header, shipped

CLASSES = [c.lower() for c in Flowers102.classes]
KNOWN = ["a", "blue", "flower", "red", "rose", "white"]


def pairs(n, dim=8, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(n, dim, generator=rng, dtype=dtype), dim=1) for _ in range(2)]


def small(seed=0, size=16):
    torch.manual_seed(seed)
    return CLIP(ImageTower(8, (8, 16)), TextTower(len(KNOWN), 8, 16, 1, 6), KNOWN, size).eval()


# --- the loss

@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.floats(.1, 100))
def test_loss_is_open_clips(n, scale):
    theirs = pytest.importorskip("open_clip.loss", reason="open_clip is not installed: the extra clip").ClipLoss()
    u, v = (x.requires_grad_() for x in pairs(n))
    ours, want = clip_loss(u, v, scale), theirs(u, v, scale)
    assert abs(ours - want) < 1e-6
    for a, b in zip(torch.autograd.grad(ours, (u, v)), torch.autograd.grad(want, (u, v))): assert torch.allclose(a, b, atol=1e-6)


def test_loss_is_symmetric_and_blind_to_order():
    (u, v), order = pairs(12), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    true = torch.eye(12, dtype=torch.bool); true[2, 5] = true[7, 1] = True
    assert torch.allclose(clip_loss(u, v, 9.), clip_loss(v, u, 9.)) and torch.allclose(clip_loss(u, v, 9., true), clip_loss(v, u, 9., true.T))
    assert torch.allclose(clip_loss(u, v, 9., true), clip_loss(u[order], v[order], 9., true[order][:, order]))
    assert not torch.allclose(clip_loss(u, v, 9.), clip_loss(u, v[order], 9.))


def test_several_right_answers():
    u, v = pairs(6)
    assert torch.allclose(clip_loss(u, v, 9.), clip_loss(u, v, 9., torch.eye(6, dtype=torch.bool)))
    true = torch.eye(6, dtype=torch.bool); true[0, 3] = True
    rows, columns = -(9 * u @ v.T).log_softmax(1), -(9 * u @ v.T).log_softmax(0)
    by_hand = ((rows.diag().sum() - rows[0, 0] + (rows[0, 0] + rows[0, 3]) / 2) + (columns.diag().sum() - columns[3, 3] + (columns[3, 3] + columns[0, 3]) / 2)) / 12
    assert torch.allclose(clip_loss(u, v, 9., true), by_hand)
    twins = torch.eye(3).repeat_interleave(4, 0)
    assert abs(clip_loss(twins, twins, 90., twins @ twins.T > .5) - math.log(4)) < 1e-5          # the least there is: a guess among four
    assert clip_loss(twins, twins, 90.) > math.log(4) - 1e-5


def test_gradient_is_the_formula():
    "Pulled to the right answers, pushed from each answer as hard as it is believed."
    (u, v), s = pairs(7), 6.
    u.requires_grad_()
    true = torch.eye(7, dtype=torch.bool); true[1, 4] = true[4, 1] = True
    target = true.double() / true.sum(1, keepdim=True)
    p, q = (s * u @ v.T).softmax(1), (s * u @ v.T).softmax(0)
    want = s / 14 * ((p - target) @ v + (q - true.double() / true.sum(0)) @ v)
    assert torch.allclose(torch.autograd.grad(clip_loss(u, v, s, true), u)[0], want.detach())


def test_gradient_is_that_of_differences():
    u, v = pairs(4, 3)
    assert torch.autograd.gradcheck(lambda u, v, s: clip_loss(u, v, s), (u.requires_grad_(), v.requires_grad_(), torch.tensor(5., dtype=torch.float64, requires_grad=True)))


def test_loss_learns_a_batch_by_heart():
    torch.manual_seed(0)
    net, data = small().train(), garden(6, 16)
    said = ["a red rose", "white flower", "a blue rose", "blue a flower", "white white rose", "red"]
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        loss = net(data.batch(range(6))[0], said)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    net.eval()
    assert ((net.encode_image(data.batch(range(6))[0]) @ net.encode_text(said).T).argmax(1) == torch.arange(6)).all()


# --- words

def test_words_are_small_letters_and_digits():
    assert words("Black-eyed SUSAN's 2nd bloom!") == ["black", "eyed", "susan", "s", "2nd", "bloom"] and words(" ?! ") == []


def test_vocabulary_numbers_words_and_fills():
    v = Vocabulary(KNOWN)
    assert v(["A red rose.", "white"]).tolist() == [[1, 4, 5], [6, 0, 0]] and v(("a freshly cut rose",)).tolist() == [[1, 5]]
    assert v.unknown("a freshly cut, freshly watered rose") == ["freshly", "cut", "watered"] and v.unknown("Red ROSE") == [] and v.unknown("") == []


@pytest.mark.parametrize("text, error, match", [
    ("a rose", TypeError, "got 'a rose', expected a list"), (None, TypeError, "got 'None'"), ([3], TypeError, r"got '\[3\]'"), ([["a"]], TypeError, "expected a list"),
    ([], ValueError, "empty list"), (["a rose", ""], ValueError, "got '', in which there is no word"), (["?!"], ValueError, "no word"),
    (["how lovely"], ValueError, "'how lovely', in which no word is known"), (["red " * 1000], ValueError, "got 1000 words, expected at most 32")])
def test_vocabulary_refuses(text, error, match):
    with pytest.raises(error, match=match): Vocabulary(KNOWN)(text)


def test_a_single_text_is_no_list_of_letters():
    with pytest.raises(TypeError, match="list of sentences"): check_sentences("rose")
    with pytest.raises(TypeError, match="list of sentences"): small().encode_text("rose")


# --- towers

def test_fill_is_invisible_and_order_counts():
    torch.manual_seed(0)
    tower = TextTower(6, 8, 16, 2, 9, dropout=0.).eval()
    rows = torch.tensor([[1, 2, 3, 0, 0, 0], [3, 2, 1, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    assert torch.allclose(tower(rows)[0], tower(rows[:1, :3])[0], atol=1e-6)
    assert (tower(rows)[0] - tower(rows)[1]).abs().max() > 1e-3
    tower.train()                                                    # the other path through torch's layers
    assert torch.allclose(tower(rows)[0], tower(rows[:1, :3])[0], atol=1e-6)


def test_vectors_have_length_one_and_any_size_comes_in():
    net = small()
    for size in (8, 16, 40):
        u = net.encode_image(garden(3, size).batch(range(3))[0])
        assert u.shape == (3, 8) and torch.allclose(u.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(net.encode_text(["a rose", "red"]).norm(dim=1), torch.ones(2), atol=1e-5)
    assert net.scale.item() == pytest.approx(1 / .07)
    with torch.no_grad(): net.log_scale.fill_(50.)
    assert net.scale.item() == 100


def test_wrong_pictures_are_named():
    with pytest.raises(ValueError, match=r"got shape \(3, 16, 16\)"): to_size(torch.zeros(3, 16, 16), 16)
    with pytest.raises(ValueError, match=r"got shape \(2, 1, 16, 16\)"): to_size(torch.zeros(2, 1, 16, 16), 16)
    with pytest.raises(TypeError, match="uint8"): to_size(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 16)
    with pytest.raises(ValueError, match="0..255"): small().encode_image(torch.full((2, 3, 16, 16), 200.))


def test_across_moves_the_mean_and_keeps_the_length():
    net, v = small(), pairs(50, dtype=torch.float32)[0]
    net.image_mean.copy_(torch.arange(8) / 10); net.text_mean.copy_(v.mean(0))
    moved = across(net, v)
    assert torch.allclose(moved.norm(dim=1), torch.ones(50), atol=1e-5) and torch.allclose(moved, F.normalize(v - v.mean(0) + torch.arange(8) / 10, dim=1))
    net.image_mean.copy_(net.text_mean)
    assert torch.allclose(across(net, v), v, atol=1e-6)


# --- captions

def test_every_class_has_a_form():
    "By torchvision's names, and as two of them are spelt elsewhere."
    assert set(CLASSES) <= FORM_OF.keys() and FORM_OF.keys() - set(CLASSES) == {"pink-yellow dahlia", "lotus lotus"}
    assert sum(len(names.split(", ")) for names in FORMS.values()) == 102, "a class in two rows"
    assert FORM_OF["pink-yellow dahlia"] == FORM_OF["pink-yellow dahlia?"] and FORM_OF["lotus lotus"] == FORM_OF["lotus"]


def claims(text, name):
    "What a reader takes from a sentence: the forms and the colour words in it, once the flower's name is taken out."
    rest = text.replace(name, "", 1) if name in text else text
    forms = {f for f in FORMS if f and f in rest}
    for f in forms: rest = rest.replace(f, "")
    return forms, {c for c, shades in SHADES.items() for s in shades if f" {s} " in f" {rest} "}


@pytest.mark.parametrize("colour", range(-1, 7))
def test_write_never_lies(colour):
    rng, seen = random.Random(colour), set()
    shares = torch.full((1, 7), .1 / 6)
    shares[0, colour] = .9
    for label, name in enumerate(CLASSES):
        for _ in range(12):
            said = write(rng, label, name, colour)
            assert holds([said], torch.tensor([label]), shares, [FORM_OF[name]]).item(), said
            forms, colours = claims(said.text, name if said.label >= 0 else "")
            assert forms == ({said.form} if said.form else set()) and forms <= {FORM_OF[name]}, said
            assert colours == ({COLOURS[said.colour]} if said.colour >= 0 else set()) and said.colour in (-1, colour), said
            assert (said.label == label) == (name in said.text.replace("rose-coloured", "")), said
            assert said.label >= 0 or said.colour >= 0, f"says nothing: {said}"
            seen.add((said.label >= 0, said.colour >= 0, bool(said.form)))
    assert len(seen) == (2 if colour < 0 else 6)                         # with and without name, colour (one of the two at least) and form


def test_shades_belong_to_one_colour():
    shades = [s for some in SHADES.values() for s in set(some)]
    assert tuple(SHADES) == COLOURS and len(shades) == len(set(shades)) and all(c in SHADES[c] for c in COLOURS)


def test_write_is_repeatable_and_varied():
    some = [[write(rng, 73, "rose", 3).text for _ in range(300)] for rng in (random.Random(5), random.Random(5))]
    assert some[0] == some[1] and len(set(some[0])) > 150
    assert {o for o in OPENINGS if any(t.startswith(o + " ") for t in some[0])} >= set(OPENINGS) - {""}


def test_holds_looks_at_class_colour_and_form():
    said = [Said("", -1, 3, ""), Said("", 5, -1, ""), Said("", -1, 0, "spiky"), Said("", 5, 3, "waxy")]
    shares = torch.tensor([[.3, 0, 0, .6, .1, 0, 0], [.24, 0, 0, .76, 0, 0, 0]])
    found = holds(said, torch.tensor([5, 6]), shares, ["waxy", "spiky"])
    assert found.tolist() == [[True, True, False, True], [True, False, False, False]]


# --- files

def test_there_and_back(tmp_path):
    net, path = small(), tmp_path / "c.safetensors"
    net.image_mean.fill_(.25)
    save_clip(path, net, data="garden", pictures=3)
    again = load_clip(path, "cpu")
    assert again.info == dict(data="garden", pictures=3) and not again.training and not any(p.requires_grad for p in again.parameters())
    assert again.vocabulary.known == KNOWN and again.size == 16 and (again.image_mean == .25).all()
    x = garden(4, 16).batch(range(4))[0]
    assert torch.allclose(again.encode_image(x), net.encode_image(x), atol=2e-3)
    assert torch.allclose(again.encode_text(["a red rose"]), net.encode_text(["a red rose"]), atol=2e-3)
    save_clip(path, again)
    assert digest(load_clip(path, "cpu")) == digest(again)


def test_bad_values_are_not_written(tmp_path):
    net, path = small(), tmp_path / "c.safetensors"
    with pytest.raises(TypeError, match="JSON"): save_clip(path, net, bad={1, 2})
    with torch.no_grad(): net.image.head.bias[0] = float("nan")
    with pytest.raises(ValueError, match="image.head.bias holds NaN"): save_clip(path, net)
    assert not path.exists()


def test_files_that_are_no_clip(tmp_path):
    path, good = tmp_path / "x.safetensors", tmp_path / "good.safetensors"
    save_clip(good, small())
    with pytest.raises(FileNotFoundError, match="no file"): load_clip(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="comes with .*flowerclip"): load_clip("nosuchclip")
    path.write_bytes(pickle.dumps(dict(a=1)))
    with pytest.raises(WeightsError, match="pickled files are never opened"): load_clip(path)
    path.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="no whole safetensors"): load_clip(path)
    save_file(dict(a=torch.zeros(2)), path)
    with pytest.raises(WeightsError, match="not written by zerodiff"): load_clip(path)
    with pytest.raises(WeightsError, match="holds a .*, expected a CLIP"): load_clip(shipped("flowers"))


def test_headers_that_do_not_fit(tmp_path):
    good, path = tmp_path / "good.safetensors", tmp_path / "x.safetensors"
    save_clip(good, small())
    head, tensors = file_header(good, ("network", "info")), load_file(good)
    def write_as(network, tensors=tensors): save_file(tensors, path, metadata=dict(zerodiff=json.dumps(dict(format=1, network=network, info={}))))
    tower = head["network"]["args"]["text"]
    for bad in (dict(tower, **{"class": "os.system"}), dict(tower, args=tower["args"] | dict(width=15)), dict(tower, args=tower["args"] | dict(width=-16))):
        write_as(head["network"] | dict(args=head["network"]["args"] | dict(text=bad)))
        with pytest.raises(WeightsError, match="cannot be built"): load_clip(path)
    write_as(head["network"], {k: v for k, v in tensors.items() if "head" not in k})
    with pytest.raises(WeightsError, match="does not fit its own header"): load_clip(path)


def test_digest_sees_every_bit():
    net, names = small(), []
    first = digest(net)
    assert len(first) == 64 and digest(small()) == first != digest(small(seed=1))
    for name, v in net.state_dict().items():
        before = v.clone()
        v.view(-1)[-1] += 1e-3
        names.append(digest(net))
        v.copy_(before)
    assert len({first, *names}) == len(names) + 1 and digest(net) == first
    assert digest(nn.Linear(2, 2).half()) != digest(nn.Linear(2, 2)) and len(digest(nn.BatchNorm1d(2))) == 64      # a count, of no dimension


# --- vectors, once

class Counting(CLIP):
    "A CLIP that counts how often it is asked."
    def __init__(self, image, text, known, size): super().__init__(image, text, known, size); self.asked = 0
    def encode_image(self, x): self.asked += 1; return super().encode_image(x)


def counting():
    torch.manual_seed(0)
    return Counting(ImageTower(8, (8, 16)), TextTower(len(KNOWN), 8, 16, 1, 6), KNOWN, 16).eval()


def test_cache_is_used_and_is_right(tmp_path):
    net, data = counting(), garden(20, 16)
    first = vectors_of(net, data, tmp_path / "new" / "folder", batch=8)
    assert net.asked == 3 and torch.allclose(first, net.encode_image(data.batch(range(20))[0]), atol=1e-5)
    net.asked = 0
    assert torch.equal(vectors_of(net, data, tmp_path / "new" / "folder"), first) and net.asked == 0
    assert torch.allclose(vectors_of(net, data), first, atol=1e-5) and net.asked == 1                # no folder, no cache


@pytest.mark.parametrize("change", ["weight", "mean", "pixel", "order", "size", "fewer"])
def test_cache_never_serves_for_others(tmp_path, change):
    net, data = counting(), garden(12, 16)
    first = vectors_of(net, data, tmp_path)
    with torch.no_grad():
        if change == "weight": net.image.levels[0][0].weight[0, 0, 0, 0] += .01
        if change == "mean": net.image_mean[0] = 1                     # part of the weights, though not of these vectors
        if change == "pixel": data.images[3, 1, 8, 8] ^= 1
        if change == "order": data = data.subset(list(range(11, -1, -1)))
        if change == "fewer": data = data.subset(range(11))
        if change == "size": net = Counting(net.image, net.text, KNOWN, 24).eval()             # the same weights, pictures seen larger
    net.asked = 0
    found = vectors_of(net, data, tmp_path)
    assert net.asked == 1 and len(list(tmp_path.iterdir())) == 2 and torch.allclose(found, net.encode_image(data.batch(range(len(data)))[0]), atol=1e-5)
    if change != "mean": assert found.shape != first.shape or not torch.equal(found, first)


def test_broken_cache_is_made_anew(tmp_path):
    net, data = counting(), garden(5, 16)
    first, (path,) = vectors_of(net, data, tmp_path), tmp_path.iterdir()
    for bad in (path.read_bytes()[:-7], b"", b"nonsense" * 30):
        path.write_bytes(bad)
        assert torch.equal(vectors_of(net, data, tmp_path), first)
    save_file(dict(vectors=torch.zeros(5, 8)), path, metadata=dict(zerodiff=json.dumps(dict(format=1, info=dict(key="another's")))))
    assert torch.equal(vectors_of(net, data, tmp_path), first)


def test_vectors_are_made_at_rest_and_in_float32():
    "Dropout or a caller's autocast would go into the cache for good."
    class Shaky(CLIP):
        def __init__(self, image, text, known, size): super().__init__(image, text, known, size); self.dropout = nn.Dropout(.5)
        def encode_image(self, x): return super().encode_image(self.dropout(x))
    torch.manual_seed(0)
    net, data = Shaky(ImageTower(8, (8, 16)), TextTower(6, 8, 16, 1), KNOWN, 16).train(), garden(5, 16)
    net.text.eval()
    with torch.autocast("cpu", torch.bfloat16): one = vectors_of(net, data)
    assert torch.equal(one, vectors_of(net, data)) and net.training and net.dropout.training and not net.text.training


# --- open_clip

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A small CLIP of open_clip's with random weights: its module, its weights file, and what brings PIL pictures to it."
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed: the extra clip")
    folder = tmp_path_factory.mktemp("open_clip")
    config = dict(embed_dim=24, vision_cfg=dict(image_size=32, layers=2, width=64, head_width=32, patch_size=8),
                  text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1))
    (folder / "zerodiff-tiny.json").write_text(json.dumps(config))
    (folder / "zerodiff-tiny-quick.json").write_text(json.dumps(config | dict(quick_gelu=True)))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model, _, prepare = open_clip.create_model_and_transforms("zerodiff-tiny")
    with torch.no_grad():
        for p in model.parameters(): p.add_(.05 * torch.randn_like(p))
    save_file(model.state_dict(), folder / "weights.safetensors")
    torch.save(model.state_dict(), folder / "weights.pt")
    return model.eval(), folder, prepare


@pytest.fixture
def encoder(tiny): return ClipEncoder("zerodiff-tiny", tiny[1] / "weights.safetensors", device="cpu")


def test_encoder_is_open_clip(tiny, encoder):
    import open_clip
    model, _, prepare = tiny
    said, data = ["a red rose", "a photo of a blue flower"], garden(5, 48)
    with torch.no_grad():
        text = model.encode_text(open_clip.get_tokenizer("zerodiff-tiny")(said), normalize=True)
        image = model.encode_image(torch.stack([prepare(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in data.images]), normalize=True)
    assert torch.allclose(encoder.encode_text(said), text, atol=1e-5)
    assert torch.allclose(encoder.encode_image(to_float(data.images)), image, atol=5e-3)              # PIL rounds to 8 bits on the way
    assert (image @ image.T)[0, 1:].max() < .999, "all pictures alike: this shows nothing"
    assert encoder.dim == 24 and encoder.size == 32 and not encoder.training and not encoder.model.training


def test_encoder_refuses(tiny, encoder, tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="list of sentences"): encoder.encode_text("a rose")
    with pytest.raises(ValueError, match="empty list"): encoder.encode_text([])
    with pytest.raises(ValueError, match="0..255"): encoder.encode_image(torch.full((1, 3, 32, 32), 99.))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="'no-such-model'"): ClipEncoder("no-such-model")
    with pytest.raises(ValueError, match="no-such-tag"): ClipEncoder("zerodiff-tiny", "no-such-tag")
    with pytest.raises(ValueError, match="nowhere.safetensors"): ClipEncoder("zerodiff-tiny", tmp_path / "nowhere.safetensors")
    for bad in (b"nonsense" * 30, (tiny[1] / "weights.safetensors").read_bytes()[:-9]):
        (tmp_path / "broken.safetensors").write_bytes(bad)
        with pytest.raises(ValueError, match="broken.safetensors"): ClipEncoder("zerodiff-tiny", tmp_path / "broken.safetensors")
    save_file(dict(other=torch.zeros(2)), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors"): ClipEncoder("zerodiff-tiny", tmp_path / "other.safetensors")


class Harmful:
    def __reduce__(self): return (open, ("harm.txt", "w"))


def test_encoder_runs_no_pickled_code(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("harm.pt", "wb") as f: pickle.dump(Harmful(), f, protocol=2)
    with pytest.raises(ValueError, match="harm.pt"): ClipEncoder("zerodiff-tiny", tmp_path / "harm.pt")
    assert not (tmp_path / "harm.txt").exists()
    by_pt, by_safetensors = (ClipEncoder("zerodiff-tiny", tiny[1] / f"weights.{kind}", device="cpu") for kind in ("pt", "safetensors"))
    assert digest(by_pt) == digest(by_safetensors)


def test_encoders_vectors_are_cached_by_weights_and_kind(tiny, encoder, tmp_path):
    "One weights file under two architectures, which differ by an activation, makes two sets of vectors."
    data = Pictures(garden(6, 32).images)
    first = vectors_of(encoder, data, tmp_path)
    quick = ClipEncoder("zerodiff-tiny-quick", tiny[1] / "weights.safetensors", device="cpu")
    assert digest(quick) == digest(encoder) and not torch.equal(vectors_of(quick, data, tmp_path), first)
    assert torch.equal(vectors_of(encoder, data, tmp_path), first) and len(list(tmp_path.iterdir())) == 2
    with torch.no_grad(): encoder.model.visual.proj[0, 0] += .1
    assert not torch.equal(vectors_of(encoder, data, tmp_path), first) and len(list(tmp_path.iterdir())) == 3


def test_missing_open_clip_names_its_extra(monkeypatch):
    import zerodiff.data
    def absent(name): raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    monkeypatch.setattr(zerodiff.data.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install '\.\[clip\]'"): ClipEncoder()


# --- what ships

def test_shipped_weights():
    net = load_clip(device="cpu")
    assert net.dim == 128 and net.info["data"] == "flowers102" and net.info["split"] == "fit"
    v = net.encode_text([f"a {c} flower" for c in COLOURS] + CLASSES)
    assert torch.allclose(v.norm(dim=1), torch.ones(109), atol=1e-5) and (v[7:] @ v[7:].T - torch.eye(102)).amax() < .999, "two classes are one"
    assert net.image_mean.norm() > .1 and net.text_mean.norm() > .1 and 1 < net.scale < 100
    assert not [w for name in CLASSES for w in net.vocabulary.unknown(name)]


def test_shipped_weights_see_colours():
    "A drawn flower is none of Oxford's, but its colour it has; chance is 1 in 7."
    net, data = load_clip(device="cpu"), garden(200, 64, seed=3)
    with torch.no_grad(): hit = (vectors_of(net, data) @ net.encode_text([f"a {c} flower" for c in COLOURS]).T).argmax(1) == data.attributes["colour"]
    assert hit.float().mean() > .6
