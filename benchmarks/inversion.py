"""How well real flowers survive the way up to noise and back, against steps, weight, method; and how near switching is to inverting.

    python benchmarks/inversion.py                     # some 15 minutes on one core with fast bfloat16
    python benchmarks/inversion.py --quick             # four flowers and few steps, in a minute, into the current folder

Held flowers of Oxford-102 (ZERODIFF_DATA), which the model never saw, each under its own class; without them the model's own flowers, and the
table says so. PSNR in dB is the mean over pictures, its standard error beside it; `calls` counts both ways, a guided step as two.
"""
import argparse, contextlib
from pathlib import Path

import tables
import torch
from tqdm import tqdm
from zerodiff.data import flowers102
from zerodiff.guidance import guide
from zerodiff.inversion import ddim_invert, heun_invert, step_to_t, switch, unclipped
from zerodiff.sampling import ddim, generators, heun, path, randn, sample
from zerodiff.training import load, pick_precision, shipped

HERE = Path(__file__).parent.parent / "nbs" / "measured" / "11_inversion.csv"
WAYS = {"source": dict(at="source"), "target": dict(at="target"), "refined": dict(refine=3), "refined, below T": dict(refine=3)}

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=24, help="pictures (24)")
    p.add_argument("--quick", action="store_true", help="few steps and pictures, written to the current folder")
    p.add_argument("--csv", type=Path)
    args = p.parse_args()
    args.csv = args.csv or (Path("11_inversion.csv") if args.quick else HERE)
    if args.quick: args.n = min(args.n, 4)
    return args

def end(steps):
    for step in steps: pass
    return step.x

def score(a, b):
    "Mean PSNR in dB and its standard error, RMS difference."
    each = (a - b).square().flatten(1).mean(1)
    psnr = 10 * (4 / each).log10()
    return dict(psnr=round(psnr.mean().item(), 3), se=round((psnr.std() / len(psnr)**.5).item(), 3), rms=round(each.mean().sqrt().item(), 5))

def round_trip(x, denoise, schedule, N, way):
    "x up to noise and back: N steps of DDIM each way, or of Heun; `below T` leaves out the topmost. Calls of both ways, and the noise's deviation."
    heuns, ts = way == "heun", [t for t, _ in path(schedule, N)][way.endswith("below T"):]
    z = end(heun_invert(denoise, x, schedule, ts) if heuns else ddim_invert(denoise, x, schedule, ts, **WAYS[way]))
    back = end((heun if heuns else ddim)(denoise, z, schedule, ts))
    calls = 4 * N - 1 if heuns else (2 + WAYS[way].get("refine", 0)) * len(ts)
    return dict(calls=calls, std=round(z.std().item(), 3)) | score(x, back)

def gap(first, second, shape, schedule, N):
    "Switching half-way, against inverting the finished picture half-way under `first` and decoding under `second`."
    rng = generators(5, shape[0])
    x, ts = randn(shape, rng), [t for t, _ in path(schedule, N)]
    switched = end(ddim(switch(first, second, step_to_t(N // 2, N, schedule.T)), x, schedule, N))
    up = end(ddim_invert(first, end(ddim(first, x, schedule, N)), schedule, ts[N // 2:], at="source"))
    return score(switched, end(ddim(second, up, schedule, ts[N // 2:])))

def plan(args):
    "Every line of the table to come: (name, N, w, way)."
    many, trips = ((10, 20), (.5, 3)) if args.quick else ((10, 20, 50, 100, 200), (-1, 0, .5, 2, 3, 4, 6))
    for way in WAYS:
        for N in many:
            if "refined" not in way or N <= 100: yield "steps", N, 1, way
    for N in many: yield "steps", N // 2, 1, "heun"
    for w in trips:
        yield "weight", many[min(2, len(many) - 1)], w, "source"
        yield "weight", many[min(2, len(many) - 1)] // 2, w, "heun"
    for w in (1, 3):
        for N in (8, 16) if args.quick else (16, 32, 64, 128): yield "gap", N, w, "source"

def main(args):
    denoiser, table = unclipped(load(shipped("flowers"), "cpu")), []
    size, schedule = denoiser.info["size"], denoiser.schedule
    try:
        held = flowers102(split="held", size=size, download=False)
        some = torch.arange(args.n) * len(held) // args.n
        (x, labels), kind = held.batch(some), "held"
    except FileNotFoundError:
        labels, kind = torch.arange(args.n) % 102, "generated"
        x = sample(guide(denoiser, labels, scale=2), (args.n, 3, size, size), schedule, 20).clamp(-1, 1)
    fast = torch.autocast("cpu", torch.bfloat16) if pick_precision("cpu") == torch.bfloat16 else contextlib.nullcontext()
    with fast:
        for name, N, w, way in tqdm(list(plan(args)), desc=f"{len(x)} {kind} flowers", unit="line"):
            line = dict(what=name, way=way, N=N, w=w, pictures=kind if name != "gap" else "generated", n=len(x))
            if name == "gap":
                got = dict(calls="", std="") | gap(*(guide(denoiser, c, scale=w) for c in (labels, (labels + 7) % 102)), x.shape, schedule, N)
            else: got = round_trip(x, guide(denoiser, labels, scale=w), schedule, N, way)
            table.append(line | got)
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    tables.write(args.csv, table)

if __name__ == "__main__": main(arguments())
