"""zerodiff against denoising-diffusion-pytorch and diffusers: as much training time on the same flowers, then how good the pictures are and how long they take.

    python benchmarks/race.py --minutes 30 --no-gpu        # two CPU cores, two to three hours; a run that was stopped goes on where it was
    python benchmarks/race.py                              # the same, or where there is a GPU, 5 minutes each and about half an hour in all
    python benchmarks/race.py --out my_race.csv            # leaves race.md alone
    python benchmarks/race.py --minutes 30 --no-gpu --lr 0.001 --runs runs/race_lr --out benchmarks/race_lr.csv     # the peers at our learning rate
    python benchmarks/race.py --report                     # only the table, from what is there

Every side trains from random weights on *fit* of Oxford-102 at 32x32, with mirroring, one after the other, in processes of their own. On a CPU the networks have equal FLOPs a
picture (peers.py) and the peers the settings that their own trainers default to; on a GPU everybody has the network and the settings of their own README. Ours has the
defaults of `zerodiff train`. Each runs in the precision and memory layout in which it is fastest here, tried first (ours: as its Trainer chooses). Then each draws with its averaged weights: at 20 network
calls a picture and at fewer (--calls) with samplers it ships, --n pictures, which are compared with 2,048 of *fit*; and with its default sampler, as far as a peer needs 1,000 calls
for it only --default-n pictures, for their time alone. Calls are counted as the network is called: a guided step makes two.

All goes to --runs, rows to race.csv, the report to race.md, and pictures to race.png.
"""
import argparse, contextlib, functools, json, math, resource, signal, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import peers
import tables
import torch
import torch.nn.functional as F
from lite0 import features
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm
from zerodiff.data import flowers102, make_grid, replacing, save_image
from zerodiff.denoiser import Batches
from zerodiff.judge import Judge, agreement
from zerodiff.metrics import fid, kid
from zerodiff.pipeline import Pipeline, new_denoiser
from zerodiff.training import (Progress, Signals, Team, Trainer, check_finite, file_header, fill, load, mix_seed, pick_precision, run_steps, saved_at_the_end, tensors_in,
                               write_tensors)

CALLS = [20, 10, 6]                                        # of the network for a picture, as far as not told otherwise
SIZE, BATCH, LEAST = 32, 64, 256                           # pixels; pictures drawn at once; of fewer pictures than these no quality is told
OUT = Path(__file__).parent / "race.csv"


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, help="of training for each side (30; on a GPU 5)")
    p.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    p.add_argument("--gpu", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(), help="on a GPU, everybody as in their README (where there is one)")
    p.add_argument("--lr", type=float, help="for both peers, in place of their own: shows how much of a gap is the recipe (then name other --runs and --out)")
    p.add_argument("--n", type=int, default=1024, help="pictures by few steps (1024)")
    p.add_argument("--calls", type=int, nargs="+", default=CALLS, help="of the network for a picture; even numbers, since a guided step makes two (20 10 6)")
    p.add_argument("--default-n", type=int, default=64, help="pictures by a peer's default sampler (64)")
    p.add_argument("--default-steps", type=int, default=1000, help="its steps (1000); with fewer, denoising-diffusion-pytorch changes to DDIM, as its README says")
    p.add_argument("--report", action="store_true")
    p.add_argument("--runs", type=Path, default=Path("runs/race"))
    p.add_argument("--out", type=Path, default=OUT, help="the rows; the report and the pictures go beside it")
    p.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)           # what a process of one side is to do
    args = p.parse_args()
    if args.gpu and not torch.cuda.is_available(): p.error("--gpu: there is none here")
    if any(c < 2 or c % 2 for c in args.calls): p.error(f"--calls: got {args.calls}, expected even numbers")
    if args.minutes is None: args.minutes = 5. if args.gpu else 30.
    args.device = "cuda" if args.gpu else "cpu"
    return args


# The sides

