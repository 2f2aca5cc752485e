"""Would a copyist of latents be caught? What `nearer` says of one, against photographs and against photographs that went through the VAE. The table of chapter 12b.

    python benchmarks/copies.py                                    # about a quarter of an hour on two CPU cores with AVX2 alone

A model of latents cannot hand out a photograph of its training set: the decoder stands between. So its copies may be farther from the photographs than an unseen photograph is, and a comparison with photographs may acquit it.
Fair is the comparison behind the same decoder: is a sample nearer to the *restored* training pictures than restored unseen ones are? Typical pictures are, copied or not, so beside it stands the share of copies, by whose picture is
nearest, a learned or an unseen one. And since a few copies among poor pictures would not show in a mean, the tail: the share of pictures that lie nearer to the restored training set than all but a twentieth of the restored unseen ones, .05 without copying.
The last column is the KID against *fit* restored: how far a set is from what the decoder makes of photographs.

Judged are the latent model's samples and sets with a known answer: *held*, *held* restored, and two copyists, who decode the latents of *fit* as they are, and moved by a tenth of their spread. Mirror images count as copies. Features are
kept in runs/features, rows in nbs/measured/12b_copies.csv; nbs/images/12b_nearest.png shows the twelve samples that lie nearest to the restored training set, most suspicious first, and beneath each the training picture that it lies nearest
to, restored and as it is.
"""
import argparse
from pathlib import Path

import tables
import torch
from quality import restored
from zerodiff.data import flowers102, make_grid, save_image
from zerodiff.latent import mirrored
from zerodiff.metrics import Copies, behind, features, kid, labels_like, lite0, nearest, views
from zerodiff.pipeline import Pipeline

NBS = Path(__file__).parent.parent / "nbs"
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--out", type=Path, default=NBS / "measured" / "12b_copies.csv")
args = p.parse_args()
pipe, fit, held = Pipeline.load("latent", "cpu", "fp32"), flowers102(split="fit", size=64), flowers102(split="held", size=64)
n, plain = len(held), lite0()


def look(pictures): return features(plain, pictures, "runs/features")


courts = {name: Copies(*(views(eyes, pictures, "runs/features") for pictures in (fit, held))) for name, eyes in dict(photographs=plain, restored=behind(pipe.space, plain)).items()}
fair = courts["restored"]
stolen = torch.randperm(len(fit), generator=torch.Generator().manual_seed(0))[:n]
samples = pipe.draw(labels_like(fit, n), n, 0, 64, 20, True, sampler="dpmpp_2m", scale=3.)
judged = {"held": courts["photographs"].unseen[0], "held, restored": fair.unseen[0], "fit, restored": fair.learned[0, stolen],
          "fit, shaken and restored": look(restored(pipe.space, fit.subset(stolen), .1)), "latent, w = 3": look(samples)}
close = fair.floor.quantile(.05)
rows = []
for name, seen in judged.items():
    row = dict(pictures=name, n=len(seen))
    found = {court: known.figures(seen) for court, known in courts.items()}
    tail = (nearest(seen, fair.learned.flatten(0, 1)).distance < close).double().mean().item()
    distance = kid(fair.learned[0], seen)
    for column, figure in dict(photographs=found["photographs"]["nearer"], restored=found["restored"]["nearer"], copied=found["restored"]["copied"]).items():
        told = column != "copied" or "held" not in name                # what was held is nearest to itself
        row |= {column: f"{figure.value:.4f}" if told else "", f"{column}_error": f"{figure.error:.4f}" if told else ""}
    row |= dict(tail=f"{tail:.4f}", tail_error=f"{(tail * (1 - tail) / n + .05 * .95 / len(fair.floor)) ** .5:.4f}", kid=f"{distance.value:.5f}", kid_error=f"{distance.error:.5f}")
    rows.append(row)
    print(row, flush=True)
tables.write(args.out, rows)

known = fair.learned.flatten(0, 1)
found, unseen = nearest(judged["latent, w = 3"], known), nearest(fair.unseen[0], known)
first = found.distance.argsort()[:12]
print("the twelve nearest samples:  ", *(f"{d:.2f}" for d in found.distance[first].tolist()), "to", *(found.index[first] % len(fit)).tolist())
print("of restored unseen pictures: ", *(f"{d:.2f}" for d in unseen.distance.sort().values[:12].tolist()), "to", *(unseen.index[unseen.distance.argsort()[:12]] % len(fit)).tolist())
originals = [(fit if i < len(fit) else mirrored(fit)).subset([i % len(fit)]) for i in found.index[first].tolist()]
save_image(make_grid(torch.cat([samples[first], *(restored(pipe.space, one) for one in originals), *(one.batch([0])[0] for one in originals)]), 12), NBS / "images" / "12b_nearest.png")
