"""Two conditions for one flower: the film over the step of the switch, and who wins at which step.

    python benchmarks/switch_sweep.py                  # both, some 40 minutes on one core with fast bfloat16
    python benchmarks/switch_sweep.py --quick          # a small version of both, in about a minute, into the current folder

The film: 36 flowers, DDIM with N = 256 steps, the first k of them under classes 0..35 in their order, the rest under the same row of classes
moved left by 7; one frame for each k = 0, 8, ... 256, and k = 10. The curve: all 102 classes with N = 32 and two seeds, since 36 flowers
say little about a share. The judge names every picture; likeness is measured against the two pure pictures of the same noise, k = 0 and k = N.
"""
import argparse, contextlib
from pathlib import Path

import tables
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from zerodiff.data import make_grid, save_image, to_float, to_uint8
from zerodiff.film import caption, enlarge, save_film
from zerodiff.guidance import guide
from zerodiff.inversion import switch_sweep
from zerodiff.judge import Judge
from zerodiff.sampling import generators, randn
from zerodiff.training import load, pick_precision, shipped

NBS = Path(__file__).parent.parent / "nbs"
FILM = dict(N=256, classes=36, ks=sorted({*range(0, 257, 8), 10}), seeds=(0,))
CURVE = dict(N=32, classes=102, ks=list(range(0, 33, 2)), seeds=(1, 2))
QUICK = dict(N=16, classes=36, ks=list(range(0, 17, 4)), seeds=(0,)), dict(N=16, classes=102, ks=list(range(0, 17, 4)), seeds=(1,))

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scale", type=float, default=3., help="guidance weight of both conditions (3)")
    p.add_argument("--move", type=int, default=7, help="by how many classes condition 2 is moved left (7)")
    p.add_argument("--quick", action="store_true", help="fewer steps, written to the current folder")
    p.add_argument("--samples", type=Path, help="a folder to keep the pictures in, and to read them from where they are there already")
    p.add_argument("--film", type=Path, help="default nbs/films/11_switch.mp4")
    p.add_argument("--csv", type=Path, help="default nbs/measured/11_switch.csv")
    args = p.parse_args()
    args.film = args.film or (Path("11_switch.mp4") if args.quick else NBS / "films" / "11_switch.mp4")
    args.csv = args.csv or (Path("11_switch.csv") if args.quick else NBS / "measured" / "11_switch.csv")
    args.still = Path("11_switch.png") if args.quick else NBS / "images" / "11_switch.png"
    return args

