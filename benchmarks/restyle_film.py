"""From a photograph to six classes, by noise and by inversion: the film nbs/films/11_restyle.mp4, its slider 11_restyle.webp and a still.

    python benchmarks/restyle_film.py                          # scikit-learn's flower.jpg; two minutes on one core with fast bfloat16
    python benchmarks/restyle_film.py --photo mine.jpg --classes rose 12 sunflower --out mine.mp4

Upper row: the photo noised to a level (SDEdit), the same noise for every level and class. Lower row: the photo inverted to that level, under
no class. Both are then denoised under the class at the head of the column, guided. The level is the share k/N of the steps.
"""
import argparse, contextlib
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from zerodiff.data import make_grid, read_picture, resize_and_crop, save_image, to_float
from zerodiff.film import caption, enlarge, save_film, save_sprite
from zerodiff.guidance import guide
from zerodiff.inversion import heun_invert, restyle, unclipped
from zerodiff.pipeline import find_class
from zerodiff.sampling import ddim, generators, path
from zerodiff.training import load, pick_precision, shipped

NBS = Path(__file__).parent.parent / "nbs"

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--photo", type=Path, help="default: scikit-learn's flower.jpg")
    p.add_argument("--classes", nargs="+", default=["sunflower", "petunia", "king protea", "spring crocus", "camellia", "globe thistle"])
    p.add_argument("--steps", type=int, default=64, help="N, an even number; every second level is a frame (64)")
    p.add_argument("--scale", type=float, default=3., help="guidance weight (3)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, default=NBS / "films" / "11_restyle.mp4")
    p.add_argument("--still", type=Path, default=NBS / "images" / "11_restyle.png", help="nine levels of the first and the third class")
    return p.parse_args()

def end(steps):
    for step in steps: pass
    return step.x

def photograph(path, size):
    if path: return to_float(read_picture(path, size)[0])
    from sklearn.datasets import load_sample_image
    return to_float(resize_and_crop(Image.fromarray(load_sample_image("flower.jpg")), size))

def pictures(denoiser, photo, labels, args):
    "For each level k = 0, 2, ... N: (k, by noise (C, 3, H, W), by inversion (C, 3, H, W))."
    N, schedule = args.steps, denoiser.schedule
    null = denoiser.network.null(1)
    ups = [photo[None]] + [s.x for s in heun_invert(unclipped(denoiser).given(null), photo[None], schedule, N)]
    ts, styled = [t for t, _ in path(schedule, N)], guide(denoiser, labels, scale=args.scale)
    many = photo.expand(len(labels), -1, -1, -1)
    for k in tqdm(range(0, N + 1, 2), desc="levels"):
        dice = [g for _ in labels for g in generators(args.seed, 1)]                # the same noise for each class
        noised = end(restyle(styled, many, schedule, k / N, N, ddim, dice))
        inverted = end(ddim(styled, ups[k].expand_as(many), schedule, ts[N - k:])) if k else many
        yield k, noised, inverted

def main(args):
    denoiser = load(shipped("flowers"), "cpu")
    labels = torch.tensor([find_class(c, denoiser.info["classes"]) for c in args.classes])
    photo = photograph(args.photo, denoiser.info["size"])
    fast = torch.autocast("cpu", torch.bfloat16) if pick_precision("cpu") == torch.bfloat16 else contextlib.nullcontext()
    heads = " | ".join(denoiser.info["classes"][i] for i in labels)
    with fast: found = [(k / args.steps, *both) for k, *both in pictures(denoiser, photo, labels, args)]
    frames = [caption(caption(make_grid(enlarge(torch.cat([up, down]), 3), len(labels), padding=4), heads), f"level {level:.2f}: noised above, inverted below")
              for level, up, down in found]
    save_film(frames, args.out, fps=8)
    save_sprite(frames, [f"level {level:.2f}: noised above, inverted below" for level, *_ in found], args.out.with_suffix(".webp"))
    some = [found[i] for i in torch.linspace(0, len(found) - 1, 9).round().long()]
    rows = [torch.stack([row[way][c] for row in some]) for c in range(0, len(labels), 2)[:2] for way in (1, 2)]
    save_image(make_grid(enlarge(torch.cat(rows), 2), 9), args.still)

if __name__ == "__main__": main(arguments())