class Zerodiff:
    "Ours, with the defaults of `zerodiff train`. Its Trainer chooses the precision itself, and always takes channels_last."
    name, batch, accumulate, lr, classes = "zerodiff", 32, 1, 1e-3, True

    def __init__(self, args, layout=None): self.args, self.checkpoint = args, args.runs / "zerodiff" / "checkpoint.safetensors"

    @functools.cached_property
    def racer(self): return peers.ours(SIZE)

    def ways(self): return [(pick_precision(self.args.device), torch.channels_last)]

    def prepared(self, way):
        options = dict(minutes=self.args.minutes, device=self.args.device, save_every=60, log_every=100)
        if self.checkpoint.exists(): return Trainer.resume(self.checkpoint, fit(), **options)
        return Trainer(new_denoiser(fit(), seed=0, data="flowers102", split="fit"), fit(), self.checkpoint.parent, batch=self.batch, lr=self.lr, warmup=200, ema=.999, **options)

    @staticmethod
    def draws(args):
        def draw(name, steps, w, note=""): return SimpleNamespace(name=name, says=f"dpmpp_2m, {steps} steps, w = {w:g}{note}", steps=steps, w=w, n=args.n, calls=2 * steps if w != 1 else steps)
        return [draw("default", 20, 3., " (its default)"), *(draw(f"guided-{c}", c // 2, 3.) for c in args.calls), *(draw(f"plain-{c}", c, 1.) for c in args.calls)]

    def drawer(self, draw, way):
        "What is called for each picture of a batch, and the function that draws one: (network, labels -> pictures)."
        pipe = Pipeline(load(self.checkpoint, self.args.device), "bf16" if way[0] == torch.bfloat16 else "fp32")
        return pipe.denoiser.network, lambda labels, start: pipe.draw(labels, len(labels), start, BATCH, draw.steps, sampler="dpmpp_2m", scale=draw.w)


class Peer:
    "A peer: network, loss, optimizer and averaged weights are its own; pictures, clock and checkpoints are those that `run_steps` gives to our own Trainer."
    accumulate, log_every, save_every, preview, classes = 1, 100, 60, None, False

    def __init__(self, args, layout=torch.contiguous_format):
        torch.manual_seed(0)
        self.args, self.team, self.device = args, Team(args.device), args.device
        self.racer = self.sized()
        self.racer.network.to(self.device, memory_format=layout)
        self.dtype, self.layout, self.checkpoint = torch.float32, layout, args.runs / self.key / "checkpoint.safetensors"
        self.step, self.elapsed, self.recent, self.history, self.whole = 0, 0., [], [], True
        self.set_up()
        if args.lr: self.lr = args.lr
        self.batches = Batches(fit(), 1000, self.batch, device=self.device)

    def ways(self): return peers.ways()

    def sized(self):
        "The network: the README's on a GPU, else as many FLOPs a picture as ours."
        return self.readme() if self.args.gpu else peers.matched(self.of_width, peers.ours(SIZE).flops(SIZE), lambda racer: racer.flops(SIZE))

    @property
    def progress(self): return self.elapsed / (60 * self.args.minutes)

    def rate(self): return 1.

    def train_step(self):
        "A step of the optimizer, as the peer's own training loop takes it; returns the loss."
        total = 0.
        for part in range(self.accumulate):
            x, labels, *_ = self.batches.draw(self.step * self.accumulate + part, lambda labels, generator: labels)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                loss = self.loss(x.to(memory_format=self.layout), labels) / self.accumulate
            loss.backward()
            total += loss.item()
        check_finite(total, float(nn.utils.clip_grad_norm_(self.model.parameters(), 1.)), self.step)
        for group in self.optimizer.param_groups: group["lr"] = self.lr * self.rate()
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average()
        self.step, self.whole = self.step + 1, True
        return total

    def prepared(self, way):
        self.dtype = way[0]
        if self.checkpoint.exists(): self.restore()
        torch.manual_seed(mix_seed(0, self.step))
        return self

    def fit(self):
        with Signals() as signals, Progress(self) as progress, saved_at_the_end(self): stop = run_steps(self, signals, progress)
        if stop or signals.came: signals.stop()

    def log(self):
        self.history.append((self.step, self.elapsed, sum(self.recent) / len(self.recent)))
        self.recent = []

    def save(self):
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()} | {f"ema.{k}": v for k, v in self.averages().items()}
        for i, p in enumerate(self.model.parameters()): tensors |= {f"optimizer.{i}.{k}": v for k, v in self.optimizer.state[p].items()}
        write_tensors(self.checkpoint, tensors, json.dumps(dict(format=1, info=dict(step=self.step, elapsed=self.elapsed, history=self.history))))

    def restore(self):
        info, path = file_header(self.checkpoint, ("info",))["info"], self.checkpoint
        self.step, self.elapsed, self.history = info["step"], info["elapsed"], info["history"]
        fill(self.model, tensors_in(path, "model."), path)
        self.take(tensors_in(path, "ema."))
        for i, p in enumerate(self.model.parameters() if self.step else ()):
            state = tensors_in(path, f"optimizer.{i}.")
            self.optimizer.state[p] = {k: v if k == "step" else torch.empty_like(p).copy_(v) for k, v in state.items()}


class Lucidrains(Peer):
    "denoising-diffusion-pytorch: its GaussianDiffusion says the loss, its Trainer's defaults (on a GPU those of its README) the rest. It takes no classes."
    key, name, of_width = "lucidrains", "denoising-diffusion-pytorch", staticmethod(peers.lucidrains)

    def readme(self):
        from denoising_diffusion_pytorch import Unet
        net = Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=True)
        for part in net.modules():                             # on newer GPUs it allows the flash kernel alone, which takes no float32; here, all
            if getattr(part, "cuda_config", None): part.cuda_config = part.cpu_config
        return peers.Racer(self.name, net, lambda n, x, t: n(x, t))

    def set_up(self):
        from denoising_diffusion_pytorch import GaussianDiffusion
        from ema_pytorch import EMA
        self.batch, self.accumulate, self.lr = (32, 2, 8e-5) if self.args.gpu else (16, 1, 1e-4)
        self.model = GaussianDiffusion(self.racer.network, image_size=SIZE).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.lr, betas=(.9, .99))
        self.ema = EMA(self.model, beta=.995, update_every=10, include_online_model=False).to(self.device)

    def loss(self, x, labels): return self.model((x + 1) / 2)
    def average(self): self.ema.update()
    def averages(self): return self.ema.state_dict()
    def take(self, averages): self.ema.load_state_dict(averages)

    @staticmethod
    def draws(args):
        steps = args.default_steps
        return [SimpleNamespace(name="default", says=f"{'DDPM' if steps == 1000 else 'DDIM'}, {steps} steps (its default)", steps=steps, n=args.default_n, calls=steps),
                *(SimpleNamespace(name=f"ddim-{c}", says=f"DDIM, {c} steps", steps=c, n=args.n, calls=c) for c in args.calls)]

    def drawer(self, draw, way):
        from denoising_diffusion_pytorch import denoising_diffusion_pytorch as theirs
        theirs.tqdm = functools.partial(tqdm, leave=False, disable=None)
        model = self.ema.ema_model.eval()
        model.model.to(memory_format=way[1])
        model.sampling_timesteps, model.is_ddim_sampling = draw.steps, draw.steps < 1000
        return model.model, lambda labels, start: 2 * model.sample(len(labels)) - 1


