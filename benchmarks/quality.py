"""How good the shipped flowers are: natural, varied, obedient, their own; beside photographs that no model saw. The tables of quality.md and chapter 12b.

    python benchmarks/quality.py                                   # every row that is not there yet, and the report
    python benchmarks/quality.py --only defaults --n 7348 --seeds 0 1 2
    python benchmarks/quality.py --only denoising                  # who learned by heart: the denoising error on learned and on unseen pictures
    python benchmarks/quality.py --only defaults --weights latent --out my_quality.csv     # on your machine: rows that are in the file are not made again
    python benchmarks/quality.py --report                          # only the report, from the rows there are

Groups of rows: `defaults` (each shipped model as `zerodiff sample` uses it), `guidance` (the weight w), `samplers` (each sampler by network calls). As many classes as *fit*
has of them, in its proportions. A row is written as soon as it is known, to nbs/measured/12b_quality.csv, so a run that was stopped goes on where it was; a row with other
settings stands beside it. `denoising` draws nothing, and has a file of its own, 12b_quality_denoising.csv. Pictures are kept in runs/drawn, features in runs/features. On two CPU cores with AVX2 alone, 1,020 pictures of flowers or flowers64 take 15 minutes, of latent 3.
"""
import argparse
from pathlib import Path

import tables
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from zerodiff.clip import digest
from zerodiff.data import flowers102, make_grid, replacing, save_image, to_float, to_uint8
from zerodiff.judge import Judge
from zerodiff.metrics import Evaluation, by_heart, labels_like, lite0
from zerodiff.pipeline import Pipeline

root = Path(__file__).parent.parent
OUT = root / "nbs" / "measured" / "12b_quality.csv"
MODELS = ("flowers", "flowers64", "latent")
FIT = "7348"                                                      # pictures in *fit*
CALLS = (5, 10, 20, 250, 50)                                      # the one that takes longest is also the measure of the others
GROUPS = {
    "defaults": [dict(weights=m, sampler="dpmpp_2m", calls=20, w=3.) for m in MODELS],
    "guidance": [dict(weights="latent", sampler="dpmpp_2m", calls=20, w=w) for w in (0., 1., 2., 5., 10.)],
    "samplers": [dict(weights="latent", sampler=s, calls=c, w=2.) for c in CALLS for s in (("dpmpp_2m", "ddim", "heun", "ddpm") if c < 250 else ("ddpm",))],
}
SETTINGS = ("weights", "sampler", "calls", "w", "n", "seeds")
FIGURES = ("FID-Lite0", "KID-Lite0", "KID-Lite0 behind", "precision", "recall", "class", "diversity", "nearer", "copied")
COLUMNS = [*SETTINGS, "size", *(k + e for k in FIGURES for e in ("", "_error"))]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", choices=[*GROUPS, "denoising"], default=[*GROUPS, "denoising"])
    p.add_argument("--weights", nargs="+", choices=MODELS, default=MODELS, help="only rows of these")
    p.add_argument("--n", type=int, default=1020, help="pictures a seed (1020)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--report", action="store_true", help="draw nothing")
    p.add_argument("--out", type=Path, default=OUT, help="another file leaves quality.md and its pictures alone")
    return p.parse_args()


def drawn(pipe, row, seed, labels):
    "The pictures of a row, drawn once and kept in runs/drawn. Heun calls the network twice a step, but once in its last."
    kept = Path("runs/drawn") / f"{row['weights']}-{digest(pipe.denoiser)[:12]}-{row['sampler']}-{row['calls']}-w{row['w']:g}-n{len(labels)}-seed{seed}.safetensors"
    if kept.exists(): return to_float(load_file(kept)["images"])
    steps = (row["calls"] + 1) // 2 if row["sampler"] == "heun" else row["calls"]
    images = to_uint8(pipe.draw(pipe.labels(labels.tolist()), len(labels), seed, 64, steps, True, sampler=row["sampler"], scale=row["w"]))
    kept.parent.mkdir(parents=True, exist_ok=True)
    with replacing(kept) as aside: save_file(dict(images=images.contiguous()), aside)
    return to_float(images)


def key(row): return tuple(str(row[k]) for k in SETTINGS)


