"""What a picture costs, by its side: a UNet on pixels, one that folds 4x4 of them first, and one on the latents of an 8x8 VAE. Random weights: cost needs no skill.

    python benchmarks/latent_cost.py

For 64, 128 and 256 pixels, in float32: operations of one call and of the decoder, seconds of a guided step of one picture and of decoding it, and the megabytes that one picture adds to a
training step (what autograd keeps for the backward pass). A line each in nbs/measured/10_cost.csv. Half a minute.
"""
import time
from pathlib import Path

import tables
import torch
from memory import kept
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from zerodiff.conditioning import ClassConditional
from zerodiff.guidance import guide
from zerodiff.latent import LatentSpace, Pixels
from zerodiff.schedule import cosine_schedule
from zerodiff.training import Denoiser
from zerodiff.unet import UNet
from zerodiff.vae import VAE


def denoiser(**options): return Denoiser(ClassConditional(UNet(128, blocks=1, cond_dim=256, **options), 102), cosine_schedule(), "v")


def flops(f, *inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad(): f(*inputs)
    return counter.get_total_flops() / 1e9


def seconds(f, turns=3):
    best = []
    for _ in range(turns):
        start = time.perf_counter()
        with torch.no_grad(): f()
        best.append(time.perf_counter() - start)
    return min(best)


torch.manual_seed(0)
vae = VAE(8).eval().requires_grad_(False)
models = {"pixels": (denoiser(), Pixels()), "pixels, 4x4 folded": (denoiser(patch=4), Pixels()),
          "latents": (denoiser(multipliers=(1, 2), in_channels=8), LatentSpace(vae, torch.zeros(8), torch.ones(8)))}
rows = []
for name, (model, space) in tqdm(models.items(), "kinds", disable=None):
    model.to(memory_format=torch.channels_last)
    for size in (64, 128, 256):
        z, t, label = torch.randn(1, *space.shape(size)), torch.tensor([500]), torch.tensor([0])
        guided = guide(model, label, scale=2.)
        rows.append(dict(kind=name, size=size, gflop=f"{flops(model.network, z, t, label):.3f}", decoder=f"{flops(space.decode, z):.3f}",
                         step=f"{seconds(lambda: guided(z, 500)):.4f}", decode=f"{seconds(lambda: space.decode(z)):.4f}", memory=f"{kept(model.network, z, t, label):.1f}"))
        print(rows[-1])
tables.write(Path(__file__).parent.parent / "nbs" / "measured" / "10_cost.csv", rows)