class Diffusers(Peer):
    "diffusers, as examples/unconditional_image_generation/train_unconditional.py trains, with the classes that its UNet2DModel can take."
    key, name, lr, batch, warmup, classes = "diffusers", "diffusers", 1e-4, 16, 500, True
    of_width = staticmethod(functools.partial(peers.diffusers, size=SIZE, classes=102))

    def readme(self):
        from diffusers import UNet2DModel
        net = UNet2DModel(sample_size=SIZE, layers_per_block=2, block_out_channels=(128, 128, 256, 256, 512, 512), num_class_embeds=102,
                          down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4)
        return peers.Racer(self.name, net, lambda n, x, t: n(x, t, torch.zeros_like(t)).sample)

    def set_up(self):
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel
        self.model, self.scheduler = self.racer.network, DDPMScheduler(num_train_timesteps=1000)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr, betas=(.95, .999), weight_decay=1e-6, eps=1e-8)
        self.ema = EMAModel(self.model.parameters(), decay=.9999, use_ema_warmup=True, inv_gamma=1., power=3 / 4)

    def rate(self):
        "Its cosine with 500 steps of warm-up, over as many steps as the minutes are going to hold."
        if self.step < self.warmup: return self.step / self.warmup
        total = self.step / max(self.progress, 1e-9)
        return .5 * (1 + math.cos(math.pi * min(1, (self.step - self.warmup) / max(1, total - self.warmup))))

    def loss(self, x, labels):
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),), device=x.device)
        return F.mse_loss(self.model(self.scheduler.add_noise(x, noise, t), t, labels).sample.float(), noise)

    def average(self): self.ema.step(self.model.parameters())
    def averages(self): return {str(i): v for i, v in enumerate(self.ema.shadow_params)}
    def take(self, averages):
        for i, v in enumerate(self.ema.shadow_params): v.copy_(averages[str(i)])
        self.ema.optimization_step = self.step

    @staticmethod
    def draws(args):
        steps = args.default_steps
        return [SimpleNamespace(name="default", says=f"DDPM, {steps} steps (its default)", kind="DDPMScheduler", steps=steps, n=args.default_n, calls=steps),
                *(SimpleNamespace(name=f"{name}-{c}", says=f"{says}, {c} steps", kind=kind, steps=c, n=args.n, calls=c)
                  for name, says, kind in (("dpm", "DPM-Solver++(2M)", "DPMSolverMultistepScheduler"), ("ddim", "DDIM", "DDIMScheduler")) for c in args.calls)]

    def drawer(self, draw, way):
        import diffusers
        network = self.model.to(memory_format=way[1]).eval()
        self.ema.copy_to(network.parameters())
        spacing = {} if draw.name == "default" else dict(timestep_spacing="trailing")       # with few steps, its default leaves out the noisiest
        scheduler = getattr(diffusers, draw.kind).from_config(self.scheduler.config, **spacing)
        def drawn(labels, start):
            scheduler.set_timesteps(draw.steps)
            x, labels = torch.randn(len(labels), 3, SIZE, SIZE, device=self.device), labels.to(self.device)
            for t in scheduler.timesteps: x = scheduler.step(network(x, t, labels).sample.float(), t, x).prev_sample
            return x.clamp(-1, 1)
        return network, drawn


