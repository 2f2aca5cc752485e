"""What the guidance weight w and the rescaling phi do to real flowers, in numbers and as a film.

    python benchmarks/guidance_sweep.py                   # everything that is not there yet: about a quarter of an hour on one core with fast bfloat16
    python benchmarks/guidance_sweep.py guidance          # one part alone: guidance, rescale, tricks or film
    python benchmarks/guidance_sweep.py --quick           # a small trial of all of it, into the current folder

Writes nbs/measured/06_guidance.csv, 06_rescale.csv and 06_tricks.csv, row by row, and goes on where it was stopped; then the film
nbs/films/06_rescale.mp4, and its frames for a slider, 06_rescale.webp. All 102 classes, the same noise for every value, `dpmpp_2m` unless a row says otherwise.
top1 is the judge's agreement, `_se` the standard error of what stands before it; diversity is the mean distance between two samples of one
class, in pixels and in the judge's features. The row `photographs` of 06_guidance.csv is the held split (left out where Oxford-102 is not found).
"""
import argparse, copy
from pathlib import Path

import tables
import torch
from tqdm import tqdm
from zerodiff.data import flowers102, make_grid, to_float
from zerodiff.film import caption, enlarge, save_film, save_sprite
from zerodiff.guidance import clipped_share, colourfulness, diversity, edges, guide, guide_plus
from zerodiff.judge import Judge, agreement
from zerodiff.sampling import dpmpp_2m, generators, randn, sample
from zerodiff.training import load, pick_precision, shipped

NBS = Path(__file__).parent.parent / "nbs"
W = 6.                                                             # under which everything but w itself is tried
WEIGHTS = [-10, -8, -6, -4, -3, -2, -1, -.5, 0, .5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10]
PHIS = [-10, -5, -2, -1, 0, .5, 1, 2, 5, 10]
TRICKS = {
    "plain": dict(),
    "rescale .7 on v": dict(rescale=.7, output="v"),
    "interval 600..999": dict(interval=(600, 999)),
    "interval 200..800": dict(interval=(200, 800)),
    "interval 0..600": dict(interval=(0, 600)),
    "project on v": dict(project=True, output="v"),
    "project on x0": dict(project=True, output="x0"),
    "ddim": dict(sampler="ddim"),
    "CFG++ .3": dict(sampler="ddim", plus=.3),
    "CFG++ .6": dict(sampler="ddim", plus=.6),
    "CFG++ 1": dict(sampler="ddim", plus=1.),
}
FILM_ROWS = [("the gain on eps, x0 clipped", "eps", True), ("on eps, not clipped", "eps", False), ("on v, x0 clipped", "v", True), ("on v, not clipped", "v", False)]
COLUMNS = [53, 48, 73, 27, 79, 72]                                 # sunflower, oxeye daisy, rose, stemless gentian, anthurium, water lily

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", help="guidance, rescale, tricks, film (default: all)")
    p.add_argument("--n", type=int, default=2, help="samples of each class, 2 or more (2)")
    p.add_argument("--steps", type=int, default=10, help="sampling steps of the measurements (10)")
    p.add_argument("--batch", type=int, default=51, help="pictures at once (51)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--quick", action="store_true", help="few values, few classes, into the current folder")
    args = p.parse_args()
    unknown = set(args.parts) - {"guidance", "rescale", "tricks", "film"}
    if unknown: p.error(f"parts: got {', '.join(sorted(unknown))}, expected guidance, rescale, tricks or film")
    for name, least in dict(n=2, steps=1, batch=1).items():
        if getattr(args, name) < least: p.error(f"--{name}: got {getattr(args, name)}, expected at least {least}")
    return args

def fast(): return torch.autocast("cpu", torch.bfloat16, enabled=pick_precision("cpu") == torch.bfloat16)

def unclipped(denoiser):
    other = copy.copy(denoiser)
    other.clip = None
    return other

def draw(denoiser, labels, args, sampler="dpmpp_2m", plus=None, clip=True, **how):
    "A picture (B, 3, H, W) in [-1, 1] of each label, the i-th from the i-th noise."
    if not clip: denoiser = unclipped(denoiser)
    size, out = denoiser.info["size"], []
    for start in range(0, len(labels), args.batch):
        y = labels[start:start + args.batch]
        denoise = guide(denoiser, y, **how) if plus is None else guide_plus(denoiser, y, scale=plus)
        with fast(): x = sample(denoise, (len(y), 3, size, size), denoiser.schedule, args.steps, sampler, seed=args.seed, start=start, device="cpu")
        out.append(x.clamp(-1, 1))
    return torch.cat(out)

