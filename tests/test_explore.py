"""The panel of the explorer, driven without a browser: what a hand does is a widget's value changing."""
import io

import pytest
import torch
from PIL import Image

pytest.importorskip("ipywidgets")

from zerodiff.data import Pictures, garden
from zerodiff.explore import Explorer, explore
from zerodiff.pipeline import Pipeline, new_denoiser


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(1)
    denoiser = new_denoiser(garden(4, 16), channels=8, multipliers=(1, 2))
    for p in denoiser.network.parameters():
        if p.abs().sum() == 0: torch.nn.init.normal_(p, std=.05)
    return Pipeline(denoiser)


@pytest.fixture
def panel(pipe): return explore(pipe, n=2, steps=4)


def test_it_shows_what_the_pipeline_draws(pipe, panel):
    first = panel.knobs["kind"].value
    assert torch.equal(panel.x, pipe(first, n=2, steps=4, scale=3., seed=0))
    shown = Image.open(io.BytesIO(panel.picture.value))
    assert shown.size == panel.still().size and "2 pictures in" in panel.line.value


@pytest.mark.parametrize("name, value", [("kind", "red round"), ("w", -5.), ("phi", 2.), ("seed", 3), ("interval", (200, 700)), ("steps", 6), ("then", "red round")])
def test_each_knob_changes_the_picture(panel, name, value):
    before = panel.picture.value, panel.x
    panel.knobs[name].value = value
    assert panel.picture.value != before[0] and not torch.equal(panel.x, before[1])


def test_k_works_where_there_is_a_second_class(pipe, panel):
    assert panel.knobs["k"].disabled
    before = panel.x
    panel.knobs["k"].value = 1
    assert torch.equal(panel.x, before)
    panel.set(kind="red round", then="blue round", k=1)
    assert not panel.knobs["k"].disabled
    (_, want), = pipe.switch("red round", "blue round", [1], steps=4, n=2, sampler="dpmpp_2m")
    assert torch.equal(panel.x, want)
    for k, kind in (0, "blue round"), (4, "red round"):
        panel.knobs["k"].value = k
        assert torch.allclose(panel.x, pipe(kind, n=2, steps=4), atol=1e-4)


def test_fewer_steps_push_k_down_and_answer_once(panel):
    panel.set(then="red round", k=4)
    count = []
    panel.picture.observe(count.append, "value")
    panel.knobs["steps"].value = 2
    assert panel.knobs["k"].value == panel.knobs["k"].max == 2 and len(count) == 1
    panel.knobs["steps"].value = 30
    assert panel.knobs["k"].max == 30 and len(count) == 2


def test_set_draws_once_and_refuses_what_is_not_there(panel, monkeypatch):
    import zerodiff.explore as module
    calls, old = [], module.drawn
    monkeypatch.setattr(module, "drawn", lambda *a, **k: calls.append(1) or old(*a, **k))
    panel.set(w=1., seed=4, steps=3)
    assert len(calls) == 1
    with pytest.raises(KeyError): panel.set(temperature=1)
    panel.knobs["w"].value = 2.                                     # and it still listens
    assert len(calls) == 2


def test_an_error_is_said_and_the_picture_stays(panel, monkeypatch):
    import zerodiff.explore as module
    before = panel.picture.value
    def fails(*a, **k): raise ValueError("scale: got something odd")
    monkeypatch.setattr(module, "drawn", fails)
    panel.knobs["w"].value = 7.
    assert panel.line.value == "scale: got something odd" and panel.picture.value == before
    assert panel.still().size == Image.open(io.BytesIO(before)).size


def test_a_page_without_widgets_gets_a_picture(panel):
    bundle = panel._repr_mimebundle_()
    assert bundle["image/png"][:4] == b"\x89PNG" and "application/vnd.jupyter.widget-view+json" in bundle


def test_a_first_answer_that_fails_is_an_error(pipe):
    "There is no picture yet that could stay."
    with pytest.raises(ValueError, match="n: got 0"): explore(pipe, n=0)


def test_more_steps_than_usual_are_taken(pipe):
    assert explore(pipe, n=1, steps=44).knobs["steps"].value == 44


def test_weights_without_classes_are_refused():
    bare = Pipeline(new_denoiser(Pictures(garden(4, 16).images), channels=8, multipliers=(1, 2)))
    with pytest.raises(ValueError, match="no classes"): explore(bare)


def test_an_answer_from_the_shipped_weights_is_quick():
    "Four flowers in twelve steps, guided: a second or two on two cores; here with room for a slow machine."
    import time
    panel = explore("flowers")
    assert isinstance(panel, Explorer) and panel.x.shape == (4, 3, 32, 32)
    start = time.perf_counter()
    panel.knobs["seed"].value = 1
    assert time.perf_counter() - start < 8
