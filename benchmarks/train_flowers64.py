"""The 64x64 flowers, driven by classes and by vectors of pictures (and so by sentences): 100 minutes of two CPU cores.

    python benchmarks/train_flowers64.py --minutes 100 --out runs/flowers64
    python benchmarks/train_flowers64.py --out runs/flowers64 --resume

Begins with the shipped 32x32 weights: a patch of 4x4 pixels at 64x64 covers what one of 2x2 did at 32x32, so every layer but the first and
the last is taken over, and those two are spread over the finer pixels; a picture costs as many operations as before. Each picture of *fit* comes with its
class and its vector by FlowerCLIP. Sentences are never seen.
"""
import argparse, shlex, sys
from pathlib import Path

import torch
from torch import Tensor, nn
from zerodiff.clip import digest, load_clip, vectors_of
from zerodiff.data import flowers102
from zerodiff.guidance import guide
from zerodiff.sampling import sample
from zerodiff.schedule import cosine_schedule
from zerodiff.text import ClassOrVector
from zerodiff.training import Denoiser, Trainer, load, shipped
from zerodiff.unet import UNet

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--minutes", type=float, default=100)
p.add_argument("--out", type=Path, default=Path("runs/flowers64"))
p.add_argument("--lr", type=float, default=7e-4)
p.add_argument("--batch", type=int, default=32)
p.add_argument("--ema", type=float, default=.9993)
p.add_argument("--scratch", action="store_true", help="begin with random weights")
p.add_argument("--resume", action="store_true")
args = p.parse_args()
size, patch = 64, 4


def finer(w: Tensor, q: int, to: torch.Size) -> Tensor:
    "Weights whose first (last layer) or second (first layer) side is 3 x 2 x 2 pixels, spread over 3 x 2q x 2q of them."
    if w.shape[0] == 12: return w.view(3, 2, 2, *w.shape[1:]).repeat_interleave(q, 1).repeat_interleave(q, 2).reshape(to)
    w = w.view(len(w), 3, 2, 2, *w.shape[2:]).repeat_interleave(q, 2).repeat_interleave(q, 3)
    return (w / q ** 2).reshape(to)


def begun(network: ClassOrVector) -> ClassOrVector:
    "The network with the shipped weights in it, wherever they fit."
    mine = network.state_dict()
    for name, w in load(shipped("flowers")).network.state_dict().items():
        mine[name].copy_(w if w.shape == mine[name].shape else finer(w, patch // 2, mine[name].shape))
    return network


def preview(denoiser: Denoiser) -> Tensor:
    "Eight classes by their names, and eight pictures of *fit* by their vectors."
    by_class = denoiser.network.condition(torch.tensor([53, 73, 50, 8, 77, 70, 0, 10]))
    by_vector = cond[::900][:8].clone()
    by_vector[:, -1] = -1
    with torch.autocast("cpu", torch.bfloat16): return sample(guide(denoiser, torch.cat([by_class, by_vector]), scale=3.), (16, 3, size, size), denoiser.schedule, 20)


fit, clip = flowers102(split="fit", size=size), load_clip()
torch.manual_seed(0)
network = ClassOrVector(UNet(128, (1, 2, 2), 1, cond_dim=256, patch=patch), len(fit.classes), clip.dim, memory=len(fit))
nn.init.normal_(network.project.weight, std=.02)
network.memory.copy_(vectors_of(clip, fit))
cond = fit.labels = network.condition(fit.labels, network.memory)
options = dict(preview=preview, preview_every=1000, save_every=240)
if args.resume: trainer = Trainer.resume(args.out / "checkpoint.safetensors", fit, args.out, minutes=args.minutes, **options)
else:
    denoiser = Denoiser(network if args.scratch else begun(network), cosine_schedule(), "v", clip=1.)
    denoiser.info = dict(size=size, classes=list(fit.classes), seed=0, data="flowers102", split="fit", encoder=dict(weights="flowerclip", digest=digest(clip)),
                         begun_with="random weights" if args.scratch else "flowers", command=shlex.join(["python", "benchmarks/train_flowers64.py", *sys.argv[1:]]))
    trainer = Trainer(denoiser, fit, args.out, minutes=args.minutes, batch=args.batch, lr=args.lr, warmup=200, ema=args.ema, seed=0, **options)
trainer.fit()
