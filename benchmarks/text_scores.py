"""Flowers by sentence: how often the judge sees the colour, the form and the class that were asked for, and what the gap costs.

    python benchmarks/text_scores.py                       # all of it: some minutes of two cores
    python benchmarks/text_scores.py --only colours --n 4  # one part, with fewer samples

Each sentence draws n samples; picture i of a sentence begins in the same noise in every row. "real" are the n pictures of Oxford-102 that FlowerCLIP finds
nearest to the sentence, judged in the same way (they need the data set: ZERODIFF_DATA). Writes nbs/measured/07b_<part>.csv.

    gap      how a sentence's vector is brought to where pictures' vectors lie, each way on the same sentences
    colours  12 colours x 6 forms
    names    102 names, beside class numbers, beside the vectors of held pictures
"""
import argparse
from pathlib import Path

import tables
import torch
import torch.nn.functional as F
from tqdm import tqdm
from zerodiff.clip import FORM_OF, across, vectors_of
from zerodiff.data import COLOURS, flowers102, make_grid, save_image, to_float
from zerodiff.judge import Judge
from zerodiff.pipeline import Pipeline

SHADES = dict(white="white", cream="white", yellow="yellow", golden="yellow", orange="orange", red="red", crimson="red", pink="pink",
              magenta="pink", purple="purple", violet="purple", blue="blue")
FORMS = ["", "daisy-like", "trumpet-shaped", "bell-shaped", "cup-shaped", "star-shaped"]
PLAIN = "white yellow orange red pink purple blue".split()

root = Path(__file__).parent.parent
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--weights", default="flowers64")
p.add_argument("--only", choices=["gap", "colours", "names"])
p.add_argument("--n", type=int, default=8, help="samples of each sentence (8)")
p.add_argument("--scale", type=float, default=3.)
p.add_argument("--steps", type=int, default=20)
p.add_argument("--seed", type=int, default=0)
p.add_argument("--out", type=Path, default=root / "nbs" / "measured")
p.add_argument("--grids", type=Path, help="a folder for pictures of the samples")
args = p.parse_args()
pipe, judge = Pipeline.load(args.weights, precision=None), Judge.load()
clip, network = pipe.encoder, pipe.denoiser.network
names = [c.lower() for c in pipe.classes]
form_of = [FORM_OF.get(n, "") for n in names]
try: real = {split: flowers102(split=split, size=64) for split in ("fit", "held")}
except (FileNotFoundError, RuntimeError, OSError) as e: raise SystemExit(f"Oxford-102 is not here: {e}")
images = torch.cat([real["fit"].images, real["held"].images])
vectors = {split: vectors_of(clip, d) for split, d in real.items()}
place = torch.cat(list(vectors.values()))


def judged(x):
    "The judge's colour (B,) and probabilities of classes (B, 102)."
    parts = x.split(64)
    found = [(judge.colour(part).argmax(1), judge.classes(part)) for part in tqdm(parts, "judging", leave=False)]
    return torch.cat([c for c, _ in found]), torch.cat([k for _, k in found])


def drawn(cond, scale=None): return pipe.draw(pipe.labels(cond, args.n), args.n, args.seed, steps=args.steps, scale=args.scale if scale is None else scale, progress=True)


def nearest(text): return to_float(images[(text @ place.T).topk(args.n).indices.flatten()])


def share(hits):
    "Share of hits (sentences, n) and its standard error, the sentences being the independent units."
    per = hits.float().view(-1, args.n).mean(1)
    return f"{per.mean():.4f}", f"{per.std() / len(per) ** .5 if len(per) > 1 else 0:.4f}"


def write(part, rows):
    tables.write(args.out / f"07b_{part}.csv", rows)
    for row in rows: print(row)


def keep(name, x, columns):
    if args.grids: save_image(make_grid(x, columns), args.grids / f"{name}.png")


def of_colour(found, words): return found == torch.tensor([COLOURS.index(SHADES[w]) for w in words]).repeat_interleave(args.n)


def of_class(probabilities, labels, k=1): return (probabilities.topk(k, 1).indices == labels.repeat_interleave(args.n)[:, None]).any(1)