SIDES = {"zerodiff": Zerodiff, "lucidrains": Lucidrains, "diffusers": Diffusers}


# What a user writes for as much: train with mirroring and averaged weights, then 64 pictures

SCRIPTS = {"zerodiff": '''
from zerodiff.data import flowers102, save_image
from zerodiff.pipeline import Pipeline, new_denoiser
from zerodiff.training import Trainer, averaged
flowers = flowers102(split="fit", size=32)
run = Trainer(new_denoiser(flowers), flowers, "runs/flowers", minutes=30).fit()
save_image(Pipeline(averaged(run))(n=64), "flowers.png")
''', "lucidrains": '''
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
from torchvision.utils import save_image
diffusion = GaussianDiffusion(Unet(dim=64, dim_mults=(1, 2, 4)), image_size=32)
trainer = Trainer(diffusion, "flowers-102/jpg", train_num_steps=10000, calculate_fid=False)
trainer.train()
save_image(trainer.ema.ema_model.sample(64), "flowers.png")
''', "diffusers": '''
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from torchvision.datasets import Flowers102
from torchvision.transforms import v2
from torchvision.utils import save_image
transform = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([.5], [.5])])
loader = DataLoader(Flowers102(".", "test", transform), batch_size=16, shuffle=True)
unet = UNet2DModel(sample_size=32, block_out_channels=(24, 48, 48), down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
                   up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), norm_num_groups=8, num_class_embeds=102)
scheduler, epochs = DDPMScheduler(num_train_timesteps=1000), 20
optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(.95, .999), weight_decay=1e-6)
rate = get_cosine_schedule_with_warmup(optimizer, 500, epochs * len(loader))
ema = EMAModel(unet.parameters(), use_ema_warmup=True, power=3 / 4)
for epoch in range(epochs):
    for x, labels in loader:
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(x, noise, t), t, labels).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
ema.copy_to(unet.parameters())
x, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 102, (64,))
scheduler.set_timesteps(1000)
with torch.no_grad():
    for t in scheduler.timesteps: x = scheduler.step(unet(x, t, labels).sample, t, x).prev_sample
save_image(x.clamp(-1, 1) / 2 + .5, "flowers.png")
'''}


