"""Pictures a second in training, against denoising-diffusion-pytorch and diffusers, interleaved in one run.

    python benchmarks/train_throughput.py                                      # two tables: equal parameters, equal FLOPs
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/train_throughput.py --fp32       # as on a laptop
    python benchmarks/train_throughput.py --compile --batch 256                # on a GPU

A step is: noise added, forward, loss, backward, AdamW. Every side runs at whichever of fp32 and bf16 autocast, contiguous and
channels_last it is fastest at (tried first). The figure to read is the ratio; `peak` is the share of the rate at which this machine
multiplies 2048 x 2048 matrices in that precision.
"""
import argparse, statistics, time

import torch
import torch.nn.functional as F

from peers import faster, field, machine, matmul_peak, row, ways
from zerodiff.schedule import cosine_schedule

p = argparse.ArgumentParser()
p.add_argument("--size", type=int, default=32)
p.add_argument("--batch", type=int, default=32)
p.add_argument("--rounds", type=int, default=9)
p.add_argument("--fp32", action="store_true", help="float32 only")
p.add_argument("--compile", action="store_true")
args = p.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
schedule = cosine_schedule()


class Side:
    def __init__(self, racer):
        self.racer, self.name = racer, racer.name
        self.flops = 3 * racer.flops(args.size)              # a backward pass costs about two forward ones
        self.network = racer.network.to(device)
        if args.compile: self.network.compile()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5, fused=True)
        self.times = []

    def step(self):
        x = torch.randn(args.batch, 3, args.size, args.size, device=device)
        t, eps = torch.randint(0, 1000, (args.batch,), device=device), torch.randn_like(x)
        x_t = schedule.add_noise(x, t, eps).to(memory_format=self.layout)
        with torch.autocast(device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = F.mse_loss(self.racer.call(self.network, x_t, t).float(), eps)
        loss.backward()
        self.optimizer.step(); self.optimizer.zero_grad()
        if device == "cuda": torch.cuda.synchronize()

    def timed(self):
        start = time.perf_counter(); self.step()
        return time.perf_counter() - start

    def use(self, dtype, layout):
        self.dtype, self.layout = dtype, layout
        self.network.to(memory_format=layout)

    def choose(self):
        "The fastest precision and layout, by a few steps of each."
        def seconds(way):
            self.use(*way); self.step()
            return min(self.timed() for _ in range(3))
        self.use(*min(ways(args.fp32), key=seconds)); self.step()


def race(equal):
    sides = [Side(r) for r in field(args.size, equal)]
    for s in sides: s.choose()
    for _ in range(args.rounds):
        for s in sides: s.times.append(s.timed())
    peak = {d: matmul_peak(d) for d in {s.dtype for s in sides}}
    print(f"\nEqual {equal}, {args.size}x{args.size}, batch {args.batch}, median of {args.rounds} interleaved steps:\n")
    print("| network | parameters | GFLOP a picture | precision | layout | pictures/s | of matmul peak | zerodiff is faster by |\n|---|---|---|---|---|---|---|---|")
    for s in sides:
        rate = args.batch / statistics.median(s.times)
        print(row(s.racer, s.flops, (s.dtype, s.layout), f"{rate:.1f}", f"{rate * s.flops / peak[s.dtype]:.0%}", faster(sides[0].times, s.times)), flush=True)


torch.manual_seed(0)
print(machine())
for equal in ("parameters", "flops"): race(equal)
