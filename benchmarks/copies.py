"""Would a copyist of latents be caught? What `nearer` says of one, against photographs and against photographs that went through the VAE. The table of chapter 12.

    python benchmarks/copies.py                                    # about a quarter of an hour on two CPU cores with AVX2 alone

A model of latents cannot hand out a photograph of its training set: the decoder stands between. So its copies may be farther from the photographs than an unseen photograph is, and a comparison with photographs may acquit it.
Fair is the comparison behind the same decoder: is a sample nearer to the *restored* training pictures than restored unseen ones are? A few copies among poor pictures would not show in that mean, so the tail is told as well: the share of pictures that lie nearer to the restored training set than all but a twentieth of the restored unseen ones, .05 without copying. And beside it the KID against *fit* restored: how far a set is from what the decoder makes of photographs.
Judged are the latent model's samples and three sets with a known answer: *held*,
*held* restored, and two copyists, who decode the latents of *fit* as they are, and moved by a tenth of their spread. Mirror images count as copies. Features are kept in runs/features, rows in nbs/measured/12_copies.csv; nbs/images/12_nearest.png shows the twelve samples that lie nearest to the restored training set, most suspicious
first, and beneath each the training picture that it lies nearest to, restored and as it is.
"""
import argparse
from pathlib import Path

import tables
import torch
from quality import restored
from zerodiff.data import flowers102, make_grid, save_image
from zerodiff.latent import mirrored
from zerodiff.metrics import features, kid, labels_like, lite0, nearer, nearest
from zerodiff.pipeline import Pipeline

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "nbs" / "measured" / "12_copies.csv")
args = p.parse_args()
pipe, fit, held = Pipeline.load("latent", "cpu", "fp32"), flowers102(split="fit", size=64), flowers102(split="held", size=64)
n, eyes, space = len(held), lite0(), pipe.space


def look(pictures): return features(eyes, pictures, "runs/features")


both, stolen = (fit, mirrored(fit)), torch.randperm(len(fit), generator=torch.Generator().manual_seed(0))[:n]
samples = pipe.draw(labels_like(fit, n), n, 0, 64, 20, True, sampler="dpmpp_2m", scale=3.)
copies = torch.cat([restored(space, x) for x in both])
seen_copies = look(copies)
judged = {"held": look(held), "held, restored": look(restored(space, held)), "fit, restored": seen_copies[stolen], "fit, shaken and restored": look(restored(space, fit.subset(stolen), .1)), "latent, w = 3": look(samples)}
grounds = {"photographs": (torch.cat([look(x) for x in both]), judged["held"]), "restored": (seen_copies, judged["held, restored"])}
close = nearest(judged["held, restored"], seen_copies).distance.quantile(.05)
rows = []
for name, seen in judged.items():
    row = dict(pictures=name, n=len(seen))
    for ground, (known, unseen) in grounds.items():
        found = nearer(nearest(seen, known).distance, nearest(unseen, known).distance)
        row |= {ground: f"{found.value:.4f}", f"{ground}_error": f"{found.error:.4f}"}
    tail = (nearest(seen, seen_copies).distance < close).double().mean().item()
    distance = kid(seen_copies[:len(fit)], seen)
    row |= dict(tail=f"{tail:.4f}", tail_error=f"{(tail * (1 - tail) / n) ** .5:.4f}", kid=f"{distance.value:.5f}", kid_error=f"{distance.error:.5f}")
    rows.append(row)
    print(row, flush=True)
tables.write(args.out, rows)

found, unseen = nearest(judged["latent, w = 3"], seen_copies), nearest(judged["held, restored"], seen_copies)
first = found.distance.argsort()[:12]
print("the twelve nearest samples:  ", *(f"{d:.2f}" for d in found.distance[first].tolist()), "to", *(found.index[first] % len(fit)).tolist())
print("of restored unseen pictures: ", *(f"{d:.2f}" for d in unseen.distance.sort().values[:12].tolist()), "to", *(unseen.index[unseen.distance.argsort()[:12]] % len(fit)).tolist())
originals = torch.cat([both[i // len(fit)].batch([i % len(fit)])[0] for i in found.index[first].tolist()])
save_image(make_grid(torch.cat([samples[first], copies[found.index[first]], originals]), 12), Path(__file__).parent.parent / "nbs" / "images" / "12_nearest.png")
