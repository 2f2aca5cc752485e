"""ONNX files that compute what torch does and say what they are, and schedulers of diffusers that step as our samplers do."""
import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import zerodiff.runtimes as runtimes
from zerodiff.attention import DiT
from zerodiff.guidance import guide, guided_raw
from zerodiff.pipeline import Pipeline, dice
from zerodiff.runtimes import KINDS, OnnxNetwork, exportable, follow, labelled, load_onnx, packed, to_onnx, to_scheduler, traced
from zerodiff.sampling import ddim, samplers
from zerodiff.schedule import cosine_schedule, linear_schedule, make_schedule
from zerodiff.text import ClassOrVector
from zerodiff.training import Denoiser, WeightsError, describe, shipped
from zerodiff.unet import Network, UNet

ROOT = Path(__file__).resolve().parent.parent


def awake(network: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for p in network.parameters(): nn.init.normal_(p, std=.1)
    return network.eval().requires_grad_(False)


def denoiser(name: str) -> Denoiser:
    "Shipped weights, or a small network of another kind, with numbers that float16 does not hold."
    if name in ("flowers", "latent"): return Pipeline.load(name, "cpu").denoiser
    network = dict(words=lambda: ClassOrVector(UNet(8, (1, 2), cond_dim=8, attention="zerodiff.attention.SelfAttention", attention_levels=(1,)), 3, 4, memory=2),
                   vector=lambda: DiT(32, 1, 2, cond_dim=6, heads=2))[name]()
    return Denoiser(awake(network), linear_schedule(50), "eps")


NAMES = ("flowers", "latent", "words", "vector")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "The ONNX file of each, made when it is first asked for (some ten seconds each)."
    folder = tmp_path_factory.mktemp("onnx")
    class Files(dict):
        def __missing__(self, name):
            (folder / name).mkdir()
            self[name] = to_onnx(denoiser(name), folder / name / "network.onnx")
            return self[name]
    return Files()


def inputs(name: str, n: int, height: int, width: int, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8 if name == "latent" else 3, height, width, generator=rng)
    t = torch.randint(0, 50 if name in ("words", "vector") else 1000, (n,), generator=rng)
    if name == "vector": return x, t, torch.randn(n, 6, generator=rng)
    if name == "words": return x, t, denoiser("words").network.condition(torch.arange(n) % 3, torch.randn(n, 4, generator=rng))
    return x, t, torch.randint(0, 103, (n,), generator=rng)


# ---------------------------------------------------------------- parity

@pytest.mark.slow
@pytest.mark.parametrize("n, height, width", [(1, 16, 16), (2, 16, 24), (5, 8, 8)])
@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_computes_what_torch_does(name, n, height, width, files):
    "At numbers and sizes of pictures other than were traced; the plain session, so that it is the file which is right."
    ours, (x, t, cond) = denoiser(name).network, inputs(name, n, height, width)
    raw, = onnxruntime.InferenceSession(files[name], providers=["CPUExecutionProvider"]).run(None, dict(x=x.numpy(), t=t.numpy(), cond=cond.numpy()))
    with torch.no_grad(): expected = ours(x, t, cond)
    assert expected.abs().max() > .1
    torch.testing.assert_close(torch.from_numpy(raw), expected, rtol=0, atol=1e-4)
    assert torch.equal(OnnxNetwork(files[name])(x, t, cond), torch.from_numpy(raw))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flowers", "latent", "words"])
def test_no_condition_is_the_null_condition(name, files):
    (x, t, cond), there, ours = inputs(name, 3, 16, 16), OnnxNetwork(files[name]), denoiser(name).network
    torch.testing.assert_close(there(x, t), ours(x, t), rtol=0, atol=1e-4)
    assert torch.equal(there.null(3), ours.null(3)) and not torch.allclose(there(x, t), there(x, t, cond), atol=1e-3)


@pytest.mark.slow
def test_labels_are_a_condition_too_where_vectors_are(files):
    (x, t, _), labels = inputs("words", 3, 8, 8), torch.tensor([2, 0, 1])
    torch.testing.assert_close(OnnxNetwork(files["words"])(x, t, labels), denoiser("words").network(x, t, labels), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", samplers)
def test_the_same_sunflower(sampler, files):
    here, there, options = Pipeline.load("flowers", "cpu"), Pipeline(load_onnx(files["flowers"])), dict(n=2, steps=5, seed=3, sampler=sampler)
    assert there.classes == here.classes and there.size == 32 and there.denoiser.clip == 1
    for scale in (3., 0, -2.):
        expected = here("sunflower", scale=scale, **options)
        torch.testing.assert_close(there("sunflower", scale=scale, **options), expected, rtol=0, atol=2e-3)
    assert (there("rose", **options) - here("sunflower", **options)).abs().max() > .1


@pytest.mark.slow
def test_latents_are_decoded_and_photographs_inverted(files):
    here, there = Pipeline.load("latent", "cpu"), Pipeline(load_onnx(files["latent"]))
    drawn = here("rose", n=1, steps=4)
    torch.testing.assert_close(there("rose", n=1, steps=4), drawn, rtol=0, atol=2e-3)
    options = dict(strength=.5, steps=6, invert=True)
    torch.testing.assert_close(there.edit(drawn[0], "sunflower", **options), here.edit(drawn[0], "sunflower", **options), rtol=0, atol=2e-3)


@pytest.mark.slow
def test_other_precisions_go_in_and_come_back(files):
    x, t, cond = inputs("flowers", 2, 16, 16)
    there = OnnxNetwork(files["flowers"])
    for dtype in (torch.float64, torch.bfloat16):
        raw = there(x.to(dtype), t.int(), cond)
        assert torch.equal(raw, there(x.to(dtype).float(), t, cond).to(dtype))


# ---------------------------------------------------------------- the file

@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_says_of_itself(name, files):
    model, d = onnx.load(files[name]), denoiser(name)
    said = {p.key: p.value for p in model.metadata_props}
    assert json.loads(said["zerodiff"]) == json.loads(describe(d, d.info))
    dims = {v.name: [x.dim_param or x.dim_value for x in v.type.tensor_type.shape.dim] for v in [*model.graph.input, *model.graph.output]}
    channels = 8 if name == "latent" else 3
    assert dims == dict(x=["B", channels, "H", "W"], t=["B"], cond=["B"] + dict(words=[5], vector=[6]).get(name, []), raw=["B", channels, "H", "W"])
    assert [o.version for o in model.opset_import if o.domain == ""] == [20]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_one_file_without_paths_of_this_machine(name, files):
    held = files[name].read_bytes()
    assert [p.name for p in files[name].parent.iterdir()] == [files[name].name]
    for path in (str(ROOT), sys.prefix, ".py", "stack_trace"): assert path.encode() not in held, path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flowers", "latent"])
def test_a_file_is_as_large_as_its_weights(name, files):
    assert files[name].stat().st_size < 1.02 * shipped(name).stat().st_size


def tiny_model(**weights):
    "An ONNX model that adds its weights to x."
    from onnx import TensorProto as T, helper as h
    nodes, before = [], "x"
    for name in weights: nodes, before = [*nodes, h.make_node("Add", [before, name], [f"after_{name}"])], f"after_{name}"
    n = len(next(iter(weights.values())))
    graph = h.make_graph(nodes, "tiny", [h.make_tensor_value_info("x", T.FLOAT, [n])], [h.make_tensor_value_info(before, T.FLOAT, [n])],
                         [onnx.numpy_helper.from_array(v.numpy(), k) for k, v in weights.items()])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=10)


def test_only_what_float16_holds_is_packed():
    exact, third = torch.randn(2000).half().float(), torch.full((2000,), 1 / 3)
    large, small = torch.full((2000,), 1e5), torch.full((2000,), 1e-9)
    model = tiny_model(exact=exact, third=third, large=large, small=small)
    run = lambda: onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, dict(x=torch.zeros(2000).numpy()))[0]
    before = run()
    packed(model)
    kinds = {w.name: w.data_type for w in model.graph.initializer}
    assert kinds == {"exact.half": 10, "third": 1, "large": 1, "small": 1} and (run() == before).all()
    onnx.checker.check_model(model, full_check=True)


