"""Diffusion of pixels or of latents, at 64x64 and equal time: the table of chapter 10.

    python benchmarks/pixel_or_latent.py --minutes 10                           # all of them, one after the other
    python benchmarks/pixel_or_latent.py --minutes 10 --only latent24

Each kind trains from random weights on *fit*, class-conditional, for as long, pixels in batches of 32, so that they get enough steps, latents in batches of 64; then draws 1,020 pictures, 10 of each class (20 steps of DPM-Solver++(2M), w = 2),
whose KID-Lite0 against 2,048 pictures of *fit* and whose classes by the judge are told. The time that the VAE took is not counted: it serves every model after it.
A line for each kind in nbs/measured/10_pixel_or_latent.csv, others are left as they are; a run that was stopped is gone on with.

    python benchmarks/pixel_or_latent.py --speed

is a run of its own, in which all kinds take turns: pictures a second in training, the memory that training needs, and the seconds that 16 pictures take.
Its lines go to nbs/measured/10_speed.csv, or beside --out.
"""
import argparse, time
from pathlib import Path

import tables
import torch
from lite0 import features
from memory import kept
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from zerodiff.attention import DiT
from zerodiff.conditioning import ClassConditional
from zerodiff.data import flowers102, make_grid, save_image
from zerodiff.judge import Judge, agreement
from zerodiff.latent import latents_of
from zerodiff.metrics import kid
from zerodiff.pipeline import Pipeline
from zerodiff.schedule import cosine_schedule
from zerodiff.training import Denoiser, Trainer, averaged, load_network
from zerodiff.unet import UNet
from zerodiff.vae import VAE

UNETS = dict(pixel=dict(channels=128, multipliers=(1, 2, 2), patch=4)) | {f"latent{r}": dict(channels=112, multipliers=(1, 2), in_channels=192 // r) for r in (12, 24, 48)}
KINDS = [*UNETS, "transformer24"]
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--minutes", type=float, default=10)
p.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
p.add_argument("--speed", action="store_true", help="time them, and train nothing")
p.add_argument("--lr", type=float, default=1e-3)
p.add_argument("--scale", type=float, default=2.)
p.add_argument("--runs", type=Path, default=Path("runs/pixel_or_latent"))
p.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "nbs" / "measured" / "10_pixel_or_latent.csv")
args = p.parse_args()
fit = flowers102(split="fit", size=64)


def network(kind):
    "The network of a kind, as the class-conditional models of the chapters have it."
    torch.manual_seed(0)
    inner = UNet(blocks=1, cond_dim=256, **UNETS[kind]) if kind in UNETS else DiT(192, 4, patch=1, cond_dim=256, in_channels=8)
    return ClassConditional(inner, len(fit.classes))


def prepared(kind):
    "The trainer of a kind, at its beginning or where it was stopped."
    folder, data, latent = args.runs / kind, fit, {}
    if kind != "pixel":
        name = "vae" + kind[-2:]
        data, space = latents_of(load_network(name, VAE), fit, name, folder=args.runs)
        latent = dict(latent=space.about)
    options = dict(minutes=args.minutes, log_every=100)
    if (folder / "checkpoint.safetensors").exists(): return Trainer.resume(folder / "checkpoint.safetensors", data, **options)
    denoiser = Denoiser(network(kind), cosine_schedule(), "v", clip=None if latent else 1.)
    denoiser.info = dict(size=64, classes=list(fit.classes), seed=0, data="flowers102", split="fit", **latent)
    return Trainer(denoiser, data, folder, batch=64 if latent else 32, lr=args.lr, warmup=200, ema=.999, seed=0, **options)


def trained(kind):
    "The denoiser after its minutes, and how many pictures it saw a second."
    trainer = prepared(kind)
    if trainer.progress < 1: trainer.fit()
    return averaged(trainer), trainer.step * trainer.recipe.batch / trainer.elapsed


def line(kind, reference):
    "What is told of a kind."
    denoiser, rate = trained(kind)
    pipe = Pipeline(denoiser)
    with FlopCounterMode(display=False) as counter, torch.no_grad(): denoiser.raw(pipe.noise([torch.Generator()]), 500, torch.tensor([0]))
    drawn, labels = pipe(range(102), n=10, steps=20, scale=args.scale, progress=True, batch=102), torch.arange(102).repeat_interleave(10)
    save_image(make_grid(drawn[::10], 17), args.runs / f"{kind}.png")
    felt = features(drawn)                           # of the size that the judge takes, so it can name them by these
    (distance, error), named = kid(reference, felt), agreement(judge.named(felt), labels)
    return dict(kind=kind, weights=f"{sum(v.numel() for v in denoiser.network.parameters()) / 1e6:.1f}", gflop=f"{counter.get_total_flops() / 1e9:.3f}",
                minutes=f"{args.minutes:g}", pictures=round(rate * 60 * args.minutes), kid=f"{distance:.4f}", kid_error=f"{error:.4f}",
                top1=f"{named['top1']:.4f}", top5=f"{named['top5']:.4f}")


def once(f):
    "Seconds that a call takes."
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def speed(kinds, turns=12):
    "Pictures a second in training and seconds for 16 pictures (decoder included), the medians of turns taken one after the other; and the memory of a step."
    runs = {kind: prepared(kind) for kind in kinds}
    pipes = {kind: Pipeline(averaged(run)) for kind, run in runs.items()}
    steps, draws = ({kind: [] for kind in kinds} for _ in range(2))
    for turn in tqdm(range(turns), "turns", disable=None):
        for kind in kinds:
            steps[kind].append(once(runs[kind].train_step))
            if turn % 3 == 0: draws[kind].append(once(lambda: pipes[kind]("rose", n=16, steps=20, scale=args.scale)))
    middle = lambda v: sorted(v)[len(v) // 2]
    return [dict(kind=kind, batch=runs[kind].recipe.batch, rate=f"{runs[kind].recipe.batch / middle(steps[kind]):.0f}", seconds16=f"{middle(draws[kind]):.2f}",
                 megabytes=f"{memory(runs[kind]):.1f}") for kind in kinds]


def memory(run):
    "Megabytes that a picture of a training step makes autograd keep."
    x, label, t, _ = run.batches.draw(0)
    with torch.autocast("cpu", run.dtype, enabled=run.dtype == torch.bfloat16): return kept(run.network, x, t, label) / len(x)


if args.speed:
    rows = speed(args.only)
    tables.write(args.out.with_name("10_speed.csv") if args.out == p.get_default("out") else args.out.with_stem(args.out.stem + "_speed"), rows)
    for row in rows: print(row)
    raise SystemExit
judge = Judge.load()
reference = features(fit.batch(torch.randperm(len(fit), generator=torch.Generator().manual_seed(0))[:2048])[0])
for kind in args.only:
    found = line(kind, reference)
    tables.write(args.out, sorted([r for r in tables.read(args.out) if r["kind"] != kind] + [found], key=lambda r: KINDS.index(r["kind"])))
    print(found)