def line(settings, size, figures):
    "A row as the file has it."
    return settings | dict(size=size) | {k + e: f"{v:.5f}" if v == v else "" for k in FIGURES if k in figures for e, v in zip(("", "_error"), figures[k])}


def restored(space, pictures, shake=0.):
    "What the VAE of a latent space leaves of pictures, (N, 3, H, W), their latents moved by `shake` times the spread of all."
    rng, found = torch.Generator().manual_seed(0), []
    for part in torch.arange(len(pictures)).split(64):
        z = space.encode(pictures.batch(part)[0].to(space.shift.device))
        found.append(space.decode(z + shake * torch.randn(z.shape, generator=rng).to(z.device)).cpu())
    return torch.cat(found)


class Court:
    "Photographs of a size, what is known of them, and the lines of the floor; for models that live in `space`, copies are looked for behind its decoder."
    def __init__(self, size, space):
        self.fit, self.held, self.size, self.space = flowers102(split="fit", size=size), flowers102(split="held", size=size), size, space
        self.evaluation = Evaluation(self.fit, self.held, lite0(), Judge.load(), folder=Path("runs/features"), space=space)

    def floors(self, n, known):
        "What ours are held against: *held*, real photographs that no model saw; and for models of latents, *held* through the VAE and back."
        n = min(n, len(self.held))
        def of(name, figures): return line(dict(weights=name, sampler="", calls="", w="", n=n, seeds=""), self.size, figures)
        if ("held", self.size, n) not in known:                       # photographs as they are: what they get behind a decoder is the next line's
            yield of("held", {k: v for k, v in self.evaluation.floor(n).items() if not k.endswith("behind")})
        if self.space.about and ("vae24 of held", self.size, n) not in known:
            seen = self.evaluation.evidence(restored(self.space, self.held), self.held.labels)
            yield of("vae24 of held", self.evaluation.of(n, *seen, torch.arange(len(self.held))))

    def lines(self, pipe, row, n, seeds, keep):
        "The line of a model, and of the first of its pictures, as many as *held* has, to stand beside the floor."
        labels = labels_like(self.fit, n)
        sets = [drawn(pipe, row, seed, labels) for seed in seeds]
        if row["w"] == 3. and keep: save_image(make_grid(sets[0][:68], 17), root / "benchmarks" / f"quality_{row['weights']}.png")
        for m, figures in self.evaluation.over(sets, labels, (n, min(n, len(self.held)))).items():
            yield line(row | dict(n=m, seeds=" ".join(map(str, seeds))), self.size, figures)


def denoising(path):
    "The file with the denoising errors that belongs to the rows in `path`."
    return path.with_stem(path.stem + "_denoising")


def denoise(weights, path):
    "Add the denoising errors of models, on as many learned pictures as there are unseen ones, without their class and told it, as far as the file lacks them."
    rows = tables.read(path)
    for name in tqdm([w for w in weights if w not in {r["weights"] for r in rows}], "denoising errors", disable=None):
        pipe = Pipeline.load(name, precision="fp32")
        fit, held = (flowers102(split=split, size=pipe.size) for split in ("fit", "held"))
        for told, conditions in (("", None), ("class", lambda labels: pipe.labels(labels.tolist()))):
            pair = by_heart(pipe.denoiser, pipe.space, fit, held, conditions=conditions)
            rows.append(dict(weights=name, told=told, n=len(held)) | {k + e: f"{v:.5f}" for k, figure in zip(("learned", "unseen"), pair) for e, v in zip(("", "_error"), figure)})
        tables.write(path, rows)
        print(*rows[-2:], sep="\n", flush=True)


def main(args):
    rows = [{k: r.get(k, "") for k in COLUMNS} for r in tables.read(args.out)]
    wanted = [] if args.report else [row for group in args.only for row in GROUPS.get(group, ()) if row["weights"] in args.weights]
    courts = {}
    for row in tqdm(wanted, "rows", disable=None):
        if key(row | dict(n=args.n, seeds=" ".join(map(str, args.seeds)))) in map(key, rows): continue
        pipe = Pipeline.load(row["weights"], precision="fp32")
        place = pipe.size, bool(pipe.space.about)
        court = courts[place] = courts.get(place) or Court(pipe.size, pipe.space)
        rows += court.floors(args.n, {(r["weights"], int(r["size"]), int(r["n"])) for r in rows})
        rows += [r for r in court.lines(pipe, row, args.n, args.seeds, args.out == OUT) if key(r) not in map(key, rows)]
        tables.write(args.out, rows, COLUMNS)
        print({k: v for k, v in rows[-1].items() if v != ""}, flush=True)
    if "denoising" in args.only and not args.report: denoise(args.weights, denoising(args.out))
    report(tables.read(args.out), tables.read(denoising(args.out)), args.out == OUT)


