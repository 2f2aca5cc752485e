"""Which parts of the recipe matter? Each row trains the latent model with one thing changed, for as many steps, and tells how natural and how obedient its flowers are.

    python benchmarks/ablations.py                                 # every row that is not there yet, and the report
    python benchmarks/ablations.py --only "predicts noise" "seed 1" --out my_ablations.csv     # on your machine: rows that are in the file are not made again
    python benchmarks/ablations.py --report                        # only the table, from the rows there are

The network is the shipped latent model's at 64 channels instead of 112, so that a row takes minutes: latents of *fit* by vae24, batches of 64, float32, and everything else as `zerodiff train --latent` has it. The rows "seed 1"
and "seed 2" change nothing but the dice: a row that differs from "the recipe" by no more than these do says nothing. Rows of averages are averages of the weights of one and the same run; the average of "the recipe" remembers the last ninth of the steps so far, for its decay
of .999 is reached after 9,000 steps only. A network that predicts noise cannot say much of x0 where there is next to no signal, as at the end of the cosine schedule; so it is tried with the linear one as well. Each draws --n pictures
with classes as in *fit*, by 20 steps of DPM-Solver++(2M), without guidance (w = 1) and at w = 3. A row is written as soon as it is known, so a run that was stopped goes on with the next;
on a machine with idle cores, give half of the rows to a second process.
"""
import argparse
from pathlib import Path

import tables
import torch
from tqdm import tqdm
from zerodiff.conditioning import ClassConditional
from zerodiff.data import flowers102
from zerodiff.judge import Judge
from zerodiff.latent import latents_of
from zerodiff.metrics import Evaluation, labels_like, lite0
from zerodiff.pipeline import Pipeline
from zerodiff.schedule import cosine_schedule, linear_schedule, sigmoid_schedule
from zerodiff.training import EMA, Denoiser, Trainer, averaged, load_network
from zerodiff.unet import UNet
from zerodiff.vae import VAE

OUT = Path(__file__).with_suffix(".csv")
AVERAGES = {"average: none": 0., "average: .9": .9, "average: .99": .99}       # beside .999, which "the recipe" has
CHANGES = {
    "the recipe": {}, "seed 1": dict(seed=1), "seed 2": dict(seed=2),
    "predicts noise": dict(predicts="eps"), "predicts noise, plain loss": dict(predicts="eps", gamma=None), "predicts noise, linear schedule": dict(predicts="eps", schedule=linear_schedule),
    "predicts the picture": dict(predicts="x0"),
    "linear schedule": dict(schedule=linear_schedule), "sigmoid schedule": dict(schedule=sigmoid_schedule),
    "plain loss, no min-SNR": dict(gamma=None),
    "attention": dict(attention="zerodiff.attention.SelfAttention"),
    "no label hidden": dict(drop=0.), "a quarter of labels hidden": dict(drop=.25),
}
COLUMNS = ("KID-Lite0", "class", "recall")
FIELDS = ["row", "steps", "n", "weights", *(f"{name} w={w}{e}" for w in (1, 3) for name in COLUMNS for e in ("", " error"))]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="ROW", help=", ".join(CHANGES))
    p.add_argument("--steps", type=int, default=2000, help="of training for each row (2000)")
    p.add_argument("--n", type=int, default=1020, help="pictures for each weight of guidance (1020)")
    p.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    p.add_argument("--out", type=Path, default=OUT, help="another file leaves ablations.md alone")
    p.add_argument("--report", action="store_true", help="train nothing")
    return p.parse_args()


class Averaging(Trainer):
    "A trainer that also keeps averages of its weights with other memories."
    def keep(self, decays):
        self.others = {name: EMA(self.network, decay) for name, decay in decays.items()}
        return self

    def train_step(self):
        loss = super().train_step()
        for ema in self.others.values(): ema.update(self.step - 1)
        return loss