def cheap(monkeypatch):
    "No tracing: `to_onnx` writes a toy."
    monkeypatch.setattr(runtimes, "traced", lambda network, opset: tiny_model(exact=torch.zeros(2000)))


def test_a_path_of_ones_own_vae_stays_at_home(tmp_path, monkeypatch):
    cheap(monkeypatch)
    d = Denoiser(UNet(8, (1,)), cosine_schedule(50))
    d.info = dict(latent=dict(weights="/home/someone/vae.safetensors", digest="0", shift=[0], scale=[1]))
    to_onnx(d, tmp_path / "a.onnx")
    said = json.loads(onnx.load(tmp_path / "a.onnx").metadata_props[0].value)["info"]
    assert said["latent"]["weights"] == "vae.safetensors" and d.info["latent"]["weights"] == "/home/someone/vae.safetensors"


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    cheap(monkeypatch)
    file = tmp_path / "a.onnx"
    file.write_bytes(b"old")
    def full(self, data): raise OSError(28, "No space left on device", str(self))
    with monkeypatch.context() as m:
        m.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"): to_onnx(Denoiser(UNet(8, (1,)), cosine_schedule(50)), file)
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"] and file.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError, match="there is no folder"): to_onnx(Denoiser(UNet(8, (1,)), cosine_schedule(50)), tmp_path / "no" / "a.onnx")


