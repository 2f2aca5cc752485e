"""The map: its planes against libraries, places in their order, names as data, and a page that needs nobody."""
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from zerodiff.atlas import (MAP_SCRIPT, by_chance, in_square, kept, neighbours, pca, read_map, save_map, scatter, settle, share_alike, show_map, tsne)


def vectors(n=200, d=12, seed=0):
    "Vectors with a different spread along each axis, then turned."
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(d, d, generator=rng)).Q
    return (torch.randn(n, d, generator=rng) * torch.linspace(3, .3, d)) @ turn + 5


def pictures(n, s=16):
    "n thumbnails of one colour each, all different."
    v = torch.linspace(-.9, .9, n)
    return torch.stack([v, v.flip(0), (2 * v).sin()], 1)[:, :, None, None].expand(n, 3, s, s).contiguous()


def a_map(path, n=7, m=2, **options):
    given = dict(thumbnails=pictures(n), places=vectors(n, 2), names=[f"flower {i % 3}" for i in range(n)],
                 sentences=[f"sentence {i}" for i in range(m)], sentence_places=vectors(m, 2, 1), nearest=[i % m for i in range(n)])
    given.update(options)
    save_map(path, **given)
    return given


# ---------------------------------------------------------------- neighbours

def test_neighbours_are_those_of_a_library():
    x = vectors()
    theirs = pytest.importorskip("sklearn.neighbors").NearestNeighbors(n_neighbors=7).fit(x.numpy()).kneighbors(return_distance=False)
    assert (neighbours(x, 7).numpy() == theirs).mean() > .999


def test_neighbours_leave_out_the_flower_itself_and_work_across_parts():
    x = torch.arange(2500.)[:, None].repeat(1, 2)                  # more than one part of 1,024
    near = neighbours(x, 2)
    assert (near != torch.arange(2500)[:, None]).all() and near[1300].sort().values.tolist() == [1299, 1301]
    twins = neighbours(torch.zeros(5, 3), 4)                       # all at one spot: still never itself
    assert all(i not in row for i, row in enumerate(twins.tolist()))


@pytest.mark.parametrize("k, shape", [(0, (5, 2)), (5, (5, 2)), (1, (5,))])
def test_neighbours_refuse(k, shape):
    with pytest.raises(ValueError, match=f"k: got {k}"): neighbours(torch.rand(shape), k)


def test_shares_and_chance():
    labels = torch.tensor([0, 0, 0, 1, 1])
    near = torch.tensor([[1, 2], [0, 3], [3, 4], [4, 0], [3, 2]])
    assert share_alike(near, labels) == pytest.approx(5 / 10)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    assert by_chance(labels) == pytest.approx(np.mean([float(labels[i] == labels[j]) for i, j in pairs]))
    assert kept(near, near) == 1 and kept(near, near.flip(1)) == 1 and kept(near, torch.tensor([[1, 3]] * 5)) == pytest.approx(4 / 10)


# ---------------------------------------------------------------- planes

def test_pca_is_the_librarys():
    x = vectors()
    theirs = pytest.importorskip("sklearn.decomposition").PCA(3).fit(x.numpy())
    ours = pca(x, 3)
    assert np.allclose(ours.share, theirs.explained_variance_ratio_, atol=1e-5) and np.allclose(ours.mean, theirs.mean_, atol=1e-5)
    assert np.allclose(ours(x).abs(), np.abs(theirs.transform(x.numpy())), atol=1e-3)              # an axis may point either way
    new = vectors(9, seed=3)
    assert np.allclose(ours(new).abs(), np.abs(theirs.transform(new.numpy())), atol=1e-3)


def test_pca_keeps_what_lies_in_a_plane():
    flat = vectors(50, 2)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1))).Q[:2]
    assert torch.allclose(torch.cdist(pca(flat @ turn)(flat @ turn), pca(flat @ turn)(flat @ turn)), torch.cdist(flat, flat), atol=1e-2)
    assert pca(flat @ turn).share.sum() == pytest.approx(1)
    for k, x in (3, torch.rand(2, 9)), (0, torch.rand(9, 9)), (1, torch.rand(9)):
        with pytest.raises(ValueError, match=f"k: got {k}"): pca(x, k)