def pictures(denoiser, plan, args):
    "uint8 (K, seeds * classes, 3, H, W), and the labels of both conditions (seeds * classes,)."
    N, size = plan["N"], denoiser.info["size"]
    row = torch.arange(plan["classes"])
    one = row.repeat(len(plan["seeds"]))
    two = (one + args.move) % len(denoiser.info["classes"])
    kept = args.samples and args.samples / f"switch_{N}_{len(one)}_w{args.scale:g}_{args.move}.safetensors"
    if kept and kept.is_file(): return load_file(kept)["pictures"], one, two
    fast = torch.autocast("cpu", torch.bfloat16) if pick_precision("cpu") == torch.bfloat16 else contextlib.nullcontext()
    calls = N + sum(N - k for k in plan["ks"])
    out = []
    with fast, tqdm(total=calls * len(one), desc=f"N = {N}, {len(one)} flowers", unit="step") as bar:
        for part in torch.arange(len(one)).split(36):
            def counted(denoise):
                def asked(x, t): bar.update(len(x)); return denoise(x, t)
                return asked
            a, b = (counted(guide(denoiser, c[part], scale=args.scale)) for c in (one, two))
            x = torch.cat([randn((1, 3, size, size), generators(plan["seeds"][i // len(row)], 1, start=i % len(row))) for i in part.tolist()])
            out.append(torch.stack([to_uint8(x) for _, x in switch_sweep(a, b, x, denoiser.schedule, N, plan["ks"])]))
    out = torch.cat(out, 1)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({"pictures": out}, kept)
    return out, one, two

def likeness(x, pure):
    "How like the pictures `pure` are to x, (B,) each: colours (overlap of the judge's shares), coarse and fine parts of the lightness (correlation)."
    def parts(x):
        grey = x.mean(1, keepdim=True)
        coarse = torch.nn.functional.avg_pool2d(grey, 4)
        fine = grey - torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(grey, 2), scale_factor=2)
        return coarse.flatten(1), fine.flatten(1)
    correlate = lambda a, b: torch.nn.functional.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))
    return [correlate(a, b) for a, b in zip(parts(x), parts(pure))]

def rows(found, one, two, plan, judge):
    "One dict for each k."
    xs = to_float(found)
    classes, colours = [], []
    for x in tqdm(xs, desc="judging", unit="k"):
        classes.append(judge.classes(x)); colours.append(judge.colour(x))
    mean = lambda v: round(v.double().mean().item(), 4)
    at = torch.arange(len(one))
    for i, k in enumerate(plan["ks"]):
        row = dict(N=plan["N"], k=k, n=len(one))
        for name, label, pure in ("1", one, -1), ("2", two, 0):
            right = (classes[i].argmax(1) == label).double()
            coarse, fine = likeness(xs[i], xs[pure])
            row |= {f"agree{name}": mean(right), f"p{name}": mean(classes[i][at, label]),
                    f"colour{name}": mean(torch.minimum(colours[i], colours[pure]).sum(1)), f"coarse{name}": mean(coarse), f"fine{name}": mean(fine)}
        row["change"] = mean((xs[i] - xs[i - 1]).square().mean((1, 2, 3)).sqrt()) * plan["N"] / (k - plan["ks"][i - 1]) if i else ""
        yield row

def crossing(found, one, two, plan, judge, draws=1000):
    "The share k/N at which the judge agrees as often with either condition, and its standard error by the bootstrap over noises."
    hits = torch.stack([torch.stack([named == one, named == two]) for named in (judge.classes(to_float(x)).argmax(1) for x in found)]).double()
    f = torch.tensor(plan["ks"]) / plan["N"]
    def where(h):
        gap = (h[:, 0] - h[:, 1]).mean(1)
        i = int((gap > 0).nonzero()[0])
        return float(f[i - 1] + (f[i] - f[i - 1]) * -gap[i - 1] / (gap[i] - gap[i - 1]))
    rng = torch.Generator().manual_seed(0)
    redrawn = torch.tensor([where(hits[:, :, torch.randint(len(one), (len(one),), generator=rng)]) for _ in range(draws)])
    return where(hits), redrawn.std().item()

def film(found, plan, args):
    "The film, and a still of five of its moments."
    frames = [caption(make_grid(enlarge(to_float(x), 3), 6, padding=4), f"k = {k} of {plan['N']}") for k, x in zip(plan["ks"], found)]
    save_film(frames, args.film, fps=6)
    stills = [k for k in (0, 10, 128, 240, 256) if k in plan["ks"]] or plan["ks"]
    grids = [caption(make_grid(to_float(found[plan["ks"].index(k)]), 6), f"k = {k}") for k in stills]
    save_image(torch.cat(grids, 2), args.still)

def main(args):
    denoiser, judge, table = load(shipped("flowers"), "cpu"), Judge.load(), []
    plans = QUICK if args.quick else (FILM, CURVE)
    drawn = [pictures(denoiser, plan, args) for plan in plans]
    film(drawn[0][0], plans[0], args)
    for plan, (found, one, two) in zip(plans, drawn):
        table += rows(found, one, two, plan, judge)
        share, se = crossing(found, one, two, plan, judge)
        print(f"N = {plan['N']}, {len(one)} flowers, w = {args.scale:g}: as often one as the other at k/N = {share:.3f} (standard error {se:.3f})")
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    tables.write(args.csv, table)

if __name__ == "__main__": main(arguments())
