"""How often the judge sees the class that was asked for: n samples of each class, beside held real pictures and beside chance.

    python benchmarks/judge_samples.py                                   # 10 of each of the 102 classes, from the weights in the package
    python benchmarks/judge_samples.py --weights runs/mine.safetensors --scale 3 --steps 50 --grid all.png

Picture i of a class starts from the same noise whatever n and batch are. Also compares the colours with those that the real held pictures
of the class have, where Oxford-102 is found (ZERODIFF_DATA).
"""
import argparse, contextlib, time
from pathlib import Path

import torch
from tqdm import tqdm
from zerodiff.data import flowers102, make_grid, save_image, to_float
from zerodiff.guidance import guide
from zerodiff.judge import Judge, agreement, shrink
from zerodiff.latent import space_of
from zerodiff.sampling import sample, samplers
from zerodiff.training import load, pick_device, pick_precision, weights_path

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", type=weights_path, default="flowers", help="a file, or weights that ship with the package (flowers)")
    p.add_argument("--n", type=int, default=10, help="samples of each class (10)")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--scale", type=float, default=3., help="guidance weight: 1 is plain conditional (3)")
    p.add_argument("--sampler", choices=list(samplers), default="dpmpp_2m")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch", type=int, default=51, help="pictures at once")
    p.add_argument("--size", type=int, help="pixels; by default what the weights file says")
    p.add_argument("--device")
    p.add_argument("--grid", type=Path, help="write the first sample of every class, in their order, to this PNG")
    p.add_argument("--out", type=Path, help="write the table here as well")
    args = p.parse_args()
    for name in ("n", "steps", "batch"):
        if getattr(args, name) < 1: p.error(f"--{name}: got {getattr(args, name)}, expected at least 1")
    if not args.weights.is_file(): p.error(f"--weights: there is no file {args.weights}")
    return args

def generate(denoiser, args, size, classes):
    "All samples, (classes * n, 3, size, size) in [-1, 1], and their labels; sample i of the whole has the i-th noise."
    labels = torch.arange(classes).repeat(args.n)                     # the first `classes` of them: one of each
    device = next(denoiser.parameters()).device
    space = space_of(denoiser.info, device)
    dtype = pick_precision(device)
    fast = torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    out = []
    with fast:
        for start in tqdm(range(0, len(labels), args.batch), desc=f"{len(labels)} samples"):
            y = labels[start:start + args.batch].to(device)
            cond = denoiser.network.condition(y) if hasattr(denoiser.network, "condition") else y
            x = sample(guide(denoiser, cond, scale=args.scale), (len(y), *space.shape(size)), denoiser.schedule, args.steps,
                       samplers[args.sampler], seed=args.seed, start=start, device=device)
            out.append(space.decode(x.float()).cpu())
    return torch.cat(out), labels

def row(name, a):
    return f"| {name} | {a['top1']:.1%} ± {a['top1_se']:.1%} | {a['top5']:.1%} ± {a['top5_se']:.1%} | {a['n']} |"

def colour_share(judge, x, labels, size):
    "Mean overlap of each picture's colours with the mean colours of its class among real held pictures, and theirs with each other."
    try: held = flowers102(split="held", size=64, download=False)
    except (FileNotFoundError, ImportError): return None
    real = judge.colour(to_float(shrink(held.images, min(size, 64))))
    total = torch.zeros(len(held.classes), real.shape[1]).index_add_(0, held.labels, real)
    count = held.labels.bincount(minlength=len(held.classes))[:, None]
    overlap = lambda c, other: torch.minimum(c, other).sum(1).mean().item()
    many = count[held.labels, 0] > 1
    leave_one_out = ((total[held.labels] - real) / (count[held.labels] - 1).clamp(min=1))[many]
    return overlap(judge.colour(x), (total / count)[labels]), overlap(real[many], leave_one_out), overlap(real[many], (total / count).mean(0))

def main(args):
    denoiser, judge = load(args.weights, args.device or pick_device()), Judge.load()
    size = args.size or denoiser.info.get("size")
    if not size: raise SystemExit(f"--size: {args.weights} does not say how large its pictures are, so say it")
    start = time.time()
    x, labels = generate(denoiser, args, size, len(judge.names))
    seconds = time.time() - start
    got = agreement(judge.classes(x), labels)
    near = min(judge.scores, key=lambda s: abs(s - size))
    real = judge.scores[near]
    lines = [f"`python benchmarks/judge_samples.py --weights {args.weights.name} --n {args.n} --steps {args.steps} --scale {args.scale:g} --sampler {args.sampler} --seed {args.seed}`: "
             f"{size} px, {seconds:.0f} s of sampling.", "",
             "| pictures | judge's top-1 | top-5 | n |", "|---|---|---|---|", row(f"samples, w = {args.scale:g}", got), row(f"real, held, {near} px", real),
             f"| chance | {got['chance1']:.1%} | {got['chance5']:.1%} | |",
             f"| samples / real | {got['top1'] / real['top1']:.1%} | {got['top5'] / real['top5']:.1%} | |"]
    colours = colour_share(judge, x, labels, size)
    if colours: lines += ["", "Overlap of a picture's colours with the mean of its class among held pictures: samples {:.3f}, other held pictures {:.3f}; "
                          "with the mean of all classes {:.3f}.".format(*colours)]
    print("\n".join(lines))
    if args.out: args.out.write_text("\n".join(lines) + "\n")
    if args.grid: save_image(make_grid(x[:len(judge.names)], 17), args.grid)

if __name__ == "__main__": main(arguments())