def trained(row, latents, space, args):
    "The denoiser of a row; of the one that changes nothing, also those of the averages."
    change, averages = dict(CHANGES[row]), {} if CHANGES[row] else AVERAGES
    schedule, predicts, drop = (change.pop(k, v) for k, v in (("schedule", cosine_schedule), ("predicts", "v"), ("drop", .1)))
    attention = dict(attention=change.pop("attention"), attention_levels=(1,)) if "attention" in change else {}
    torch.manual_seed(change.get("seed", 0))
    network = ClassConditional(UNet(64, (1, 2), cond_dim=128, in_channels=8, **attention), len(latents.classes), drop)
    denoiser = Denoiser(network, schedule(), predicts)
    denoiser.info = dict(size=64, classes=latents.classes, latent=space.about)
    run = Averaging(denoiser, latents, steps=args.steps, batch=64, warmup=200, precision="fp32", **change).keep(averages)
    run.fit()
    found = [averaged(run)]
    for other in run.others.values():
        run.ema = other
        found.append(averaged(run))
    return found


def line(denoiser, evaluation, args):
    "What is told of a denoiser: by the weight of guidance, unless it never learned to do without a class."
    pipe, labels, found = Pipeline(denoiser, "fp32"), labels_like(evaluation.reference, args.n), {}
    for w in (1, 3) if denoiser.network.drop_share else (1,):
        try: figures = evaluation.row(pipe.draw(labels, args.n, 0, 64, 20, True, sampler="dpmpp_2m", scale=w), labels)
        except ValueError as e:
            print(f"w = {w}: no pictures ({e})")               # NaN or infinities: the row stays empty there
            continue
        for name in COLUMNS:
            value = figures[name]
            found |= {f"{name} w={w}": f"{value.value:.4f}", f"{name} w={w} error": "" if value.error != value.error else f"{value.error:.4f}"}
    return found | dict(weights=sum(p.numel() for p in denoiser.network.parameters()))


def add(path, new):
    "Put rows into the file, in the table's order; other processes may have added theirs."
    order = [name for row in CHANGES for name in ([row, *AVERAGES] if row == "the recipe" else [row])]
    names = [r["row"] for r in new]
    tables.write(path, sorted([r for r in tables.read(path) if r["row"] not in names] + new, key=lambda r: order.index(r["row"])), FIELDS)


def main(args):
    there = {r["row"]: (int(r["steps"]), int(r["n"])) for r in tables.read(args.out)}
    other = set(there.values()) - {(args.steps, args.n)}
    if other and not args.report: raise SystemExit(f"--out: {args.out} holds rows of (steps, n) = {', '.join(map(str, other))}, these would be {(args.steps, args.n)}; name another file")
    wanted = [] if args.report else [row for row in args.only if row not in there]
    if wanted:
        fit = flowers102(split="fit", size=64)
        latents, space = latents_of(load_network("vae24", VAE), fit, "vae24", folder=args.runs)
        evaluation = Evaluation(fit, None, lite0(), Judge.load(), mirrored=False, folder=Path("runs/features"))
    for row in tqdm(wanted, "rows", disable=None):
        denoisers = trained(row, latents, space, args)
        names = [row, *AVERAGES][:len(denoisers)]
        add(args.out, [dict(row=name, steps=args.steps, n=args.n) | line(d, evaluation, args) for name, d in zip(names, denoisers)])
        print(f"{row}: done", flush=True)
    report(tables.read(args.out), args.out == OUT)


def report(rows, keep):
    "Print the table, and put it into ablations.md if it is to be kept."
    columns = [f"{name} w={w}" for w in (1, 3) for name in COLUMNS]
    found = tables.table(["row", "weights", *(c.replace(" w=", ", w = ") for c in columns)], [[r["row"], f"{int(r['weights']) / 1e6:.2f} M", *(tables.told(r, c, f"{c} error") for c in columns)] for r in rows])
    if keep: tables.fill(OUT.with_suffix(".md"), ablations=found)
    print(found)


if __name__ == "__main__": main(arguments())