def lines(script): return sum(bool(line.strip()) for line in script.splitlines())


# What is measured, and where it is kept

@functools.lru_cache
def fit(): return flowers102(split="fit", size=SIZE)

@functools.lru_cache
def order(): return torch.randperm(len(fit()), generator=torch.Generator().manual_seed(0))       # the first 2,048 are the reference, the next 1,024 the floor

def labels_for(n):
    "As many of each class as in *fit*: the labels of its pictures behind the reference, again from their beginning if there are not enough."
    behind = order()[2048:]
    return fit().labels[behind[torch.arange(n) % len(behind)]]

def note(path, found):
    "Keep `found` as JSON at `path`, written aside and renamed."
    with replacing(path) as aside: aside.write_text(json.dumps(found, indent=1) + "\n")

def read(path): return json.loads(path.read_text()) if path.exists() else None

def wait(device):
    if device == "cuda": torch.cuda.synchronize()

def once(f, device):
    "Seconds that a call takes."
    start = time.perf_counter()
    f()
    wait(device)
    return time.perf_counter() - start

def new_peak(device):
    "Let `peak` count from now on, where the system can."
    if device == "cuda": return torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError): Path("/proc/self/clear_refs").write_text("5")

def peak(device):
    "The most megabytes that this process has held; on a GPU, that its tensors have held there."
    if device == "cuda": return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")                       # ru_maxrss also counts what the parent process held when it started this one
    if status.exists(): return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6

NAMES = {str(v)[6:]: v for v in (torch.float32, torch.bfloat16, torch.contiguous_format, torch.channels_last)}
def named(way): return [str(v)[6:] for v in way]
def unnamed(way): return tuple(NAMES[v] for v in way)


# The stages of a side, each in a process of its own

def fastest(ways, ready, device):
    "The way in which what `ready(way)` returns is fastest, and the seconds it takes: the better of two after one to warm up, unless that was hopeless."
    found = {}
    for way in ways:
        f = ready(way)
        first = once(f, device)
        found[way] = first if found and first > 3 * min(found.values()) else min(once(f, device) for _ in range(2))
    way = min(found, key=found.get)
    return way, found[way]

def try_ways(args, key, n=16):
    "The precision and layout in which a training step, and a call that draws, are fastest; and how long a call takes for a picture."
    side = SIDES[key](args)
    ways, network = side.ways(), side.racer.network.to(args.device)
    x, t = torch.randn(n, 3, SIZE, SIZE, device=args.device), torch.zeros(n, dtype=torch.long, device=args.device)
    def step(way):
        side.dtype, side.layout = way
        network.to(memory_format=way[1])
        return side.train_step
    def call(way):
        network.to(memory_format=way[1])
        @torch.no_grad()
        def f():
            with torch.autocast(args.device, torch.bfloat16, enabled=way[0] == torch.bfloat16): side.racer.call(network, x, t)
        return f
    train = ways[0] if len(ways) == 1 else fastest(ways, step, args.device)[0]
    network.eval()
    draw, seconds = fastest(ways, call, args.device)
    note(args.runs / key / "ways.json", dict(train=named(train), draw=named(draw), call=seconds / n))

def train(args, key):
    "All the minutes, and what they cost."
    way = unnamed(read(args.runs / key / "ways.json")["train"])
    fit(), order()
    new_peak(args.device)
    start = peak(args.device)
    side = SIDES[key](args, way[1])
    run = side.prepared(way)
    if run.progress < 1: run.fit()
    megabytes, batch = peak(args.device) - start, side.batch * side.accumulate
    note(args.runs / key / "train.json", dict(
        name=side.name, parameters=side.racer.parameters, gflop=side.racer.flops(SIZE) / 1e9, precision=str(run.dtype)[6:], layout=named(way)[1], batch=batch, lr=side.lr,
        steps=run.step, pictures=run.step * batch, seconds=run.elapsed, rate=run.step * batch / run.elapsed, megabytes=megabytes, lines=lines(SCRIPTS[key]), machine=peers.machine()))