def test_tsne_parts_clusters_and_repeats_itself():
    pytest.importorskip("sklearn")
    x = torch.cat([vectors(40, seed=1), vectors(40, seed=2) + 40])
    p, which = tsne(x, 10), torch.arange(80) // 40
    assert p.shape == (80, 2) and p.dtype == torch.float32 and share_alike(neighbours(p, 5), which) == 1
    assert torch.equal(p, tsne(x, 10))
    for perplexity in 0, 80:
        with pytest.raises(ValueError, match="perplexity"): tsne(x, perplexity)


def test_tsne_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r"\[notebooks\]"): tsne(vectors(), 10)


def test_sentences_settle_amid_their_flowers():
    x = torch.eye(2).repeat_interleave(10, 0)
    places = torch.cat([torch.rand(10, 2), torch.rand(10, 2) + 5])
    a, b = settle(torch.tensor([[.9, .1], [.2, 1.]]), x, places, k=10)
    assert a.tolist() in places[:10].tolist() and b.tolist() in places[10:].tolist()
    assert (places[:10] - a).norm(dim=1).sum().item() == pytest.approx(min((places[:10] - p).norm(dim=1).sum().item() for p in places[:10]), abs=1e-3)
    two = torch.cat([torch.zeros(6, 2), torch.ones(4, 2)])         # torn in two: it lies with the larger part, not between them
    assert settle(x[:1], x[:10], two).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="places: got 3 for 20"): settle(x[:1], x, places[:3])
    with pytest.raises(ValueError, match="k = 21"): settle(x[:1], x, places, 21)


def test_the_square_keeps_shape():
    p, q = in_square(torch.tensor([[0., 0.], [4., 1.]]), torch.tensor([[2., 2.]]))
    assert p.tolist() == [[0, .25], [1, .5]] and q.tolist() == [[.5, .75]]
    assert in_square(torch.ones(3, 2))[0].tolist() == [[.5, .5]] * 3                               # all at one spot


def test_scatter_puts_pictures_where_they_belong():
    sheet = scatter(pictures(3), torch.tensor([[0., 0.], [1., 1.], [.5, .5]]), size=8, side=80)
    for picture, (y, x) in zip(pictures(3), ((76, 4), (4, 76), (40, 40))): assert torch.allclose(sheet[:, y, x], picture[:, 0, 0], atol=1e-5)
    assert (sheet[:, 4, 4] == 1).all()
    with pytest.raises(ValueError, match="places: got 2 for 3"): scatter(pictures(3), torch.rand(2, 2))
    with pytest.raises(ValueError, match="in_square"): scatter(pictures(1), torch.tensor([[0., 2.]]))


# ---------------------------------------------------------------- the page

@pytest.mark.parametrize("n", [1, 7, 50])
def test_a_map_comes_back_in_order(tmp_path, n):
    given, back = a_map(tmp_path / "x.html", n), read_map(tmp_path / "x.html")
    error = (back["thumbnails"] - given["thumbnails"])[..., 4:-4, 4:-4].mean((2, 3)).abs()          # WebP's colours run over an edge
    assert error.max() < .03
    assert back["names"] == given["names"] and back["sentences"] == given["sentences"] and back["nearest"].tolist() == given["nearest"]
    p, q = in_square(given["places"], given["sentence_places"])
    assert torch.allclose(back["places"]["map"], p, atol=1e-4) and torch.allclose(back["sentence_places"]["map"], q, atol=1e-4)
    assert [f.name for f in tmp_path.iterdir()] == ["x.html"]


def test_several_planes_keep_their_names_and_order(tmp_path):
    planes = {"second": vectors(7, 2, 4), "first": vectors(7, 2, 5)}
    a_map(tmp_path / "x.html", places=planes, sentence_places={"first": torch.rand(2, 2), "second": torch.rand(2, 2)})
    assert list(read_map(tmp_path / "x.html")["places"]) == ["second", "first"]
    a_map(tmp_path / "x.html", places=planes, sentences=[], sentence_places=None, nearest=None)
    back = read_map(tmp_path / "x.html")
    assert back["sentences"] == [] and back["nearest"] is None and back["sentence_places"]["first"].shape == (0, 2)


