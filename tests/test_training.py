"Training: the loss, its weights, the averages, checkpoints, and what happens when something breaks."
import json, math, os, resource, signal, subprocess, sys, time, warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import zerodiff.training as training
from zerodiff.data import garden
from zerodiff.schedule import NoiseSchedule, cosine_schedule
from zerodiff.training import (EMA, Batches, Denoiser, Recipe, Trainer, WeightsError, averaged, diffusion_loss, header, load,
                               min_snr_weight, save_weights, shipped)
from zerodiff.unet import UNet

SCHEDULE = cosine_schedule(100)
GARDEN = garden(40, size=8)

def denoiser(seed=0, dropout=0., **options):
    torch.manual_seed(seed)
    d = Denoiser(UNet(8, (1, 2), dropout=dropout), SCHEDULE, **options)
    nn.init.normal_(d.network.out[-1].weight, std=.1)      # a new UNet answers 0, which hides mistakes
    return d

def trainer(out=None, data=GARDEN, dropout=0., **options):
    options = dict(steps=12, batch=8, warmup=3, log_every=4, precision="fp32", device="cpu") | options
    return Trainer(denoiser(dropout=dropout), data, out, **options)

def state(t):
    parts = [*t.network.state_dict().values(), *t.ema.average.values()]
    for p in t.network.parameters(): parts += [v.float() for v in t.optimizer.state[p].values()]
    return torch.cat([v.flatten() for v in parts])

def diary(t): return [(h[0], h[2]) for h in t.history]

class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value, self.weight = value, nn.Parameter(torch.ones(1))
    def forward(self, x, t, cond): return torch.full_like(x, self.value)

class TestLoss:
    @pytest.mark.parametrize("predicts", ["x0", "eps", "v"])
    @pytest.mark.parametrize("gamma", [None, 5., 1.])
    def test_constant_predictor(self, predicts, gamma):
        rng, t, k = torch.Generator().manual_seed(0), torch.arange(100).repeat(30), .3
        x0 = torch.rand(3000, 3, 8, 8, generator=rng) * 1.6 - .4       # mean .4, so the sign of x0 in v matters
        eps = torch.randn(x0.shape, generator=rng)
        ab, m1, m2 = SCHEDULE.alpha_bar, x0.mean().double(), x0.square().mean().double()
        a, s = ab.sqrt(), (1 - ab).sqrt()
        per_t = {"x0": m2 - 2 * k * m1 + k**2 + 0 * a, "eps": 1 + k**2 + 0 * a,
                 "v": a**2 + s**2 * m2 + 2 * k * s * m1 + k**2}[predicts]
        expected = (min_snr_weight(SCHEDULE.snr(torch.arange(100)), predicts, gamma) * per_t).mean()
        got = diffusion_loss(Denoiser(Constant(k), SCHEDULE, predicts), x0, t, eps, gamma=gamma)
        assert abs(got / expected - 1) < .01

    def test_min_snr_is_one_weight_of_x0(self):
        d, t = denoiser(), torch.arange(0, 98, 7)
        rng = torch.Generator().manual_seed(0)
        x0, eps = (torch.randn(len(t), 3, 8, 8, generator=rng, dtype=torch.float64) for _ in range(2))
        x_t, wrong = SCHEDULE.add_noise(x0, t, eps), x0 + .1 * torch.randn(x0.shape, generator=rng, dtype=torch.float64)
        weight = SCHEDULE.snr(t).clamp(max=5)
        expected = (weight * (wrong - x0).square().flatten(1).mean(1)).mean()
        for predicts in ("x0", "eps", "v"):
            class Wrong(nn.Module):
                def forward(self, x, t, cond): return getattr(SCHEDULE, f"to_{predicts}")(wrong, x, t, "x0")
            got = diffusion_loss(Denoiser(Wrong(), SCHEDULE, predicts), x0, t, eps)
            assert torch.isclose(got, expected, rtol=1e-6), predicts

    def test_weights_at_the_ends(self):
        snr = torch.tensor([0., 1e-12, 5., 1e12], dtype=torch.float64)
        for predicts in ("x0", "eps", "v"): assert min_snr_weight(snr, predicts).isfinite().all()
        assert min_snr_weight(snr, "eps").tolist() == [1, 1, 1, 5e-12]
        assert min_snr_weight(snr, "v", None).tolist() == [1] * 4

    def test_output_of_another_shape_is_an_error(self):
        class One(nn.Module):
            def forward(self, x, t, cond): return x[:, :1]
        with pytest.raises(ValueError, match=r"network: answered \(2, 1, 8, 8\) to x_t of \(2, 3, 8, 8\)"):
            Denoiser(One(), SCHEDULE).raw(torch.zeros(2, 3, 8, 8), 5)

    @pytest.mark.parametrize("predicts", ["x0", "eps", "v"])
    def test_clipped_prediction_agrees_with_itself(self, predicts):
        d, t = denoiser(predicts=predicts, clip=.5), torch.tensor([3, 50, 90])
        x_t = torch.randn(3, 3, 8, 8)
        x0, eps = d(x_t, t)
        assert x0.abs().max() <= .5 and torch.allclose(SCHEDULE.add_noise(x0, t, eps), x_t, atol=1e-4)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="predicts: got 'noise'"): denoiser(predicts="noise")
        with pytest.raises(ValueError, match="clip: got -1"): denoiser(clip=-1)

    def test_one_batch_is_overfitted(self):
        d = denoiser()
        x0, _, t, eps = Batches(GARDEN, 100, 4, flip=False).draw(0)
        optimizer = torch.optim.AdamW(d.parameters(), lr=5e-3)
        losses = []
        for _ in range(120):
            loss = diffusion_loss(d, x0, t, eps)
            optimizer.zero_grad(); loss.backward(); optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < .05 * losses[0]

