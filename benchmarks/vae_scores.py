"""Rate and distortion on *held*: the shipped VAEs beside PCA with as many numbers; the table of chapter 09.

    python benchmarks/vae_scores.py

PSNR (dB), SSIM (torchmetrics), one minus the cosine of EfficientNet-Lite0's features, and KID-Lite0 of the reconstructions against 2,048 pictures of *fit*, beside
what the photographs themselves have. PCA is fitted on *fit* and its mirror images, as the VAEs were trained. Goes to nbs/measured/09_rate.csv. Five minutes.
"""
import math
from pathlib import Path

import tables
import torch
from lite0 import apart, features
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from tqdm import tqdm
from zerodiff.data import flowers102
from zerodiff.metrics import kid
from zerodiff.training import load_network
from zerodiff.vae import VAE, psnr

fit, held = flowers102(split="fit", size=64), flowers102(split="held", size=64)
x, _ = held.batch(range(len(held)))
some, _ = fit.batch(torch.randperm(len(fit), generator=torch.Generator().manual_seed(0))[:2048])
seen, reference = features(x), features(some)


def row(name, numbers, again, bits=""):
    "One line of the table, for reconstructions `again` of the held pictures x."
    again = again.clamp(-1, 1)
    felt = features(again)
    distance, error = kid(reference, felt)
    return dict(name=name, numbers=numbers, ratio=f"{x[0].numel() / numbers:g}", psnr=f"{psnr(again, x).mean():.2f}", ssim=f"{ssim(again, x, data_range=2.):.3f}",
                features=f"{apart(felt, seen).mean():.4f}", kid=f"{distance:.4f}", kid_error=f"{error:.4f}", bits=bits)


@torch.no_grad()
def through(vae):
    "The held pictures by the mean of their Gaussians, and how many bits a picture the Gaussians carry."
    parts = [vae.encode(p) for p in x.split(64)]
    return torch.cat([vae.decode(p.mean) for p in parts]), torch.cat([p.kl() for p in parts]).mean().item() / math.log(2)


def axes(n):
    "Mean and the n first principal axes of *fit* and its mirror images."
    flat = fit.batch(range(len(fit)))[0]
    flat = torch.cat([flat, flat.flip(-1)]).flatten(1)
    mean = flat.mean(0)
    torch.manual_seed(0)
    return mean, torch.svd_lowrank(flat - mean, n + 64, niter=6)[2][:, :n]


numbers = dict(vae48=256, vae24=512, vae12=1024)
distance, error = kid(reference, seen)
rows = [dict(name="photographs", numbers=x[0].numel(), ratio=1, psnr="", ssim=1, features=0, kid=f"{distance:.4f}", kid_error=f"{error:.4f}", bits="")]
rows.append(dict(name="another photograph", numbers="", ratio="", psnr=f"{psnr(x.roll(len(x) // 2, 0), x).mean():.2f}", ssim=f"{ssim(x.roll(len(x) // 2, 0), x, data_range=2.):.3f}", features=f"{apart(seen.roll(len(x) // 2, 0), seen).mean():.4f}", kid="", kid_error="", bits=""))
mean, pca = axes(max(numbers.values()))
for name, n in tqdm(numbers.items(), "VAEs", leave=False, disable=None):
    again, bits = through(load_network(name, VAE, "cpu"))
    rows.append(row(name, n, again, f"{bits:.0f}"))
    rows.append(row("PCA", n, ((x.flatten(1) - mean) @ pca[:, :n] @ pca[:, :n].T + mean).view_as(x)))
tables.write(Path(__file__).parent.parent / "nbs" / "measured" / "09_rate.csv", rows)
print("|", " | ".join(rows[0]), "|\n|" + "---|" * len(rows[0]))
for r in rows: print("|", " | ".join(map(str, r.values())), "|")
print(f"{len(x)} held pictures")
