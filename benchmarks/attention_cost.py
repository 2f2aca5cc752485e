"""What attention costs, in which form it should run, and what it is worth at equal time.

    python benchmarks/attention_cost.py                   # cost and rule: about a minute
    python benchmarks/attention_cost.py quality           # networks trained on the garden, for equal time: some 10 minutes of one thread
    python benchmarks/attention_cost.py cost --out .      # one part alone, into another folder

Writes nbs/measured/08_attention.csv: seconds (median of interleaved repeats) and bytes (the peak of what was allocated) of attention by matmul,
softmax and matmul, by torch's fused kernel and by linear attention over N tokens, 4 heads of 32, batch 1, float32, forward.
08_rule.csv: the plain and the fused form at the shapes that networks here have, both types, with and without the backward pass, and what the rule takes.
08_quality.csv: the loss on 512 held garden flowers of networks that had the same time to learn, counted in CPU time of one thread (wall time on a GPU),
turn by turn, so that other load on the machine hits all of them. `_se` is the standard error over pictures of the difference from the first row.
"""
import argparse, math, statistics, time
from pathlib import Path

import tables
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from zerodiff.attention import DiT, fused_pays, linear_attention, plain_attention
from zerodiff.conditioning import ClassConditional
from zerodiff.data import garden
from zerodiff.denoiser import EMA, Batches
from zerodiff.schedule import cosine_schedule
from zerodiff.training import Denoiser, diffusion_loss, pick_device, pick_precision
from zerodiff.unet import UNet

WAYS = dict(plain=plain_attention, fused=F.scaled_dot_product_attention, linear=linear_attention)
SIZES = [2 ** k for k in range(4, 15)]
MOST = dict(plain=4096, fused=8192, linear=16384)                  # beyond these a single call takes seconds or gigabytes
SHAPES = [(64, 16), (16, 64), (64, 64), (4, 256), (16, 256), (64, 256), (1, 1024), (4, 1024), (1, 4096)]    # batch, tokens
ATTENTION = "zerodiff.attention.SelfAttention"
LINEAR = "zerodiff.attention.LinearAttention"
NETWORKS = {
    "UNet": lambda: UNet(32, (1, 2, 2), cond_dim=64),
    "UNet, attention at 8x8": lambda: UNet(32, (1, 2, 2), cond_dim=64, attention=ATTENTION, attention_levels=(2,)),
    "UNet, attention everywhere": lambda: UNet(32, (1, 2, 2), cond_dim=64, attention=ATTENTION, attention_levels=(0, 1, 2)),
    "UNet, linear everywhere": lambda: UNet(32, (1, 2, 2), cond_dim=64, attention=LINEAR, attention_levels=(0, 1, 2)),
    "DiT, 64 tokens": lambda: DiT(128, depth=4, patch=4, cond_dim=64),
    "DiT, 256 tokens": lambda: DiT(96, depth=4, patch=2, cond_dim=64),
}

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("parts", nargs="*", help="cost, rule, quality (default: cost and rule)")
p.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "nbs" / "measured", help="folder of the tables")
p.add_argument("--seconds", type=float, default=45, help="training time of each network and seed in `quality` (45)")
p.add_argument("--seeds", type=int, default=2, help="runs of each network in `quality` (2)")
args = p.parse_args()
if unknown := set(args.parts) - {"cost", "rule", "quality"}: p.error(f"parts: got {', '.join(sorted(unknown))}, expected cost, rule or quality")
device = pick_device()


def write(name, rows):
    tables.write(args.out / f"{name}.csv", rows)
    print(f"{args.out / name}.csv\n")


def seconds(run):
    start = time.perf_counter()
    run()
    if device.type == "cuda": torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(runs, least=5, most=25, budget=.6):
    "The median time of each of `runs` in turns: at least `least` turns, then more until `budget` seconds are spent."
    for run in runs.values(): run()
    times, start = {name: [] for name in runs}, time.perf_counter()
    for turn in range(most):
        if turn >= least and time.perf_counter() - start > budget: break
        for name, run in runs.items(): times[name].append(seconds(run))
    return {name: statistics.median(t) for name, t in times.items()}


def peak(run):
    "The most bytes that `run` held at once, above what was there before."
    if device.type == "cuda":
        torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record: out = run()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        held += e.nbytes()
        most = max(most, held)
    return most


def qkv(batch, n, dtype, grad=False):
    return [torch.randn(batch, 4, n, 32, device=device, dtype=dtype, requires_grad=grad) for _ in range(3)]


def cost():
    rows = []
    for n in tqdm(SIZES, desc="cost"):
        x = qkv(1, n, torch.float32)
        runs = {name: lambda way=way: way(*x) for name, way in WAYS.items() if n <= MOST[name]}
        times = medians(runs)
        for name, run in runs.items(): rows.append(dict(way=name, tokens=n, seconds=f"{times[name]:.3g}", bytes=peak(run)))
    write("08_attention", rows)