class TestDraws:
    def test_a_function_of_seed_and_step(self):
        a, b = (Batches(GARDEN, 100, 16, seed=3) for _ in range(2))
        for step in range(9): a.draw(step)                             # b jumps straight to step 9
        torch.manual_seed(99)
        for x, y in zip(a.draw(9), b.draw(9)): assert x is y is None or torch.equal(x, y)
        for other in (b.draw(10), Batches(GARDEN, 100, 16, seed=4).draw(9)):
            for i in (0, 2, 3): assert not torch.equal(b.draw(9)[i], other[i])

    def test_neighbouring_seeds_share_no_step(self):
        noises = {Batches(GARDEN, 100, 2, seed=s).draw(k)[3][0, 0, 0, 0].item() for s in range(5) for k in range(5)}
        assert len(noises) == 25

    @pytest.mark.parametrize("batch", [1, 8, 32])
    def test_every_t_is_trained_alike(self, batch):
        draws = Batches(GARDEN, 20, batch)
        t = torch.cat([draws.draw(k)[2] for k in range(8000 // batch)])
        count = t.bincount(minlength=20)
        assert len(count) == 20 and t.min() == 0 and t.max() == 19
        assert (count - 400).abs().max() < 5 * 400**.5

    def test_one_t_from_each_stretch(self):
        t = Batches(GARDEN, 1000, 8).draw(0)[2]
        assert (t // 125).tolist() == list(range(8))

    def test_an_epoch_shows_each_picture_once(self):
        seen = torch.cat([Batches(GARDEN, 100, 16).indices(k) for k in range(5)])      # 80 = two epochs of 40
        assert seen[:40].sort().values.tolist() == seen[40:].sort().values.tolist() == list(range(40))
        assert seen[:40].tolist() != seen[40:].tolist()

    def test_flips_and_dropped_labels_are_drawn_for_each_picture(self):
        draws = Batches(GARDEN, 100, 40, flip=True)
        x0, cond, _, _ = draws.draw(0, lambda labels, generator: torch.where(torch.rand(40, generator=generator) < .5, -1, labels))
        plain = GARDEN.batch(draws.indices(0))[0]
        flipped = (x0 == plain.flip(-1)).flatten(1).all(1)
        assert 8 < flipped.sum() < 32 and (x0 == plain).flatten(1).all(1)[~flipped].all()
        assert 8 < (cond == -1).sum() < 32

def test_ema_formula():
    layer = nn.Linear(1, 1, bias=False)
    ema, expected = EMA(layer, .9), layer.weight.item()
    for k in range(150):
        nn.init.constant_(layer.weight, math.sin(k))
        ema.update(k)
        decay = min(.9, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * math.sin(k)
    assert abs(ema.average["weight"].item() - expected) < 1e-6

class TestRecipe:
    @pytest.mark.parametrize("bad, says", [
        (dict(), "expected one of the two"), (dict(steps=1, minutes=1), "expected one of the two"), (dict(steps=0), "steps: got 0"),
        (dict(steps=1.5), "steps: got 1.5, expected a whole"), (dict(minutes=-1), "minutes: got -1"),
        (dict(minutes=math.inf), "minutes: got inf"), (dict(steps=1, batch=0), "batch: got 0"),
        (dict(steps=1, lr=math.nan), "lr: got nan"), (dict(steps=1, ema=1), "ema: got 1"), (dict(steps=1, warmup=-1), "warmup: got -1"),
        (dict(steps=1, gamma=0), "gamma: got 0"), (dict(steps=1, accumulate=0), "accumulate: got 0")])
    def test_invalid_values(self, bad, says):
        with pytest.raises(ValueError, match=says): Recipe(**bad)

    def test_rate_rises_and_falls(self):
        r = Recipe(steps=100, warmup=10, lr=1.)
        assert r.rate(0, 0) == .1 and abs(r.rate(50, .5) - .5) < 1e-9 and r.rate(100, 1) < 1e-9 and r.rate(200, 2) < 1e-9

    def test_trainer_refuses(self, tmp_path):
        with pytest.raises(ValueError, match="batch: got 8, expected a multiple of accumulate x processes = 3"): trainer(accumulate=3)
        with pytest.raises(ValueError, match="precision: got 'fp16'"): trainer(precision="fp16")
        with pytest.raises(ValueError, match="log_every: got 0"): trainer(log_every=0)
        with pytest.raises(ValueError, match="no pictures"): trainer(data=GARDEN.subset(torch.arange(0)))
        d = denoiser(); d.info = dict(picture=torch.zeros(1))
        with pytest.raises(TypeError, match="JSON"): Trainer(d, GARDEN, tmp_path, steps=1)
        with pytest.raises(TypeError, match="network: got Constant"):
            Trainer(Denoiser(Constant(1.), SCHEDULE), GARDEN, tmp_path, steps=1, batch=1)

class TestTraining:
    def test_loss_falls(self):
        t = trainer(steps=150, batch=16, lr=5e-3, log_every=10).fit()
        assert t.history[-1][2] < .6 * t.history[0][2]

    @pytest.mark.parametrize("accumulate", [2, 4, 8])
    def test_accumulation_equals_the_whole_batch(self, accumulate):
        found = []
        for n in (1, accumulate):
            t = trainer(accumulate=n)
            loss = t.gradients()
            found.append((loss, torch.cat([p.grad.flatten() for p in t.network.parameters()])))
        (loss, g), (loss_n, g_n) = found
        assert abs(loss - loss_n) < 1e-5 and (g - g_n).norm() < 1e-5 * g.norm()

    @pytest.mark.parametrize("sick", ["data", "lr"])
    def test_nan_stops_before_it_spoils_anything(self, tmp_path, sick):
        t = trainer(tmp_path, lr=1e9 if sick == "lr" else 1e-3, warmup=1, steps=50, save_every=0)
        if sick == "data":
            draw = t.batches.draw
            t.batches.draw = lambda step, drop: [math.nan * v if step == 3 and i == 0 else v for i, v in enumerate(draw(step, drop))]
        with pytest.raises(FloatingPointError, match=r"became (nan|inf) at step \d+; .* smaller lr"): t.fit()
        assert all(p.isfinite().all() for p in t.network.parameters())
        assert header(t.checkpoint)["info"]["progress"]["step"] == t.step
        assert all(p.isfinite().all() for p in load(t.checkpoint).parameters())

    def test_infinite_gradient_under_a_finite_loss(self):
        t = trainer()
        t.network.out[-1].bias.register_hook(lambda g: g * math.inf)
        before = [p.clone() for p in t.network.parameters()]
        with pytest.raises(FloatingPointError, match="its gradient became"): t.train_step()
        assert all(torch.equal(a, b) for a, b in zip(before, t.network.parameters()))

    def test_compile_changes_no_names(self, tmp_path, monkeypatch):
        monkeypatch.setattr(UNet, "compile", lambda self: nn.Module.compile(self, backend="eager"))
        plain, compiled = trainer().fit(), trainer(tmp_path, compile=True).fit()
        assert compiled.network._compiled_call_impl is not None
        assert load(compiled.checkpoint).network.config == plain.network.config
        assert [h[2] for h in plain.history] == pytest.approx([h[2] for h in compiled.history], rel=1e-3)

    def test_tensorboard(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        t = trainer(tensorboard=tmp_path / "board", preview=lambda d: torch.zeros(4, 3, 8, 8), preview_every=6).fit()
        events = EventAccumulator(str(tmp_path / "board")).Reload()
        assert [e.step for e in events.Scalars("loss")] == [4, 8, 12]
        assert [e.value for e in events.Scalars("loss")] == pytest.approx([h[2] for h in t.history])
        assert [e.step for e in events.Images("preview")] == [6, 12]

    def test_logs_and_previews(self, tmp_path, capsys):
        trainer(tmp_path, preview=lambda d: torch.zeros(4, 3, 8, 8), preview_every=6).fit()
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "checkpoint.safetensors", "log.csv", "preview_000006.png", "preview_000012.png"]
        rows = (tmp_path / "log.csv").read_text().splitlines()
        assert rows[0] == "step,seconds,pictures,loss" and [r.split(",")[::2][:2] for r in rows[1:]] == [["4", "32"], ["8", "64"], ["12", "96"]]
        said = capsys.readouterr().err
        assert "step 12, 100% done, loss" in said and said.count("\n") == 1      # no terminal: a line, not a bar

class TestResume:
    def test_bit_for_bit_after_a_signal(self, tmp_path):
        for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
            def preview(d): signal.raise_signal(number); return torch.zeros(1, 3, 8, 8)
            out, handlers = tmp_path / str(number), (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
            with pytest.raises(error): trainer(out, preview=preview, preview_every=5).fit()
            assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
            resumed = Trainer.resume(out / "checkpoint.safetensors", GARDEN, device="cpu", log_every=4)
            assert resumed.step == 6 and len(resumed.recent) == 2
            resumed.fit()
            through = trainer().fit()
            assert torch.equal(state(through), state(resumed)) and diary(through) == diary(resumed)

    def test_bit_for_bit_with_dropout(self, tmp_path):
        through, broken = trainer(dropout=.3).fit(), trainer(tmp_path, dropout=.3)
        for _ in range(7): broken.recent.append(broken.train_step())
        broken.save()
        torch.manual_seed(1234)                                            # another process has another random state
        resumed = Trainer.resume(broken.checkpoint, GARDEN, device="cpu", log_every=4).fit()
        assert torch.equal(state(through), state(resumed))

    def test_before_the_first_step_and_after_the_last(self, tmp_path):
        trainer(tmp_path).save()
        done = Trainer.resume(tmp_path / "checkpoint.safetensors", GARDEN, device="cpu", log_every=4).fit()
        assert torch.equal(state(done), state(trainer().fit()))
        longer = Trainer.resume(done.checkpoint, GARDEN, device="cpu", steps=15).fit()
        assert longer.step == 15

    def test_ctrl_c_in_the_middle_of_a_step(self, tmp_path):
        "Two quick Ctrl-C's may cut a step in two: that half is not saved over the last whole checkpoint."
        t = trainer(tmp_path, save_every=0)
        update = t.ema.update
        def cut(step):
            if step == 5: raise KeyboardInterrupt
            update(step)
        t.ema.update = cut
        with pytest.raises(KeyboardInterrupt): t.fit()
        resumed = Trainer.resume(t.checkpoint, GARDEN, device="cpu", log_every=4)
        assert resumed.step == 5
        assert torch.equal(state(resumed.fit()), state(trainer().fit()))

    def test_kill_9(self, tmp_path):
        script = ("import torch; from test_training import *\n"
                  f"trainer({str(tmp_path)!r}, steps=100_000, save_every=0).fit()")
        env = os.environ | dict(OMP_NUM_THREADS=str(torch.get_num_threads()), PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        child = subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.DEVNULL)
        file, deadline = tmp_path / "checkpoint.safetensors", time.time() + 120
        try:
            while not (file.exists() and header(file)["info"]["progress"]["step"] >= 5):
                assert child.poll() is None and time.time() < deadline
                time.sleep(.05)
        finally: child.kill(); child.wait()
        assert child.returncode == -signal.SIGKILL
        assert load(file).info["progress"]["step"] >= 5
        resumed = Trainer.resume(file, GARDEN, device="cpu")
        at = resumed.step
        while resumed.step < at + 3: resumed.train_step()
        through = trainer(steps=100_000)
        while through.step < at + 3: through.train_step()
        assert torch.equal(state(through), state(resumed))

    def test_refuses(self, tmp_path):
        t = trainer(tmp_path).fit()
        with pytest.raises(ValueError, match="data: got 30 pictures, but .* was trained on 40"):
            Trainer.resume(t.checkpoint, GARDEN.subset(range(30)))
        save_weights(tmp_path / "bare.safetensors", averaged(t))
        with pytest.raises(WeightsError, match="holds weights but no run"): Trainer.resume(tmp_path / "bare.safetensors", GARDEN)
        save_weights(tmp_path / "told.safetensors", load(t.checkpoint))   # has the run's diary, but not the optimizer's state
        with pytest.raises(WeightsError, match="lacks a part of the run's state"):
            Trainer.resume(tmp_path / "told.safetensors", GARDEN, tmp_path / "new")

class TestFiles:
    @pytest.mark.parametrize("half", [True, False])
    def test_round_trip(self, tmp_path, half):
        d = denoiser(predicts="eps", clip=1.).eval()
        save_weights(tmp_path / "w.safetensors", d, half=half, made="by a test")
        back = load(tmp_path / "w.safetensors", "cpu")
        assert (back.predicts, back.clip, back.info) == ("eps", 1., {"made": "by a test"})
        assert back.schedule.config == SCHEDULE.config and back.network.config == d.network.config
        x = torch.randn(2, 3, 8, 8)
        with torch.no_grad(): error = (back.raw(x, 50) - d.raw(x, 50)).abs().max() / d.raw(x, 50).abs().max()
        assert error < 1e-5 if not half else 0 < error < 5e-3
        assert not any(p.requires_grad for p in back.parameters()) and not back.training

    def test_a_checkpoint_loads_its_average(self, tmp_path):
        t = trainer(tmp_path).fit()
        for (name, p), q in zip(load(t.checkpoint).network.named_parameters(), averaged(t).network.parameters()):
            assert torch.equal(p, t.ema.average[name]) and torch.equal(p, q)

    def test_broken_and_foreign_files(self, tmp_path):
        good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
        save_weights(good, denoiser())
        whole = good.read_bytes()
        for n in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
            bad.write_bytes(whole[:n])
            with pytest.raises(WeightsError, match="no whole safetensors file"): load(bad)
        bad.write_bytes(os.urandom(1000))
        with pytest.raises(WeightsError): load(bad)
        torch.save({"a": torch.zeros(1)}, bad)
        with pytest.raises(WeightsError, match="pickled files are never opened"): load(bad)
        save_file({"a": torch.zeros(1)}, bad)
        with pytest.raises(WeightsError, match="not written by zerodiff"): load(bad)
        with pytest.raises(FileNotFoundError, match="no file at"): load(tmp_path / "none.safetensors")
        with pytest.raises(FileNotFoundError, match="no file at"): load(tmp_path)

    @pytest.mark.parametrize("change, says", [
        (lambda h: h.update(format=2), "has format 2, this version reads 1"),
        (lambda h: h.pop("schedule"), "cannot be read"),
        (lambda h: h.update(info=[]), "cannot be read"),
        (lambda h: h["network"].update({"class": "os.system"}), "expected a name within zerodiff"),
        (lambda h: h["network"].update({"class": "zerodiff.data.garden"}), "is not a Network"),
        (lambda h: h["network"].update({"class": "zerodiff.unet.Nothing"}), "is not in this version"),
        (lambda h: h["network"]["args"].update(wings=2), "cannot be built"),
        (lambda h: h["network"]["args"].update(channels=-8), "cannot be built"),
        (lambda h: h["network"]["args"].update(channels=16), "does not fit its own header"),
        (lambda h: h["network"]["args"].update(multipliers=[1]), "does not fit its own header"),
        (lambda h: h["schedule"].update(name="spiral"), "cannot be built"),
        (lambda h: h.update(network=7), "says 'network' in a way"),
        (lambda h: h["network"].pop("args"), "says 'network' in a way"),
        (lambda h: h.update(schedule={}), "says 'schedule' in a way"),
        (lambda h: h["schedule"].update(T=10**9), "says 'T' in a way"),
        (lambda h: h["schedule"].update(T="many"), "says 'T' in a way"),
        (lambda h: h["info"].update(classes=[1, 2]), "says 'classes' in a way"),
        (lambda h: h["info"].update(latent="vae24"), "says 'latent' in a way"),
        (lambda h: h["info"].update(progress=[]), "says 'progress' in a way"),
        (lambda h: h.update(predicts="noise"), "cannot be built")])
    def test_headers_that_lie(self, tmp_path, change, says):
        path, d = tmp_path / "w.safetensors", denoiser()
        head = json.loads(training.describe(d, {}))
        change(head)
        save_file({f"network.{k}": v.contiguous() for k, v in d.network.state_dict().items()}, path, metadata={"zerodiff": json.dumps(head)})
        with pytest.raises(WeightsError, match=says) as caught: load(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("change", [dict(channels=10**6), dict(multipliers=[1, 10**6]), dict(blocks=10**7)])
    def test_a_small_file_cannot_ask_for_a_large_network(self, tmp_path, change):
        "Laid out without memory, and no further than the file has tensors: else this would take terabytes, or hours."
        path, d = tmp_path / "w.safetensors", denoiser()
        head = json.loads(training.describe(d, {}))
        head["network"]["args"].update(change)
        save_file({f"network.{k}": v.contiguous() for k, v in d.network.state_dict().items()}, path, metadata={"zerodiff": json.dumps(head)})
        with pytest.raises(WeightsError, match="does not fit its own header|more tensors than the file has"): load(path)
        assert nn.Linear(2, 2).weight.device.type == "cpu"        # what was set meanwhile is set no more

    def test_header_that_is_no_json(self, tmp_path):
        for text in ("{", "[]", "null", '"text"'):
            save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"zerodiff": text})
            with pytest.raises(WeightsError, match="cannot be read"): header(tmp_path / "w.safetensors")

    def test_header_of_a_file_that_is_replaced_meanwhile(self, tmp_path):
        path, d = tmp_path / "w.safetensors", denoiser()
        tensors = {f"network.{k}": v.contiguous() for k, v in d.network.state_dict().items()}
        for name, more in (("short", 0), ("long", 100)): save_file(tensors, tmp_path / name, metadata={"zerodiff": training.describe(d, dict(note=" " * more))})
        script = ("import itertools, os, pathlib, sys; there = pathlib.Path(sys.argv[1])\n"
                  "for name in itertools.cycle(('short', 'long')): os.link(there / name, there / 'aside'); os.replace(there / 'aside', there / 'w.safetensors')")
        os.link(tmp_path / "long", path)
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
        try:
            deadline, seen = time.time() + 60, set()
            while len(seen) < 2: assert child.poll() is None and time.time() < deadline; seen.add(header(path)["info"]["note"])
            for _ in range(1000): seen.add(header(path)["info"]["note"])     # PyTorch's own reader fails about one time in ten
        finally: child.kill(); child.wait()
        assert seen == {"", " " * 100}

    def test_what_no_file_can_hold(self, tmp_path):
        path, d = tmp_path / "w.safetensors", denoiser()
        with pytest.raises(TypeError, match="JSON"): save_weights(path, d, picture=torch.zeros(1))
        with torch.no_grad(): next(d.parameters()).view(-1)[0] = 1e6
        with pytest.raises(ValueError, match="too large for float16"): save_weights(path, d)
        save_weights(path, d, half=False)
        assert load(path, "cpu").network.time[0].weight.max() == 1e6
        d = denoiser()
        with pytest.raises(TypeError, match="schedule: this one has no config"):
            save_weights(path, Denoiser(d.network, NoiseSchedule(torch.tensor([.9, .1]))))

    def test_shipped(self):
        with pytest.raises(FileNotFoundError, match="got 'roses', but zerodiff comes with"): shipped("roses")
        there = Path(training.__file__).parent / "weights"
        for p in there.glob("*.safetensors"): assert shipped(p.stem) == p

class TestFullDisk:
    def limited(self, size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def names(self, folder): return sorted(p.name for p in folder.iterdir())

    @pytest.mark.parametrize("how", ["limit", "write", "rename"])
    def test_the_old_file_stays(self, tmp_path, monkeypatch, how):
        path = tmp_path / "w.safetensors"
        save_weights(path, denoiser())
        before = path.read_bytes()
        def fail(*a, **k): raise OSError(28, "No space left on device")
        if how == "write": monkeypatch.setattr(training, "save_file", fail)
        if how == "rename": monkeypatch.setattr(os, "replace", fail)
        undo = self.limited(1000) if how == "limit" else lambda: None
        try:
            with pytest.raises(OSError, match="w.safetensors"): save_weights(path, denoiser(1))
        finally: undo()
        assert path.read_bytes() == before and self.names(tmp_path) == ["w.safetensors"]

    def test_a_run_outlives_a_failed_save(self, tmp_path, monkeypatch):
        real, calls = training.save_file, []
        def sometimes(tensors, path, metadata):
            calls.append(path)
            if len(calls) in (3, 4): raise OSError(28, "No space left on device")
            real(tensors, path, metadata=metadata)
        monkeypatch.setattr(training, "save_file", sometimes)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            t = trainer(tmp_path, save_every=0).fit()
        told = [str(w.message) for w in seen if issubclass(w.category, RuntimeWarning)]
        assert len(told) == 2 and told[0].startswith("step 3: ") and "No space left" in told[0] and "Training goes on" in told[0]
        assert torch.equal(state(t), state(trainer().fit())) and header(t.checkpoint)["info"]["progress"]["step"] == 12

    def test_the_last_save_failing_is_an_error(self, tmp_path, monkeypatch):
        t = trainer(tmp_path)
        def fail(*a, **k): raise OSError(28, "No space left on device")
        with monkeypatch.context() as m:
            m.setattr(training, "save_file", fail)
            with pytest.raises(OSError, match="No space left"): t.fit()
        assert t.step == 12 and self.names(tmp_path) == ["log.csv"]
        t.save()                                                           # the run is still in memory
        assert header(t.checkpoint)["info"]["progress"]["step"] == 12

    def test_no_folder_and_no_right_to_write(self, tmp_path, monkeypatch):
        with pytest.raises(FileNotFoundError, match="there is no folder"): save_weights(tmp_path / "no" / "w.safetensors", denoiser())
        def refuse(self, *a, **k): raise PermissionError(13, "Permission denied", str(self))   # root may write to read-only folders
        monkeypatch.setattr(Path, "touch", refuse)
        with pytest.raises(PermissionError, match="Permission denied"): save_weights(tmp_path / "w.safetensors", denoiser())
        assert self.names(tmp_path) == []

@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "train.py"
    script.write_text("import os, sys, torch\nfrom test_training import *\n"
                      "torch.set_num_threads(1)\n"
                      "d = denoiser(seed=int(os.environ.get('RANK', 0)))\n"          # other weights in the second: they are made alike
                      "Trainer(d, GARDEN, sys.argv[1], steps=6, batch=8, warmup=3, log_every=1, precision='fp32').fit()\n")
    env = os.environ | dict(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, command in (("one", [sys.executable]), ("two", launch)):
        done = subprocess.run([*command, str(script), str(tmp_path / name)], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (header(tmp_path / n / "checkpoint.safetensors")["info"]["progress"]["history"] for n in ("one", "two"))
    assert [h[2] for h in one] == pytest.approx([h[2] for h in two], rel=1e-4)
    a, b = (load(tmp_path / n / "checkpoint.safetensors").network.state_dict() for n in ("one", "two"))
    assert max((a[k] - b[k]).abs().max() for k in a) < 1e-4


class TestPlaces:
    def test_emulated_bfloat16_is_not_fast(self, monkeypatch):
        "Older GPUs compute in bfloat16 by way of float32; PyTorch calls that supported unless it is asked not to."
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        assert training.pick_precision("cuda") == torch.float32

    @pytest.mark.parametrize("rank, device", [(None, "cuda"), ("0", "cuda:0"), ("3", "cuda:3"), ("5", "cuda:1")])
    def test_each_process_of_a_machine_has_its_own_gpu(self, monkeypatch, rank, device):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank: monkeypatch.setenv("LOCAL_RANK", rank)
        assert training.pick_device() == torch.device(device) and training.pick_device("cpu") == torch.device("cpu")

    def test_a_folder_does_not_hide_shipped_weights(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "flowers").mkdir()
        assert training.weights_path("flowers") == shipped("flowers")
        (tmp_path / "mine").write_bytes(b"")
        assert training.weights_path("mine") == Path("mine")
