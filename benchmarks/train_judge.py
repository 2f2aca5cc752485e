"""Train the judge that ships in zerodiff/weights: python benchmarks/train_judge.py (see chapter 05b; how long it took stands in judge.md).

Learns from *fit*, is scored on *held*, and writes a table of its scores beside this file. Oxford-102 is found through ZERODIFF_DATA, or downloaded.
"""
import argparse, platform, time
from pathlib import Path

import torch
from zerodiff.data import flowers102
from zerodiff.judge import train_judge

here = Path(__file__).resolve().parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", default=here.parent / "zerodiff" / "weights" / "judge.safetensors", type=Path)
parser.add_argument("--size", default=224, type=int, help="pixels the frozen network sees (a multiple of 32)")
parser.add_argument("--l2", default=.002, type=float, help="strength of the probe's prior")
parser.add_argument("--table", default=here / "judge.md", type=Path, help="where the scores are written")

def table(judge, minutes):
    info = judge.info
    rows = [f"| {what} | " + " | ".join(f"{s[k]:.2%} ± {s[k + '_se']:.2%}" for k in ("top1", "top5")) + f" | {s['n']} |"
            for what, s in ((f"held, {side} px", s) for side, s in judge.scores.items())]
    s = judge.scores[min(judge.scores)]
    return "\n".join(["# The judge on pictures it never saw", "", "A linear classifier on features of EfficientNet-Lite0 that names the class of a flower ([chapter 05b](../nbs/05b_judge.ipynb)).", "", f"`{info['command']}`, {minutes:.1f} minutes on {info['machine']}, torch {info['torch']}.",
                      f"Learned from {info['pictures']} pictures of *fit*, each at {' and '.join(map(str, info['sides']))} pixels, half of them mirrored, and looked at enlarged to {info['size']}; "
                      f"lambda {info['l2']:g}, temperature {info['temperature']:.3f}.", "",
                      "| pictures | top-1 | top-5 | n |", "|---|---|---|---|", *rows, f"| chance | {s['chance1']:.2%} | {s['chance5']:.2%} | |", ""])

def main(args):
    fit, held = (flowers102(split=split, size=64) for split in ("fit", "held"))
    start = time.time()
    judge = train_judge(args.out, fit, held, size=args.size, l2=args.l2, torch=torch.__version__,
                        command=f"python benchmarks/train_judge.py --size {args.size} --l2 {args.l2:g}",
                        machine=f"{torch.get_num_threads()} thread(s) of an {platform.machine()} CPU")
    text = table(judge, (time.time() - start) / 60)
    args.table.write_text(text)
    print(text)

if __name__ == "__main__": main(parser.parse_args())
