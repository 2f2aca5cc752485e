"""Seconds for 16 pictures in 20 network calls, against denoising-diffusion-pytorch and diffusers, interleaved in one run.

    python benchmarks/sample_speed.py
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/sample_speed.py --fp32      # as on a laptop

Random weights, networks of equal FLOPs a picture, each side with its own sampler (ours: dpmpp_2m, theirs: DDIM and DPM-Solver++),
at whichever precision and layout it is fastest at. No guidance on any side.
"""
import argparse, statistics, time

import torch

from peers import faster, field, machine, row, ways
from zerodiff.sampling import sample
from zerodiff.schedule import cosine_schedule
from zerodiff.training import Denoiser

p = argparse.ArgumentParser()
p.add_argument("--size", type=int, default=32)
p.add_argument("-n", type=int, default=16)
p.add_argument("--steps", type=int, default=20)
p.add_argument("--rounds", type=int, default=5)
p.add_argument("--fp32", action="store_true", help="float32 only")
args = p.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
shape = (args.n, 3, args.size, args.size)


def zerodiff_sampler(racer):
    denoiser = Denoiser(racer.network, cosine_schedule(), clip=1.)
    labels = torch.zeros(args.n, dtype=torch.long, device=device)
    return lambda: sample(denoiser.given(labels), shape, denoiser.schedule, args.steps, device=device)


def lucidrains_sampler(racer):
    from denoising_diffusion_pytorch import GaussianDiffusion
    model = GaussianDiffusion(racer.network, image_size=args.size, timesteps=1000, sampling_timesteps=args.steps).to(device)
    return lambda: model.ddim_sample(shape)


def diffusers_sampler(racer):
    from diffusers import DPMSolverMultistepScheduler
    scheduler = DPMSolverMultistepScheduler(timestep_spacing="trailing")
    def run():
        x = torch.randn(shape, device=device)
        scheduler.set_timesteps(args.steps)
        for t in scheduler.timesteps: x = scheduler.step(racer.network(x, t).sample, t, x).prev_sample
        return x
    return run


makers = {"zerodiff": zerodiff_sampler, "denoising-diffusion-pytorch": lucidrains_sampler, "diffusers": diffusers_sampler}


class Side:
    def __init__(self, racer):
        self.racer, self.times = racer, []
        self.flops = racer.flops(args.size)
        racer.network.to(device).eval()
        self.run = makers[racer.name](racer)

    @torch.no_grad()
    def timed(self, dtype, layout):
        self.racer.network.to(memory_format=layout)
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16): self.run()
        if device == "cuda": torch.cuda.synchronize()
        return time.perf_counter() - start

    def choose(self):
        self.timed(*ways(args.fp32)[0])
        self.way = min(ways(args.fp32), key=lambda way: min(self.timed(*way) for _ in range(2)))


torch.manual_seed(0)
sides = [Side(r) for r in field(args.size, "flops")]
for s in sides: s.choose()
for _ in range(args.rounds):
    for s in sides: s.times.append(s.timed(*s.way))
print(machine())
print(f"\n{args.n} pictures of {args.size}x{args.size}, {args.steps} network calls, median of {args.rounds} interleaved runs:\n")
print("| network | parameters | GFLOP a call | precision | layout | seconds | zerodiff is faster by |\n|---|---|---|---|---|---|---|")
for s in sides:
    print(row(s.racer, s.flops, s.way, f"{statistics.median(s.times):.2f}", faster(sides[0].times, s.times)))