def test_the_page_asks_for_nothing(tmp_path):
    a_map(tmp_path / "x.html")
    page = re.sub(r"data:image/webp;base64,[\w+/=]*", "data:", (tmp_path / "x.html").read_text())
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bfetch\b|XMLHttpRequest|WebSocket|sendBeacon|localStorage", page)
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=(?!\"data:)", page)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; img-src data:;") and page.index(policy) < page.index("<script")


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", '"', "'", "\\", "<!--", "&lt;", "{{data}}", "\u2028", "\\u003c", "花", "a\nb", ""])
def test_names_are_data(tmp_path, name):
    a_map(tmp_path / "x.html", n=2, m=1, names=[name, "rose"], sentences=[name], title=name)
    page, back = (tmp_path / "x.html").read_text("utf-8"), read_map(tmp_path / "x.html")
    assert back["names"] == [name, "rose"] and back["sentences"] == [name]
    assert page.count("<script") == 2 == page.count("</script>") and page.count("<!--") == 0 and "innerHTML" not in page
    assert "<" not in re.search(r'id="data">(.*?)</script>', page, re.S)[1]


@pytest.mark.parametrize("wrong, says", [
    (dict(names=["a"]), "names: got 1 for 7"), (dict(places=torch.rand(6, 2)), r"places: got shape \(6, 2\) for 7"), (dict(places=torch.rand(7, 3)), r"expected \(7, 2\)"),
    (dict(sentence_places=torch.rand(3, 2)), r"sentence_places: got shape \(3, 2\) for 2"), (dict(sentence_places=None), "sentence_places"),
    (dict(places={"a": torch.rand(7, 2)}, sentence_places={"b": torch.rand(2, 2)}), "sentence_places"),
    (dict(places={}), "no plane"), (dict(places=torch.full((7, 2), torch.nan)), "NaN"), (dict(nearest=[0] * 6), "nearest: got 6"), (dict(nearest=[2] * 7), "nearest.*0..1"), (dict(nearest=[-1] * 7), "nearest"),
    (dict(thumbnails=torch.zeros(7, 3, 8, 9)), "thumbnails"), (dict(thumbnails=torch.zeros(7, 1, 8, 8)), "thumbnails"), (dict(thumbnails=torch.full((7, 3, 8, 8), torch.nan)), "NaN"),
    (dict(thumbnails=torch.rand(7, 3, 256, 256) * 2 - 1, limit=1e5), "MB even at low quality"),
])
def test_what_does_not_fit_is_refused(tmp_path, wrong, says):
    (tmp_path / "x.html").write_text("old")
    with pytest.raises(ValueError, match=says): a_map(tmp_path / "x.html", **wrong)
    assert (tmp_path / "x.html").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_endings_and_foreign_files(tmp_path):
    with pytest.raises(ValueError, match="x.png"): a_map(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError): read_map(tmp_path / "none.html")
    (tmp_path / "x.html").write_text("<html>a page")
    with pytest.raises(ValueError, match="not written by save_map"): read_map(tmp_path / "x.html")


def test_the_frame_links_to_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_map("a b.html")
    frame = show_map("a b.html", title='"quoted"').data
    assert 'src="a%20b.html"' in frame and 'title="&quot;quoted&quot;"' in frame and "data:" not in frame
    with pytest.raises(FileNotFoundError): show_map("none.html")


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js; the site's check in a browser runs the script in any case")
def test_the_script_parses_and_is_strict(tmp_path):
    (tmp_path / "x.js").write_text(MAP_SCRIPT)
    done = subprocess.run(["node", "--check", str(tmp_path / "x.js")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert MAP_SCRIPT.strip().startswith('"use strict"')


def test_the_shipped_map_is_whole():
    "The page in the book has every class equally often, and fits its file of vectors."
    from pathlib import Path
    from safetensors import safe_open
    nbs = Path(__file__).parent.parent / "nbs"
    found = read_map(nbs / "films" / "07c_map.html")
    with safe_open(nbs / "measured" / "07c_map.safetensors", "pt") as f:
        about, v, labels = json.loads(f.metadata()["zerodiff"])["info"], f.get_tensor("vectors").float(), f.get_tensor("labels").long()
    assert [about["classes"][i] for i in labels] == found["names"] and labels.bincount().unique().numel() == 1 and len(labels.unique()) == 102
    assert (nbs / "films" / "07c_map.html").stat().st_size < 2e6
    p = pca(v)(v)
    assert min((in_square(p * s)[0] - in_square(found["places"]["PCA"])[0]).abs().mean() for s in map(torch.tensor, [[1, 1], [-1, 1], [1, -1], [-1, -1]])) < 2e-3
    assert kept(neighbours(found["places"]["t-SNE"]), neighbours(v)) > 1.5 * kept(neighbours(p), neighbours(v))