@torch.no_grad()
def draw_all(args, key):
    "The pictures of every sampler, with the seconds and the calls that they took."
    folder, way = args.runs / key, unnamed(read(args.runs / key / "ways.json")["draw"])
    for draw in SIDES[key].draws(args):
        if drawn_already(folder, draw): continue
        side = SIDES[key](args)
        if key != "zerodiff": side.restore()
        network, drawn = side.drawer(draw, way)
        calls, labels, done, seconds = [], labels_for(draw.n), [], 0.
        hook = network.register_forward_hook(lambda module, inputs, out: calls.append(len(out.sample if hasattr(out, "sample") else out)))
        for start in tqdm(range(0, draw.n, BATCH), f"{side.name}: {draw.says}", disable=None):
            torch.manual_seed(mix_seed(0, start))
            some = labels[start:start + BATCH]
            with torch.autocast(args.device, torch.bfloat16, enabled=way[0] == torch.bfloat16):
                seconds += once(lambda: done.append(drawn(some, start).float().cpu()), args.device)
        hook.remove()
        write_tensors(folder / f"draw-{draw.name}.safetensors", {"pictures": torch.cat(done), "labels": labels}, "{}")
        note(folder / f"draw-{draw.name}.json", dict(says=draw.says, n=draw.n, steps=draw.steps, calls=sum(calls) / draw.n, seconds64=seconds / draw.n * 64,
                                                     precision=named(way)[0], layout=named(way)[1]))

def drawn_already(folder, draw):
    found = read(folder / f"draw-{draw.name}.json")
    return found is not None and (found["n"], found["says"]) == (draw.n, draw.says)

STAGES = {"ways": try_ways, "train": train, "draw": draw_all}


# All of it

def finished(args, key, stage):
    folder = args.runs / key
    if stage == "draw": return all(drawn_already(folder, draw) for draw in SIDES[key].draws(args))
    return (folder / f"{stage}.json").exists()

def begin(args, key, stage):
    "Run a stage of a side in a process of its own, if it is not done yet. Ctrl-C and SIGTERM reach that process, and are waited for: it saves."
    if finished(args, key, stage): return
    (args.runs / key).mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--only", key, "--stage", stage])
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try: code = child.wait()
    except KeyboardInterrupt: code = child.wait() or 130
    finally: signal.signal(signal.SIGTERM, before)
    if code: raise SystemExit(f"{key}: {stage} ended with {code}; the same command goes on from its last checkpoint")

def same_race(args):
    "Stop where --runs holds a race of other rules."
    rules, path = dict(minutes=args.minutes, gpu=args.gpu, lr=args.lr), args.runs / "rules.json"
    args.runs.mkdir(parents=True, exist_ok=True)
    if path.exists() and read(path) != rules: raise SystemExit(f"--runs: {args.runs} holds a race with {read(path)}, this one has {rules}; name another folder")
    note(path, rules)

def outlook(args):
    "About how long what is left will take."
    left = 0.
    for key in args.only:
        draws, call = SIDES[key].draws(args), read(args.runs / key / "ways.json")["call"]
        training = 0 if finished(args, key, "train") else 60 * args.minutes
        drawing = sum(d.n * d.calls * call for d in draws if not drawn_already(args.runs / key, d))
        judging = sum(.04 * d.n for d in draws if d.n >= LEAST)
        left += training + drawing + judging + 60
        print(f"{SIDES[key].name}: {training / 60:.0f} min of training, {drawing / 60:.0f} min of drawing, {judging / 60:.0f} min to judge them")
    print(f"Together about {left / 60 + 2:.0f} minutes", flush=True)


# The report

def quality(x, labels, reference, judge):
    "KID and FID of pictures against the features `reference`, and how often the judge names their class (None: there was none)."
    felt = features(x)
    distance, error = kid(reference, felt)
    found = dict(kid=f"{distance:.4f}", kid_error=f"{error:.4f}", fid=f"{fid(reference, felt):.1f}")
    if labels is None: return found
    told = agreement(judge.named(felt), labels)
    return found | dict(top1=f"{told['top1']:.4f}", top5=f"{told['top5']:.4f}")

