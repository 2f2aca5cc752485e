"""Sentences in, flowers out: the condition, the pipeline that makes it, and the command that asks for it."""
import pytest
import torch
import torch.nn.functional as F

from zerodiff.cli import main
from zerodiff.clip import CLIP, ImageTower, TextTower, across, digest, save_clip
from zerodiff.guidance import guide
from zerodiff.pipeline import Pipeline
from zerodiff.schedule import cosine_schedule
from zerodiff.text import ClassOrVector
from zerodiff.training import Denoiser, load, save_weights
from zerodiff.unet import UNet, build

KNOWN = "a red blue flower rose with petals".split()
CLASSES = ["rose", "daisy", "tulip"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A tiny CLIP and a tiny denoiser made to follow its vectors: paths of both."
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    clip = CLIP(ImageTower(8, [8, 8]), TextTower(len(KNOWN), 8, width=16, layers=1), KNOWN, size=16).eval()
    clip.image_mean.copy_(F.normalize(torch.randn(8), dim=0)); clip.text_mean.copy_(F.normalize(torch.randn(8), dim=0))
    save_clip(folder / "clip.safetensors", clip)
    from zerodiff.clip import load_clip
    network = ClassOrVector(UNet(8, (1, 2), cond_dim=16), 3, 8)
    for p in network.parameters(): torch.nn.init.normal_(p, std=.2)
    denoiser = Denoiser(network, cosine_schedule(), "v", clip=1.)
    about = dict(weights=str(folder / "clip.safetensors"), digest=digest(load_clip(folder / "clip.safetensors", "cpu")))
    save_weights(folder / "flowers.safetensors", denoiser, size=16, classes=CLASSES, encoder=about)
    save_weights(folder / "other.safetensors", denoiser, size=16, classes=CLASSES, encoder=about | dict(digest="0" * 64))
    save_weights(folder / "plain.safetensors", denoiser, size=16, classes=CLASSES)
    return folder


@pytest.fixture
def pipe(files): return Pipeline.load(files / "flowers.safetensors", "cpu")


def small(): return ClassOrVector(UNet(8, (1,), cond_dim=8), 3, 4)


def test_a_condition_holds_unit_vectors_and_labels():
    net = small()
    both = net.condition(torch.tensor([2, 0]), torch.tensor([[3., 0, 0, 4], [0, 2, 0, 0]]))
    assert torch.allclose(both, torch.tensor([[.6, 0, 0, .8, 2], [0, 1, 0, 0, 0]]))
    assert net.condition(torch.tensor([1])).tolist() == [[0, 0, 0, 0, 1]]
    assert net.condition(vectors=torch.ones(1, 4)).tolist() == [[.5, .5, .5, .5, -1]]
    assert net.null(2).tolist() == [[0, 0, 0, 0, -1]] * 2


@pytest.mark.parametrize("arguments, says", [
    (dict(), "got neither"), (dict(vectors=torch.ones(2, 5)), r"vectors: got shape \(2, 5\), expected \(2, 4\)"),
    (dict(labels=torch.tensor([0]), vectors=torch.ones(2, 4)), r"expected \(1, 4\)")])
def test_a_condition_that_makes_no_sense(arguments, says):
    with pytest.raises(ValueError, match=says): small().condition(**arguments)


def test_a_network_refuses_conditions_of_other_shapes_and_unknown_classes():
    net, x, t = small(), torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"cond: got shape \(1, 5\) for 2 pictures"): net(x, t, net.null(1))
    with pytest.raises(ValueError, match="labels"): net(x, t, torch.tensor([0, 4]))