def learned():
    "A linear map from sentences' vectors to pictures', by ridge regression on *fit* and fresh sentences about it."
    import random
    from zerodiff.clip import write as describe
    from zerodiff.judge import flower_colour
    pen, colours = random.Random(1), torch.cat([flower_colour(to_float(part)) for part in real["fit"].images.split(256)])
    main = torch.where(colours.max(1).values > .4, colours.argmax(1), -1).tolist()
    said = [describe(pen, l, names[l], c).text for l, c in zip(real["fit"].labels.tolist(), main)]
    t = torch.cat([clip.encode_text(said[i:i + 512]) for i in range(0, len(said), 512)])
    t1 = torch.cat([t, torch.ones(len(t), 1)], 1)
    w = torch.linalg.solve(t1.T @ t1 + 10 * torch.eye(t1.shape[1]), t1.T @ vectors["fit"])
    return lambda text: F.normalize(torch.cat([text, torch.ones(len(text), 1)], 1) @ w, dim=1)


def gap():
    "Ways over the gap, on seven plain colours and on 34 names."
    some = list(range(0, 102, 3))
    colours, classes = clip.encode_text([f"a {c} flower" for c in PLAIN]), clip.encode_text([f"a photo of a {names[i]}" for i in some])
    ridge = learned()
    ways = {"as it is": lambda t: t, "means moved": lambda t: across(clip, t), "linear map": ridge, "remembered": network.remembered}
    rows = []
    for way, carry in ways.items():
        text = carry(torch.cat([colours, classes]))
        x = drawn(network.condition(vectors=text))
        keep(f"gap_{way}".replace(" ", "_"), x, args.n)
        colour, probabilities = judged(x)
        k = len(PLAIN) * args.n
        a, b = share(of_colour(colour[:k], PLAIN)), share(of_class(probabilities[k:], torch.tensor(some)))
        rows.append(dict(way=way, colour=a[0], colour_se=a[1], class_top1=b[0], class_se=b[1], cosine=f"{(text @ place.T).amax(1).mean():.4f}"))
    write("gap", rows)


def colours():
    asked = [(shade, form) for shade in SHADES for form in FORMS]
    text = clip.encode_text([" ".join(f"a {shade} {form} flower".split()) for shade, form in asked])
    cond, rows = network.condition(vectors=network.remembered(text)), []
    for source, x in (("samples", drawn(cond)), ("real", nearest(text))):
        keep(f"colours_{source}", x, args.n * 2)
        colour, probabilities = judged(x)
        right = of_colour(colour, [shade for shade, _ in asked]).view(len(asked), args.n)
        seen = [form_of[i] for i in probabilities.argmax(1)]
        formed = torch.tensor([seen[i] == asked[i // args.n][1] for i in range(len(seen))]).view(len(asked), args.n)
        for k, (shade, form) in enumerate(asked):
            mix = torch.bincount(colour.view(len(asked), args.n)[k], minlength=len(COLOURS)).tolist()
            rows.append(dict(source=source, shade=shade, form=form, n=args.n, colour=f"{right[k].float().mean():.4f}", form_seen=f"{formed[k].float().mean():.4f}" if form else "",
                             **{c: m for c, m in zip(COLOURS, mix)}))
        shaped = torch.tensor([form != "" for _, form in asked])
        print(source, "colour", share(right), "plain words", share(right[[k for k, (s, _) in enumerate(asked) if s in PLAIN]]), "form", share(formed[shaped]))
    write("colours", rows)


def by_name():
    labels = torch.arange(len(names))
    text = clip.encode_text([f"a photo of a {n}" for n in names])
    one = torch.stack([vectors["held"][(real["held"].labels == k).nonzero()[0, 0]] for k in range(len(names))])
    sources = {"sentence": lambda: drawn(network.condition(vectors=network.remembered(text))), "class number": lambda: drawn(network.condition(labels)),
               "both": lambda: drawn(network.condition(labels, network.remembered(text))), "a held picture's vector": lambda: drawn(network.condition(vectors=one)),
               "real, by sentence": lambda: nearest(text)}
    rows = []
    for source, make in sources.items():
        x = make()
        keep(f"names_{source}".replace(" ", "_").replace(",", ""), x.view(len(names), args.n, *x.shape[1:])[:, 0], 12)
        _, probabilities = judged(x)
        (a, a_se), (b, b_se) = (share(of_class(probabilities, labels, k)) for k in (1, 5))
        rows.append(dict(source=source, n=len(x), top1=a, top1_se=a_se, top5=b, top5_se=b_se))
    rows.append(dict(source="chance", n="", top1=f"{1 / len(names):.4f}", top1_se="", top5=f"{5 / len(names):.4f}", top5_se=""))
    write("names", rows)


if args.grids: args.grids.mkdir(parents=True, exist_ok=True)
for part, make in dict(gap=gap, colours=colours, names=by_name).items():
    if args.only in (None, part): make()