def measured(args):
    "A row for every draw there is, and one for each floor."
    reference, judge, rows = features(fit().batch(order()[:2048])[0]), Judge.load(), []
    for key in SIDES:
        about = read(args.runs / key / "train.json")
        if about is None: continue
        about = dict(side=about.pop("name"), minutes=about.pop("seconds") / 60) | about
        for draw in SIDES[key].draws(args):
            found = read(args.runs / key / f"draw-{draw.name}.json")
            if found is None: continue
            kept = load_file(args.runs / key / f"draw-{draw.name}.safetensors")
            row = dict(about, sampler=found["says"], n=found["n"], calls=f"{found['calls']:g}", seconds64=f"{found['seconds64']:.2f}")
            rows.append(row | (quality(kept["pictures"], kept["labels"] if SIDES[key].classes else None, reference, judge) if found["n"] >= LEAST else {}))
    held = flowers102(split="held", size=SIZE)
    floors = (("photographs of fit", fit().batch(order()[2048:3072])[0], None), ("photographs of held", *held.batch(range(len(held)))))
    return rows + [dict(side=name, n=len(x)) | quality(x, labels, reference, judge) for name, x, labels in floors]

def told(row):
    "The cells of a row about quality."
    share = f"{float(row['top1']):.1%}" if "top1" in row else ""
    return f"{row['kid']} ± {row['kid_error']}" if "kid" in row else "", row.get("fid", ""), share

def written(args, rows, machine):
    "The report as Markdown."
    sides = list({row["side"]: row for row in rows if "sampler" in row}.values())
    training = tables.table(["side", "parameters", "GFLOP a picture", "precision", "layout", "batch", "learning rate", "steps", "pictures", "pictures/s", "memory, MB", "lines to write"],
                     [[r["side"], f"{r['parameters'] / 1e6:.1f} M", f"{r['gflop']:.2f}", r["precision"], r["layout"].removesuffix("_format"), str(r["batch"]), f"{r['lr']:g}", f"{r['steps']:,}", f"{r['pictures']:,}",
                       f"{r['rate']:.0f}", f"{r['megabytes']:,.0f}", str(r["lines"])] for r in sides])
    drawing = tables.table(["side", "sampler", "network calls a picture", "seconds for 64", "pictures", "KID-Lite0", "FID-Lite0", "class named"],
                    [[r["side"], r.get("sampler", ""), r.get("calls", ""), r.get("seconds64", ""), f"{r['n']:,}", *told(r)] for r in rows])
    where = "each with the network and settings of its own README" if args.gpu else "with networks of about equal FLOPs a picture"
    rate = f"The peers' learning rate is {args.lr:g} here, in place of their own, with which they race in [race.md](race.md). " if args.lr else "Their learning rates are meant for longer trainings than this; with ours they race in [race_lr.md](race_lr.md). "
    return f"""# A race: the same flowers, the same minutes{', the same learning rate' if args.lr else ''}

`python benchmarks/race.py --minutes {args.minutes:g}{' --gpu' if args.gpu else ' --no-gpu'}{f' --lr {args.lr:g}' if args.lr else ''}{' --calls ' + ' '.join(map(str, args.calls)) if args.calls != CALLS else ''}{f' --default-n {args.default_n}' if args.default_n != 64 else ''}{'' if args.out == OUT else f' --runs {args.runs} --out {args.out}'}`, on {machine}.

Three ways to train a diffusion model, from random weights, on *fit* of Oxford-102 at {SIZE}x{SIZE}, for {args.minutes:g} minutes each, {where}. One run a side with one seed, so no error says how much another training would differ. zerodiff has the defaults of `zerodiff train`.
`denoising-diffusion-pytorch` {version("denoising-diffusion-pytorch")} has its own `GaussianDiffusion` (v-prediction, sigmoid schedule), `Unet` and EMA, with {"the settings of its README" if args.gpu else "the defaults of its `Trainer`"};
it takes no classes (the package has a model that does, `classifier_free_guidance`, but its `Trainer` cannot train that). `diffusers` {version("diffusers")} is trained as its example `train_unconditional.py` trains (noise prediction, linear schedule, EMA with warm-up), with the classes that `UNet2DModel` can
take; its cosine schedule of the learning rate is stretched over the minutes, and when it draws in few steps, they have the spacing it calls "trailing" (its default would leave out the noisiest). {rate}All flip pictures at random. The peers run in the precision and memory layout in which they are fastest here, ours as its `Trainer` chooses.

{training}

Memory is the most that the process held while training beyond what it held with the pictures loaded{" (on the GPU, the tensors' own)" if args.gpu else ""}. The lines are those of the scripts in `race.py` that do as much: train with
mirroring and averaged weights, then draw 64 pictures (with networks of other widths than here; the lines are as many).

{drawing}

KID (± its jackknife error) and FID compare EfficientNet-Lite0 features with those of 2,048 pictures of *fit*; less is better, and the photographs at the end show how little is possible. Those of *fit*
are not among the 2,048; *held* has 841, and FID grows as pictures get fewer. "Class named" is how often the judge's first guess is the class that was asked for; a
side without classes has none, and for *fit* none is told, since the judge was trained on it. (Three of the 841 are named right here and not in flowers.md, where the same photographs were shrunk by another routine: some values differ by 1 of 255.) The classes asked for are as frequent as in *fit*. A guided step calls
the network twice, so zerodiff's default, 20 steps, makes 40 calls; beside it stand {', '.join(map(str, args.calls))} calls, guided (half as many steps) and without guidance. Samplers that need
1,000 calls draw too few pictures to judge; they are there for their time.

![Sixty-four pictures of each]({args.out.with_suffix('.png').name})

From left to right: {', '.join(f"{name} ({says})" for name, says, _ in gallery(args, rows))}: of each the sampler of {max(args.calls)} calls with the lowest KID.
"""