def measure(judge, x, labels) -> dict:
    "Every measure of pictures x with these labels."
    features = judge.features(x)
    a = agreement(torch.nn.functional.linear(features, judge.weight, judge.bias), labels)
    found = dict(n=len(x), top1=a["top1"], top1_se=a["top1_se"], top5=a["top5"], top5_se=a["top5_se"])
    each = dict(colourfulness=colourfulness(x), clipped=clipped_share(x), edges=edges(x),
                diversity_pixels=diversity(x, labels), diversity_features=diversity(features, labels))
    for name, v in each.items(): found |= {name: v.mean().item(), f"{name}_se": v.std().item() / len(v) ** .5}
    return found

def fill(path, plan, work, settings):
    "Add to the table at `path` a row for each (names, arguments) of `plan` that it lacks; rows of other settings are dropped."
    key = lambda row: tuple(str(row[k]) for k in names)
    names = [*plan[0][0], *settings]
    done = {key(r): r for r in tables.read(path)}
    plan = [(label | settings, how) for label, how in plan]
    for label, how in tqdm(plan, desc=path.stem):
        if key(label) in done: continue
        done[key(label)] = label | {k: f"{v:.5g}" for k, v in work(**how).items()}
        tables.write(path, [done[key(k)] for k, _ in plan if key(k) in done])

def measurements(parts, denoiser, folder, args):
    "The tables of `parts`, in `folder`. Rescaling has four variants, so it is measured on every third class."
    judge, thin = Judge.load(), 6 if args.quick else 1
    def worker(labels):
        return lambda photos=False, **how: photographs(judge, denoiser.info["size"]) if photos else measure(judge, draw(denoiser, labels, args, **how), labels)
    def table(name, plan, every=1):
        labels = torch.arange(0, 102, every * thin).repeat(args.n)
        fill(folder / f"06_{name}.csv", plan[::3] if args.quick else plan, worker(labels), dict(steps=args.steps, seed=args.seed, per_class=args.n))
    if "guidance" in parts:
        table("guidance", [(dict(w=f"{w:g}"), dict(scale=float(w))) for w in WEIGHTS] + [(dict(w="photographs"), dict(photos=True))] * have_photographs())
    if "rescale" in parts:
        table("rescale", [(dict(output=output, clip=int(clip), phi=f"{phi:g}"), dict(scale=W, rescale=float(phi), output=output, clip=clip))
                          for output in ("eps", "v") for clip in (True, False) for phi in PHIS], every=3)
    if "tricks" in parts: table("tricks", [(dict(trick=name), how if "plus" in how else dict(scale=W) | how) for name, how in TRICKS.items()])

def have_photographs():
    try: return len(flowers102(split="held", size=32, download=False)) > 0
    except FileNotFoundError: return False

def photographs(judge, size):
    held = flowers102(split="held", size=size, download=False)
    return measure(judge, to_float(held.images), held.labels)

def film_frames(denoiser, args, phis, columns):
    "Frames of the film: a row for each variant, a column for each class, the same noise in all of them; one frame for each phi."
    size, rows = denoiser.info["size"], []
    noise = randn((1, 3, size, size), generators(args.seed, 1))
    labels = torch.tensor(columns).repeat(len(phis))
    each = torch.tensor(phis).repeat_interleave(len(columns))
    with tqdm(total=4 * len(labels), desc="film", unit="picture") as bar:
        for name, output, clip in FILM_ROWS:
            out = []
            for y, phi in zip(labels.split(args.batch), each.split(args.batch)):
                denoise = guide(denoiser if clip else unclipped(denoiser), y, scale=W, rescale=phi, output=output)
                with fast(): *_, last = dpmpp_2m(denoise, noise.expand(len(y), -1, -1, -1), denoiser.schedule, 20)
                out.append(last.x.clamp(-1, 1))
                bar.update(len(y))
            rows.append(enlarge(torch.cat(out), 3).unflatten(0, (len(phis), len(columns))))
    for i, phi in enumerate(phis):
        shown = [caption(make_grid(row[i], len(columns)), name, 13) for (name, *_), row in zip(FILM_ROWS, rows)]
        yield caption(torch.cat(shown, 1), f"w = {W:g}, phi = {phi:g}", 20)

def film(denoiser, folder, args):
    phis = torch.linspace(-10, 10, 6 if args.quick else 41).tolist()
    frames = list(film_frames(denoiser, args, phis, COLUMNS))
    save_film(frames, folder / "06_rescale.mp4", fps=8)
    save_sprite(frames, [f"phi = {phi:g}" for phi in phis], folder / "06_rescale.webp")

def main(args):
    parts, denoiser = args.parts or ["guidance", "rescale", "tricks", "film"], load(shipped("flowers"), "cpu")
    folder = Path(".") if args.quick else NBS / "measured"
    folder.mkdir(exist_ok=True)
    if parts != ["film"]: measurements(parts, denoiser, folder, args)
    if "film" in parts: film(denoiser, folder if args.quick else NBS / "films", args)

if __name__ == "__main__": main(arguments())