def test_the_network_that_was_exported_is_as_it_was():
    network = denoiser("words").network
    copy = exportable(network.double())
    assert next(network.parameters()).dtype == torch.float64 and next(copy.parameters()).dtype == torch.float32
    with pytest.raises(ValueError, match="labels"): network.embedding(torch.tensor([9]))
    with pytest.raises(IndexError): copy.embedding(torch.tensor([9]))                       # not asked, only looked up


class Sized(Network):
    "A network without weights that says what it does with the number of pictures."
    def __init__(self, frozen: bool):
        super().__init__()
        self.frozen, self.in_channels, self.cond_dim, self.multiple = frozen, 3, 0, 1
    def forward(self, x, t, cond=None): return x.reshape(2, 3, *x.shape[2:]) if self.frozen else x / len(x)


def test_sizes_stay_free_or_are_refused():
    "To ask for len(x) freezes nothing, as it would in an exporter's own trace; a batch that is two, whatever comes, is no file."
    graph = traced(Sized(False), 20).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param and not graph.input[0].type.tensor_type.shape.dim[0].dim_value
    with pytest.raises(Exception, match="(?i)batch|constraint|specializ"): traced(Sized(True), 20)


def test_networks_that_cannot_be_exported(tmp_path):
    with pytest.raises(TypeError, match="network: got Linear, expected a zerodiff.unet.Network"): to_onnx(Denoiser(nn.Linear(2, 2), cosine_schedule(50)), tmp_path / "a.onnx")
    class Strange(Network):
        def __init__(self): super().__init__()
    with pytest.raises(TypeError, match="network: got Strange, expected one with in_channels"): to_onnx(Denoiser(Strange(), cosine_schedule(50)), tmp_path / "a.onnx")


# ---------------------------------------------------------------- reading

def test_files_that_are_none_of_ours(tmp_path):
    file = tmp_path / "a.onnx"
    with pytest.raises(FileNotFoundError, match="weights: no file at .*a.onnx"): load_onnx(file)
    file.write_bytes(tiny_model(w=torch.zeros(4)).SerializeToString())
    with pytest.raises(WeightsError, match="is an ONNX file, but was not written by zerodiff"): load_onnx(file)
    for text, says in (('{"format": 1, "network": 7, "schedule": {}, "predicts": "v", "clip": null, "info": {}}', "cannot be built"), ('{"format": 1, "network": 7, "schedule": {}, "predicts": "v", "clip": null, "info": []}', "info is not a dict"), ("{", "cannot be read"), ('{"format": 2}', "has format 2, this version reads 1"), ('{"format": 1}', "cannot be read .*network")):
        file.write_bytes(labelled(tiny_model(w=torch.zeros(4)), text).SerializeToString())
        with pytest.raises(WeightsError, match=says): load_onnx(file)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(WeightsError, match="is no whole ONNX file"): load_onnx(file)
    file.write_bytes(b"")
    with pytest.raises(WeightsError): load_onnx(file)