def gallery(args, rows):
    "Of each side (name, sampler, 64 pictures), of that sampler of the most --calls that has the lowest KID."
    found = []
    for key, side in SIDES.items():
        best = min((r for r in rows if r["side"] == side.name and "kid" in r and float(r["calls"]) == max(args.calls)), key=lambda r: float(r["kid"]), default=None)
        if best is None: continue
        draw = next(d for d in side.draws(args) if d.says == best["sampler"])
        found.append((side.name, draw.says, load_file(args.runs / key / f"draw-{draw.name}.safetensors")["pictures"][:64]))
    return found

def report(args):
    rows = measured(args)
    names = list(dict.fromkeys(name for row in rows for name in row if name != "machine"))
    tables.write(args.out, [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items() if k != "machine"} for row in rows], names)
    grids = [F.pad(make_grid(x, 8), (0, 8), value=1.) for _, _, x in gallery(args, rows)]
    if grids: save_image(torch.cat([F.pad(g, (0, 0, 0, max(o.shape[1] for o in grids) - g.shape[1]), value=1.) for g in grids], 2)[:, :, :-8], args.out.with_suffix(".png"))
    text = written(args, rows, next((row["machine"] for row in rows if "machine" in row), peers.machine()))
    page = args.out.with_suffix(".md")
    with replacing(page) as aside: aside.write_text(text + said_before(page))
    print(text)
    if said_before(page): print(f"What was written under 'What it says' in {page} was left as it is: does it still hold?")


WORDS = "\n## What it says\n"

def said_before(page):
    "What somebody wrote about the figures, at the end of the page: a new report leaves it."
    _, begin, words = page.read_text().partition(WORDS) if page.exists() else ("", "", "")
    return begin + words


def main(args):
    if args.stage: return STAGES[args.stage](args, *args.only)
    same_race(args)
    if not args.report:
        print(f"{len(args.only)} x {args.minutes:g} minutes of training; first, what is fastest here (some minutes)", flush=True)
        for key in args.only: begin(args, key, "ways")
        outlook(args)
        for stage in ("train", "draw"):
            for key in args.only: begin(args, key, stage)
    report(args)


if __name__ == "__main__": main(arguments())