def figure(row, name):
    "A figure with its error, in as many digits as it deserves."
    return tables.told(row, name, name + "_error", dict(FID=1, KID=4).get(name[:3], 3))


def chosen(rows, n, fits):
    "Of the rows of n pictures, those that fit; for each setting that of the most seeds."
    order = sorted((r for r in rows if r["n"] == n and fits(r)), key=lambda r: len(r["seeds"]))
    return list({tuple(r[k] for k in ("weights", "size", "sampler", "calls", "w")): r for r in order}.values())


def default(row): return (row["sampler"], row["calls"], row["w"]) == ("dpmpp_2m", "20", "3.0")


def summary(rows, floors):
    "What matters most of each model, and in brackets what the floor gets: *held*, and for a model of latents *held* through its VAE."
    floor = {(r["weights"], r["size"]): r for r in floors}
    def cell(row, name):
        beside = [floor.get((who, row["size"])) for who in ("held", *(("vae24 of held",) if row["weights"] == "latent" else ()))]
        digits = 3 if name.startswith("KID") else 2
        def short(r): return f"{round(float(r[name]), digits) + 0:.{digits}f}"                     # + 0: no -0.000
        return f"{short(row)} ({'; '.join(short(r) for r in beside if r)})"
    names = ("precision", "recall", "class", "KID-Lite0")
    return tables.table(["weights", "pixels", *names], [[r["weights"], r["size"], *(cell(r, name) for name in names)] for r in rows])


def report(rows, errors, keep):
    """Print the tables, and put them into quality.md and README.md if they are to be kept: all with as many pictures as the floor has, which stands above them, by the most seeds there are;
    the defaults also with as many pictures as *fit* has."""
    n = max((r["n"] for r in rows if not r["w"]), key=int, default="")
    floors, models = chosen(rows, n, lambda r: not r["w"]), chosen(rows, n, default)
    below = [r for r in floors if r["size"] == "64"]                # that of the latent model
    by_w = chosen(rows, n, lambda r: r["weights"] == "latent" and (r["sampler"], r["calls"]) == ("dpmpp_2m", "20"))
    by_calls = chosen(rows, n, lambda r: r["weights"] == "latent" and r["w"] == "2.0")
    def table(names, own, rows): return tables.table([*names, "N", "seeds", *FIGURES], [[*own(r), r["n"], r["seeds"], *(figure(r, k) for k in FIGURES)] for r in rows])
    found = dict(defaults=table(["pictures", "size"], lambda r: (r["weights"], r["size"]), sorted([*floors, *models, *chosen(rows, FIT, default)], key=lambda r: int(r["size"]))),
                 denoising=tables.table(["weights", "told", "N", "on learned pictures", "on held ones"],
                                        [[r["weights"], r["told"] or "nothing", r["n"], *(tables.told(r, k, k + "_error", 4) for k in ("learned", "unseen"))] for r in errors]),
                 guidance=table(["w"], lambda r: [r["w"] or r["weights"]], [*below, *sorted(by_w, key=lambda r: float(r["w"]))]),
                 samplers=table(["calls", "sampler"], lambda r: [r["calls"], r["sampler"] or r["weights"]], [*below, *sorted(by_calls, key=lambda r: (int(r["calls"]), r["sampler"]))]))
    page, short = Path(__file__).with_suffix(".md"), summary(models, floors)
    if keep:
        tables.fill(page, **{k: v for k, v in found.items() if k != "denoising" or errors})
        tables.fill(page.with_name("README.md"), flowers=short)
    print(short, *found.values(), sep="\n\n")


if __name__ == "__main__": main(arguments())