@pytest.mark.slow
@pytest.mark.parametrize("name, change, says", [
    ("flowers", dict(cond=torch.tensor([-1, 0])), "labels: got -1..0, expected 0..101, or 102 for no class"),
    ("flowers", dict(cond=torch.tensor([0, 103])), "labels: got 0..103"), ("flowers", dict(cond=torch.tensor([0])), "cond: got 1 conditions for 2 pictures"),
    ("flowers", dict(x=torch.zeros(2, 3, 18, 16)), "multiples of 8"), ("flowers", dict(x=torch.zeros(2, 4, 16, 16)), r"expected \(B, 3, H, W\)"),
    ("vector", dict(cond=None), "cond: got None, expected a vector for each picture"),
    ("words", dict(cond=torch.zeros(2, 4)), r"cond: got shape \(2, 4\), expected \(2, 5\)"), ("words", dict(cond=torch.tensor([9, 0])), "cond: got classes 0..9, expected 0..2, or -1 for none")])
def test_inputs_that_do_not_fit(name, change, says, files):
    x, t, cond = inputs(name, 2, 16, 16)
    with pytest.raises(ValueError, match=says): OnnxNetwork(files[name])(**dict(x=x, t=t, cond=cond) | change)
    with pytest.raises(TypeError, match="t: got torch.float32"): OnnxNetwork(files[name])(x, t.float(), cond)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_the_extra_is_named(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}: from a clone, run pip install '.\[onnx\]'"): to_onnx(denoiser("vector"), tmp_path / "a.onnx")


def test_the_other_extras_are_named(monkeypatch, tmp_path):
    (tmp_path / "a.onnx").touch()
    for package, extra, ask in (("onnxruntime", "onnx", lambda: load_onnx(tmp_path / "a.onnx")), ("diffusers", "diffusers", lambda: to_scheduler(cosine_schedule()))):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"{package}: from a clone, run pip install '.\[{extra}\]'"): ask()


# ---------------------------------------------------------------- schedulers of diffusers

class MadeUp(nn.Module):
    "A network that costs nothing: smooth, and different at every t."
    def forward(self, x, t, cond=None): return torch.tanh(1.3 * x + t.reshape(-1, 1, 1, 1) / 700) - .4 * x


def noise(n: int = 2): return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(11))


def rngs(n: int = 2): return [torch.Generator().manual_seed(i) for i in range(n)]


OURS = dict(DDIMScheduler="ddim", DDPMScheduler="ddpm", DPMSolverMultistepScheduler="dpmpp_2m")


def both(kind, d, steps, **options):
    "Every x of theirs and of ours, from one noise and the same dice."
    theirs = list(follow(to_scheduler(d, kind, **options), d.raw, noise(), steps, rngs()))
    ours = list(samplers[OURS[kind]](d.given(None), noise(), d.schedule, steps, rng=rngs()))
    assert [t for t, _ in theirs] == [s.t for s in ours]
    return torch.stack([x for _, x in theirs]), torch.stack([s.x for s in ours])


@pytest.mark.parametrize("config", [dict(name="cosine", T=1000), dict(name="linear", T=1000), dict(name="cosine", T=100), dict(name="sigmoid", T=500)], ids=str)
@pytest.mark.parametrize("predicts, clip", [("v", 1.), ("v", None), ("x0", 1.), ("eps", 1.), ("eps", None)])
@pytest.mark.parametrize("kind", KINDS)
def test_schedulers_step_as_our_samplers(kind, predicts, clip, config):
    "Whole runs, every x of them. An unclipped eps under the cosine schedule is divided by 5e-5, and its x is that much larger."
    d = Denoiser(MadeUp(), make_schedule(config), predicts, clip)
    for steps in (1, 10, 20):
        theirs, ours = both(kind, d, steps)
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
        assert ours.isfinite().all() and (theirs - ours).abs().max() <= 1e-3 * ours.abs().max().clamp(min=1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_would_be_wrong_is_noticed(kind):
    "The test above can fail: another spacing, another kind of output, clipping left out."
    d = Denoiser(MadeUp(), cosine_schedule(), "v", 1.)
    off = dict(thresholding=False) if kind == "DPMSolverMultistepScheduler" else dict(clip_sample=False)
    for wrong in (dict(prediction_type="epsilon"), off):
        theirs, ours = both(kind, d, 10, **wrong)
        assert (theirs[-1] - ours[-1]).abs().max() > .01, wrong
    leading = to_scheduler(d, kind, timestep_spacing="leading")
    leading.set_timesteps(10)
    assert leading.timesteps[0] < 999


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
def test_any_clip_where_there_is_clipping(kind):
    d = Denoiser(MadeUp(), cosine_schedule(), "v", .5)
    theirs, ours = both(kind, d, 10)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)
    assert ours[-1].abs().max() <= .5 + 1e-6


