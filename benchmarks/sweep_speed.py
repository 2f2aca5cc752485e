"""Seconds for the film of a guidance sweep, against denoising-diffusion-pytorch and diffusers driven frame by frame, interleaved in one run.

    python benchmarks/sweep_speed.py                              # 41 frames of a grid of 4 x 6, 20 steps
    python benchmarks/sweep_speed.py --frames 4 --steps 5         # a try

Ours is the shipped model through `Pipeline.sweep`, a weight for each sample in one batch. Theirs are networks of as many FLOPs a picture with random
weights, conditional on class, guided as their own pipelines do it: `GaussianDiffusion.sample(classes, cond_scale=w)` of classifier_free_guidance (DDIM,
a call with and a call without the class), and a UNet2DModel with class embeddings under DPMSolverMultistepScheduler, both halves in one batch, as in
DiTPipeline. Each side at the precision and layout it is fastest at. At w = 1 their sample() fails for most batch sizes; that frame is then left out of all.
"""
import argparse, tempfile, time
from pathlib import Path

import torch
from tqdm import tqdm

from peers import Racer, faster, machine, matched, row, ways
from zerodiff.data import make_grid
from zerodiff.film import caption, enlarge, save_film
from zerodiff.pipeline import Pipeline
from zerodiff.training import shipped

CLASSES = ["sunflower", "oxeye daisy", "rose", "stemless gentian", "anthurium", "water lily"]

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--frames", type=int, default=41)
p.add_argument("-n", type=int, default=4, help="pictures of each class (4)")
p.add_argument("--steps", type=int, default=20)
p.add_argument("--chunk", type=int, default=2, help="frames a side makes before it is the next one's turn (2)")
p.add_argument("--fp32", action="store_true", help="float32 only")
args = p.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
values = [w for w in torch.linspace(-10, 10, args.frames).tolist() if w != 1]


def zerodiff_side():
    pipe = Pipeline.load(shipped("flowers"), device)
    racer = Racer("zerodiff", pipe.denoiser.network, lambda n, x, t: n(x, t, torch.zeros_like(t, device=x.device)))
    def film(weights, dtype):
        pipe.dtype = dtype
        return [x for _, x in pipe.sweep("scale", weights, CLASSES, n=args.n, steps=args.steps)]
    return racer, film, pipe


def lucidrains_side(size, goal, labels):
    from denoising_diffusion_pytorch import classifier_free_guidance as theirs
    theirs.tqdm = lambda steps, **k: steps                     # no bar for each frame
    def make(dim):
        net = theirs.Unet(dim=dim, num_classes=102, dim_mults=(1, 2, 4))
        return Racer("denoising-diffusion-pytorch", net, lambda n, x, t: n(x, t, classes=torch.zeros_like(t), cond_drop_prob=0.))
    racer = matched(make, goal, lambda r: r.flops(size))
    model = theirs.GaussianDiffusion(racer.network, image_size=size, timesteps=1000, sampling_timesteps=args.steps).to(device).eval()
    def film(weights, dtype):
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return [model.sample(labels, cond_scale=w) for w in weights]
    return racer, film


def diffusers_side(size, goal, labels):
    from diffusers import DPMSolverMultistepScheduler, UNet2DModel
    def make(width):
        net = UNet2DModel(sample_size=size, block_out_channels=(width, 2 * width, 2 * width), layers_per_block=2, norm_num_groups=8, num_class_embeds=103,
                          down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"))
        return Racer("diffusers", net, lambda n, x, t: n(x, t, class_labels=torch.zeros_like(t)).sample)
    racer = matched(make, goal, lambda r: r.flops(size))
    scheduler, both = DPMSolverMultistepScheduler(timestep_spacing="trailing"), torch.cat([labels, torch.full_like(labels, 102)])
    def frame(w):
        x = torch.randn((len(labels), 3, size, size), device=device)
        scheduler.set_timesteps(args.steps)
        for t in scheduler.timesteps:
            with_class, without = racer.network(torch.cat([x, x]), t, class_labels=both).sample.chunk(2)
            x = scheduler.step(without + w * (with_class - without), t, x).prev_sample
        return x
    def film(weights, dtype):
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16): return [frame(w) for w in weights]
    return racer, film


class Side:
    def __init__(self, racer, film, size):
        self.racer, self.film, self.flops, self.times, self.frames = racer, film, racer.flops(size), [], []
        racer.network.to(device).eval()

    @torch.no_grad()
    def timed(self, weights, way):
        self.racer.network.to(memory_format=way[1])
        start = time.perf_counter()
        frames = self.film(weights, way[0])
        if device == "cuda": torch.cuda.synchronize()
        return time.perf_counter() - start, frames

    def choose(self):
        "The fastest precision and layout, on one frame."
        self.timed(values[:1], ways(args.fp32)[0])
        self.way = min(ways(args.fp32), key=lambda way: min(self.timed(values[:1], way)[0] for _ in range(2)))

    def turn(self, weights):
        seconds, frames = self.timed(weights, self.way)
        self.times.append(seconds)
        self.frames += frames


torch.manual_seed(0)
racer, film, pipe = zerodiff_side()
labels = pipe.labels(CLASSES, args.n).to(device)
sides = [Side(racer, film, pipe.size)]
sides += [Side(*make(pipe.size, sides[0].flops, labels), pipe.size) for make in (lucidrains_side, diffusers_side)]
for side in sides: side.choose()
chunks = [values[i:i + args.chunk] for i in range(0, len(values), args.chunk)]
for chunk in tqdm(chunks, desc="frames", disable=None):
    for side in sides: side.turn(chunk)
for side in sides: assert len(side.frames) == len(values) and all(f.shape == (6 * args.n, 3, pipe.size, pipe.size) for f in side.frames)

start = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    save_film([caption(make_grid(enlarge(x.unflatten(0, (6, args.n)).transpose(0, 1).flatten(0, 1)), 6), f"w = {w:g}") for w, x in zip(values, sides[0].frames)], Path(folder) / "film.mp4")
writing = time.perf_counter() - start

print(machine())
print(f"\n{len(values)} frames of {args.n} x 6 pictures of {pipe.size}x{pipe.size}, {args.steps} steps, in turns of {args.chunk} frames; enlarging, captions and MP4 (ours) take {writing:.1f} s more:\n")
print("| | parameters | GFLOP a call | precision | layout | seconds | zerodiff is faster by (median of turns) |\n|---|---|---|---|---|---|---|")
for s in sides:
    print(row(s.racer, s.flops, s.way, f"{sum(s.times):.1f}", faster(sides[0].times, s.times)))