def test_hidden_conditions_are_drawn_for_each_sample_and_again_from_the_same_seed():
    net = small()
    cond = net.condition(torch.arange(600) % 3, torch.randn(600, 4))
    once, again, other = (net.drop(cond, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    shown, named = (once[:, :4] != 0).any(1), once[:, 4] >= 0
    assert all(20 < n < 400 for n in [(shown & named).sum(), (shown & ~named).sum(), (~shown & named).sum(), (~shown & ~named).sum()])
    assert torch.allclose(once[shown, :4].norm(dim=1), torch.ones(int(shown.sum())), atol=1e-5)


def test_a_vector_that_is_not_there_does_not_come_from_the_noise():
    net = small()
    for cond in (torch.arange(300) % 3, net.condition(torch.arange(300) % 3)):      # labels alone, as a data set has them, and as a condition
        assert not net.drop(cond, torch.Generator().manual_seed(0))[:, :4].any()


def test_without_noise_the_vectors_stay_as_they_are():
    net = ClassOrVector(UNet(8, (1,), cond_dim=8), 3, 4, drop=0., noise=0.)
    cond = net.condition(torch.zeros(50, dtype=torch.long), torch.randn(50, 4))
    kept = net.drop(cond, torch.Generator().manual_seed(0))
    shown = (kept[:, :4] != 0).any(1)
    assert torch.allclose(kept[shown, :4], cond[shown, :4], atol=1e-6) and ((kept[:, :4] != 0).any(1) | (kept[:, 4] >= 0)).all()


def test_it_is_made_again_from_its_config():
    net = small()
    assert build(net.config).config == net.config


def test_vectors_of_no_length_say_nothing():
    net = small()
    for p in net.parameters(): torch.nn.init.normal_(p, std=.2)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([5, 900])
    assert torch.equal(net(x, t, net.condition(vectors=torch.zeros(2, 4))), net(x, t))


def test_remembered_vectors_are_means_of_those_nearby():
    net = ClassOrVector(UNet(8, (1,), cond_dim=8), 3, 4, memory=3)
    net.memory.copy_(torch.eye(4)[:3])
    at = F.normalize(torch.tensor([[1., .2, 0, 5.]]), dim=1)
    weights = (30 * at @ net.memory.T).softmax(1)[0]
    assert torch.allclose(net.remembered(at)[0, :3], F.normalize(weights, dim=0), atol=1e-6)
    assert torch.allclose(net.remembered(at, 1e4), torch.eye(4)[:1], atol=1e-5)                   # sharp: the nearest itself
    assert torch.allclose(net.remembered(at, 0.)[0], torch.tensor([1., 1, 1, 0]) / 3 ** .5, atol=1e-5)   # blunt: the mean of all
    with pytest.raises(ValueError, match="keeps no vectors"): small().remembered(at)


def test_memory_travels_with_the_weights(tmp_path):
    net = ClassOrVector(UNet(8, (1, 2), cond_dim=8), 3, 4, memory=5)
    net.memory.copy_(F.normalize(torch.randn(5, 4), dim=1))
    save_weights(tmp_path / "m.safetensors", Denoiser(net, cosine_schedule(), "v"), half=False)
    assert torch.equal(load(tmp_path / "m.safetensors", "cpu").network.memory, net.memory)


def test_the_shipped_weights_draw_the_colour_that_a_sentence_names():
    from zerodiff.data import COLOURS
    from zerodiff.judge import flower_colour
    pipe = Pipeline.load("flowers64", "cpu", precision=None)
    asked = ["red", "yellow", "blue", "white"]
    found = flower_colour(pipe(pipe.ask([f"a {c} flower" for c in asked]), n=3, steps=12)).argmax(1)
    hits = found == torch.tensor([COLOURS.index(c) for c in asked]).repeat_interleave(3)
    assert hits.float().mean() >= .8


def test_guidance_works_with_any_kind_of_condition(files):
    d = load(files / "flowers.safetensors", "cpu")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([500, 500])
    for cond in (d.network.condition(torch.tensor([0, 1])), d.network.condition(vectors=torch.randn(2, 8)), d.network.null(2)):
        one, two = (d.raw(x, t, c) for c in (cond, None))
        expected = d.prediction(two + 3 * (one - two), x, t).x0
        assert torch.allclose(guide(d, cond, scale=3.)(x, t).x0, expected, atol=1e-4)


def test_a_sentence_becomes_the_condition_beyond_the_gap(pipe):
    cond = pipe.ask(["a red rose", "blue flower"])
    assert cond.shape == (2, 9) and (cond[:, -1] == -1).all()
    assert torch.allclose(cond[:, :-1], across(pipe.encoder, pipe.encoder.encode_text(["a red rose", "blue flower"])), atol=1e-6)
    assert torch.allclose(pipe.ask("a red rose"), cond[:1], atol=1e-6)


def test_sentences_with_classes(pipe):
    assert pipe.ask(["a red rose", "blue flower"], "daisy")[:, -1].tolist() == [1, 1]
    assert pipe.ask("a red rose", ["daisy", "tulip"])[:, -1].tolist() == [1, 2]
    with pytest.raises(ValueError, match="3 classes and 2 sentences"): pipe.ask(["a red rose", "blue flower"], [0, 1, 2])


@pytest.mark.parametrize("text, says", [("", "there is no word"), ("   ", "there is no word"), ("xyzzy qux", "no word is known"), ("red " * 400, "400 words"), ([], "empty list")])
def test_sentences_that_say_nothing_or_too_much(pipe, text, says):
    with pytest.raises(ValueError, match=says): pipe.ask(text)


def test_asked_conditions_go_wherever_classes_go(pipe):
    cond, o = pipe.ask(["a red rose", "blue flower"]), dict(steps=3)
    x = pipe(cond, n=2, **o)
    assert x.shape == (4, 3, 16, 16) and torch.allclose(pipe(cond[1:], n=1, **o)[0], x[2], atol=1e-5)
    assert torch.allclose(list(pipe.film(cond, n=2, **o))[-1], x, atol=1e-5)
    assert torch.allclose(dict(pipe.sweep("scale", [0, 3.], cond, n=2, **o))[3.], x, atol=1e-4)
    swapped = dict(pipe.switch("rose", cond[:1], [0, 3], n=2, sampler="dpmpp_2m", **o))
    assert torch.allclose(swapped[0], x[:2], atol=1e-4) and torch.allclose(swapped[3], pipe("rose", n=2, **o), atol=1e-4)
    photo = torch.rand(3, 16, 16) * 2 - 1
    assert pipe.edit(photo, cond, n=2, steps=4).shape == (4, 3, 16, 16)
    with pytest.raises(ValueError, match="n: got 0"): pipe(cond, n=0)


def test_classes_of_such_weights_work_as_of_any(pipe):
    assert pipe.numbers(["tulip", 0], 2).tolist() == [2, 2, 0, 0]
    assert torch.equal(pipe.labels("tulip"), pipe.denoiser.network.condition(torch.tensor([2])))
    assert pipe(n=3, steps=2).shape == (3, 3, 16, 16)


def test_weights_without_an_encoder_or_with_another_refuse_sentences(files):
    with pytest.raises(ValueError, match="follow classes only"): Pipeline.load(files / "plain.safetensors", "cpu").ask("a red rose")
    with pytest.raises(ValueError, match="not the CLIP"): Pipeline.load(files / "other.safetensors", "cpu").ask("a red rose")


def test_the_command_draws_sentences_and_says_what_it_did_not_understand(files, tmp_path, capsys):
    out = tmp_path / "x.png"
    assert main(["sample", "--weights", str(files / "flowers.safetensors"), "--text", "a red frobnic flower", "blue rose", "-n", "2", "--steps", "2", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert out.exists() and "a red frobnic flower" in said.out and "frobnic" in said.err and "blue" not in said.err


def test_the_command_refuses_an_empty_sentence(files, tmp_path, capsys):
    assert main(["sample", "--weights", str(files / "flowers.safetensors"), "--text", "", "--out", str(tmp_path / "x.png")]) == 2
    assert "there is no word" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_other_commands_take_sentences_too(files, tmp_path, capsys):
    weights = ["--weights", str(files / "flowers.safetensors"), "--steps", "2", "--device", "cpu"]
    assert main(["sweep", "guidance", "--text", "a red rose", "--frames", "2", "-n", "1", "--out", str(tmp_path / "s.gif"), *weights]) == 0
    main(["sample", "--class", "rose", "-n", "1", "--out", str(tmp_path / "p.png"), *weights])
    assert main(["restyle", str(tmp_path / "p.png"), "--text", "blue flower", "--out", str(tmp_path / "r.png"), *weights]) == 0
    assert main(["sweep", "guidance", "--frames", "2", "--out", str(tmp_path / "t.gif"), *weights]) == 2
    assert "expected --class or --text" in capsys.readouterr().err
