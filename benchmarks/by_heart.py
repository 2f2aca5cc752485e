"""How many flowers does it take? The same network trained for the same steps on 16, 256 and all 7,348 photographs of *fit*: does it draw flowers, or those flowers? The table of chapter 13e.

    python benchmarks/by_heart.py                                  # about half an hour on one CPU core with AVX2 alone

Latents by vae24, without classes, a UNet of 64 channels (the shipped latent model has 112), batches of 32, float32. Each larger set holds the smaller ones, and mirror images count as learned. Told of each: the mean squared error of x0 in
latents of variance 1, over all noise levels, on pictures that were learned (of few, each again and again until there are 841 looks; the error is that of looks) and on *held*; and `nearer`, the probability that a picture drawn is nearer to the training set than one of *held* is, all of them seen through the same decoder
(why, says benchmarks/copies.py). Typical pictures are near to everything, learned or not; so `copied` estimates the share of copies by whose picture is nearest, a learned or an unseen one (chapter 12).
Trained weights are kept in runs/by_heart, so a run that was stopped goes on with the next model. nbs/images/13e_by_heart.png shows ten pictures of each model, the training picture nearest to each beneath it.
"""
import argparse
from pathlib import Path

import tables
import torch
from quality import restored
from tqdm import tqdm
from zerodiff.data import flowers102, make_grid, save_image
from zerodiff.latent import Latents, latents_of, mirrored
from zerodiff.metrics import Copies, behind, denoising_error, features, lite0, nearest, views
from zerodiff.pipeline import Pipeline
from zerodiff.schedule import cosine_schedule
from zerodiff.training import Denoiser, Trainer, averaged, load, load_network, save_weights
from zerodiff.unet import UNet
from zerodiff.vae import VAE

NBS = Path(__file__).parent.parent / "nbs"


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--counts", type=int, nargs="+", default=[16, 256, 7348])
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--runs", type=Path, default=Path("runs/by_heart"))
    p.add_argument("--out", type=Path, default=NBS / "measured" / "13e_by_heart.csv")
    p.add_argument("--picture", type=Path, default=NBS / "images" / "13e_by_heart.png")
    return p.parse_args()


def trained(latents, space, steps, weights):
    "The denoiser in the file `weights`; trained first, if there is none."
    if not weights.is_file():
        torch.manual_seed(0)
        denoiser = Denoiser(UNet(64, (1, 2), in_channels=8), cosine_schedule(), "v")
        denoiser.info = dict(size=64, classes=[], latent=space.about)
        run = Trainer(denoiser, latents, steps=steps, ema=.99, precision="fp32")
        run.fit()
        save_weights(weights, averaged(run), half=False)
    return load(weights)


def main(args):
    fit, held, vae = flowers102(split="fit", size=64), flowers102(split="held", size=64), load_network("vae24", VAE)
    space = latents_of(vae, fit, "vae24", folder=args.runs)[1]         # one measure of latents for all rows: that of the whole set
    eyes = lite0()
    all_learned, unseen = (views(behind(space, eyes), pictures, "runs/features") for pictures in (fit, held))

    def latents(pictures):
        z = latents_of(vae, pictures, space=space, folder=args.runs)[0].z
        return Latents(z, torch.zeros(len(z), dtype=torch.long))

    shuffled, everyone = torch.randperm(len(fit), generator=torch.Generator().manual_seed(0)), torch.arange(len(held))
    rows, shown = [], []
    for count in tqdm(args.counts, "rows", disable=None):
        mine = shuffled[:count]
        learned, known = fit.subset(mine), all_learned[:, mine]
        denoiser = trained(latents(learned), space, args.steps, args.runs / f"{count}-{args.steps}.safetensors")
        drawn = Pipeline(denoiser, "fp32").draw(None, len(held), 0, 64, 20, True, sampler="dpmpp_2m")
        seen = features(eyes, drawn, "runs/features")
        figures = {name: denoising_error(denoiser, z) for name, z in dict(learned=latents(learned).z[everyone % count], unseen=latents(held).z[everyone]).items()}
        figures |= Copies(known, unseen).figures(seen)
        rows.append(dict(pictures=count, steps=args.steps) | {k: f"{v:.4f}" for name, figure in figures.items() for k, v in zip((name, f"{name}_error"), figure)})
        index = nearest(seen[:10], known.flatten(0, 1)).index
        below = [(learned if i < count else mirrored(learned)).subset([i % count]) for i in index.tolist()]
        shown += [drawn[:10], *(restored(space, one) for one in below)]
        print(rows[-1], flush=True)
    tables.write(args.out, rows)
    save_image(make_grid(torch.cat(shown), 10), args.picture)


if __name__ == "__main__": main(arguments())