def rule():
    rows = []
    cases = [(dtype, grad, *shape) for dtype in (torch.float32, torch.bfloat16) for grad in (False, True) for shape in SHAPES]
    for dtype, grad, batch, n in tqdm(cases, desc="rule"):
        x = qkv(batch, n, dtype, grad)
        def run(way):
            out = way(*x)
            if grad: torch.autograd.grad(out.sum(), x)
        times = medians({name: lambda way=WAYS[name]: run(way) for name in ("plain", "fused")}, budget=.8)
        rows.append(dict(dtype=str(dtype)[6:], backward=int(grad), batch=batch, tokens=n, mib=batch * 4 * n * n * dtype.itemsize / 2 ** 20,
                         plain=f"{times['plain']:.3g}", fused=f"{times['fused']:.3g}", rule="fused" if fused_pays(*x[:2]) else "plain"))
    for r in rows: print(*r.values(), sep="\t")
    right = [min(float(r["plain"]), float(r["fused"])) / float(r[r["rule"]]) for r in rows]
    print(f"the rule takes the faster one, or one within 20 %, in {sum(v > 1 / 1.2 for v in right)} of {len(rows)} cases; at worst {1 / min(right):.1f}x as slow")
    write("08_rule", rows)


class Runner:
    "One network that learns for a given time, some steps at a turn."
    def __init__(self, name, seed, data):
        torch.manual_seed(seed)
        net = ClassConditional(NETWORKS[name](), classes=21).to(device, memory_format=torch.channels_last)
        self.name, self.denoiser, self.dtype = name, Denoiser(net, cosine_schedule(), "v", clip=1.), pick_precision(device)
        self.batches, self.ema = Batches(data, 1000, 32, seed, device=device), EMA(net, .99)
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(.9, .99), weight_decay=.01)
        self.step, self.spent = 0, 0.

    def turn(self, steps=5):
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        start = clock()
        for _ in range(steps):
            rate = 2e-3 * min(1, (self.step + 1) / 50) * .5 * (1 + math.cos(math.pi * min(1, self.spent / args.seconds)))
            self.optimizer.param_groups[0]["lr"] = rate
            x0, cond, t, eps = self.batches.draw(self.step, self.denoiser.network.drop)
            x0, eps = (v.contiguous(memory_format=torch.channels_last) for v in (x0, eps))
            with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                loss = diffusion_loss(self.denoiser, x0, t, eps, cond)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.)
            self.optimizer.step(); self.optimizer.zero_grad()
            self.ema.update(self.step)
            self.step += 1
        if device.type == "cuda": torch.cuda.synchronize()
        self.spent += clock() - start

    @torch.no_grad()
    def held(self, data):
        "The loss (512,) of the averaged weights on held flowers, the same noise for every network."
        for name, weight in self.denoiser.network.named_parameters(): weight.copy_(self.ema.average[name])
        rng, losses = torch.Generator().manual_seed(0), []
        for i in range(0, len(data), 64):
            x0, cond = data.batch(range(i, i + 64))
            t, eps = torch.arange(i, i + 64) * 1000 // len(data), torch.randn(x0.shape, generator=rng)
            for j in range(64):
                pair = (v[j:j + 1].to(device) for v in (x0, t, eps, cond))
                losses.append(diffusion_loss(self.denoiser, *pair, gamma=5.).item())
        return torch.tensor(losses)


def quality():
    if device.type == "cpu": torch.set_num_threads(1)
    train, test = garden(6000, 32, seed=0), garden(512, 32, seed=1)
    losses, steps = {name: [] for name in NETWORKS}, {name: 0 for name in NETWORKS}
    with tqdm(total=round(args.seconds * args.seeds * len(NETWORKS)), desc="quality", unit="s") as bar:
        for seed in range(args.seeds):
            runners = [Runner(name, seed, train) for name in NETWORKS]
            while left := [r for r in runners if r.spent < args.seconds]:
                for r in left:
                    before = r.spent
                    r.turn()
                    bar.update(round(r.spent - before, 2))
            for r in runners:
                losses[r.name].append(r.held(test))
                steps[r.name] += r.step
    base, rows = torch.stack(losses["UNet"]).mean(0), []
    for name, found in losses.items():
        mean = torch.stack(found)
        off, net = mean.mean(0) - base, NETWORKS[name]()
        rows.append(dict(network=name, parameters=sum(v.numel() for v in net.parameters()), steps=steps[name] // args.seeds, seconds=args.seconds, seeds=args.seeds,
                         loss=f"{mean.mean():.5f}", lowest=f"{mean.mean(1).min():.5f}", highest=f"{mean.mean(1).max():.5f}",
                         difference=f"{off.mean():.5f}", difference_se=f"{off.std() / len(off) ** .5:.5f}"))
        print(*rows[-1].values(), sep="\t")
    write("08_quality", rows)


for part in args.parts or ["cost", "rule"]: globals()[part]()