def test_a_clip_that_the_multistep_solver_cannot_do():
    with pytest.raises(ValueError, match="clip: got 0.5, expected 1 or None: DPMSolverMultistepScheduler"):
        to_scheduler(Denoiser(MadeUp(), cosine_schedule(), "v", .5), "DPMSolverMultistepScheduler")


@pytest.mark.parametrize("kind, same", [("DDIMScheduler", False), ("DDPMScheduler", True), ("DPMSolverMultistepScheduler", True)])
def test_numbers_of_steps_that_do_not_divide_T(kind, same):
    "As the chapter says: DDIMScheduler steps by T // N, the others along their list."
    theirs, ours = both(kind, Denoiser(MadeUp(), cosine_schedule(), "v", 1.), 30)
    assert ((theirs - ours).abs().max() < 1e-3) == same


def test_ddim_needs_the_clipped_output():
    "As the chapter says: without it eps does not agree with a clipped x0."
    d = Denoiser(MadeUp(), cosine_schedule(), "v", .5)
    *_, (_, theirs) = follow(to_scheduler(d), d.raw, noise(), 10, use_clipped_model_output=False)
    *_, ours = ddim(d.given(None), noise(), d.schedule, 10)
    *_, (_, right) = follow(to_scheduler(d), d.raw, noise(), 10)
    assert (theirs - ours.x).abs().max() > .01 > 1e-3 > (right - ours.x).abs().max()


def test_eta_and_other_options_go_through():
    d = Denoiser(MadeUp(), cosine_schedule(), "v", 1.)
    *_, (_, theirs) = follow(to_scheduler(d), d.raw, noise(), 10, rngs(), eta=.5)
    *_, ours = ddim(d.given(None), noise(), d.schedule, 10, eta=.5, rng=rngs())
    torch.testing.assert_close(theirs, ours.x, rtol=0, atol=1e-3)
    assert to_scheduler(d, "DPMSolverMultistepScheduler", solver_order=3).config.solver_order == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_ours_and_the_config_nearly(kind):
    "A scheduler made again from its config, as JSON would keep it, has a table in float32: near enough to draw, not to be exact."
    schedule = cosine_schedule()
    scheduler = to_scheduler(schedule, kind)
    assert torch.equal(scheduler.alphas_cumprod, schedule.alpha_bar) and scheduler.config.prediction_type == "v_prediction"
    again = type(scheduler).from_config(json.loads(scheduler.to_json_string()))
    off = (again.alphas_cumprod.double() / schedule.alpha_bar - 1).abs().max()
    assert 0 < off < 1e-3
    scheduler.alphas_cumprod[0] = 0
    assert schedule.alpha_bar[0] > .9                    # its own copy


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="kind: got 'EulerDiscreteScheduler', expected one of DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler"):
        to_scheduler(cosine_schedule(), "EulerDiscreteScheduler")


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_flowers_by_a_scheduler(kind):
    "Two sunflowers, guided, from the noise of the pipeline: DDIM with eta 0, and the others, to 1e-3."
    pipe = Pipeline.load("flowers", "cpu")
    label, rng = pipe.labels("sunflower", 2), dice(1, slice(0, 2), 2)
    x = pipe.noise(rng)
    raw = lambda x, t: guided_raw(pipe.denoiser, x, t, label, pipe.denoiser.network.null(2), scale=3.)
    *_, (_, theirs) = follow(to_scheduler(pipe, kind), raw, x, 10, rng)
    ours = pipe("sunflower", n=2, seed=1, steps=10, sampler=OURS[kind])
    torch.testing.assert_close(theirs.clamp(-1, 1), ours, rtol=0, atol=1e-3)
    *_, other = samplers[OURS[kind]](guide(pipe.denoiser, label, scale=4.), x, pipe.schedule, 10, rng=dice(2, slice(0, 2), 2))
    assert (other.x - ours).abs().max() > .05
