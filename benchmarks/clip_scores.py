"""How well FlowerCLIP brings sentences and held photographs together: naming classes, colours and forms, and retrieval both ways.

    python benchmarks/clip_scores.py

Three kinds of sentences: of forms that training used; of forms that it never used (the mean of four), so that no such sentence was ever seen; and, by other hands,
class_descriptions.json, of which the first sentence is taken, with the flower's name or without it. A picture's true sentences are those whose class is its own
and whose colour covers a quarter of its flower. Beside each share stand its standard error (over pictures; over classes for the descriptions, ten of which share one; 1 / (n + 2) where every one is right) and
what drawing at random would reach. Writes nbs/measured/07_scores.csv.
"""
import argparse, json, random, re
from pathlib import Path

import tables
import torch
import torch.nn.functional as F
from tqdm import tqdm
from zerodiff.clip import FORM_OF, FORMS, SHADES, Said, holds, load_clip, vectors_of, words, write
from zerodiff.data import COLOURS, flowers102, to_float
from zerodiff.judge import flower_colour

root = Path(__file__).parent.parent
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--weights", default="flowerclip", help="a name among the shipped ones, or a file")
p.add_argument("--out", type=Path, default=root / "nbs" / "measured" / "07_scores.csv")
args = p.parse_args()
clip, held = load_clip(args.weights), flowers102(split="held", size=64)
names, labels = [n.lower() for n in held.classes], held.labels
rows, bar = [], tqdm(total=10, desc="FlowerCLIP on held")

TRAINED, NEW = ["a photo of a {}"], ["{} flower", "petals of the {}", "is this {}", "my neighbour grows {} behind the house"]
ORDINARY, SYNONYMS = list(COLOURS), ["cream", "golden", "apricot", "crimson", "magenta", "violet", "azure"]


def encode(texts): return torch.cat([clip.encode_text(texts[i:i + 256]).cpu() for i in range(0, len(texts), 256)])


def add(measure, sentences, hits, chance, groups=None):
    "A row: hits (n,) are shares of 0..1; those of one group are not independent."
    hits = hits.double()
    if groups is not None: hits = torch.stack([hits[groups == g].mean() for g in groups.unique()])
    error = hits.std() / len(hits) ** .5 if hits.std() > 0 else 1 / (len(hits) + 2)                     # all right: not "never wrong"
    rows.append(dict(measure=measure, sentences=sentences, n=len(hits), share=f"{hits.mean():.4f}", se=f"{error:.4f}", chance=f"{chance:.4f}"))


def drawn(k, n, right):
    "How likely one of `right` (tensor) among n is among k drawn at random, on average."
    return (1 - torch.stack([(n - right.double() - j).clamp(min=0) / (n - j) for j in range(k)]).prod(0)).mean().item()


def name_classes(sentences, sets):
    "Nearest of 102 sentences, for each set of them."
    hits = torch.stack([(vectors @ v.T).topk(5).indices == labels[:, None] for v in sets]).float()
    add("class among 1", sentences, hits[..., 0].mean(0), 1 / 102)
    add("class among 5", sentences, hits.sum(-1).mean(0), 5 / 102)


def search(sentences, said, true, groups=None):
    "Both ways: true (N, M) says which of M sentences is true of which picture."
    likeness = vectors @ encode(said).T
    for way, scores, right, by in (("picture", likeness.T, true.T, groups), ("sentence", likeness, true, None)):
        some = right.any(1)
        found = right.gather(1, scores.topk(10).indices)[some]
        for k in (1, 5, 10): add(f"{way} among {k}", sentences, found[:, :k].any(1), drawn(k, right.shape[1], right[some].sum(1)), by if by is None else by[some])


vectors, shares = vectors_of(clip, held).cpu(), flower_colour(to_float(held.images))
main, clear = torch.where(shares.max(1).values > .4, shares.argmax(1), -1), shares.max(1).values > .6
bar.update()

# --- classes
name_classes("forms of training", [encode([t.format(n) for n in names]) for t in TRAINED])
name_classes("forms never trained", [encode([t.format(n) for n in names]) for t in NEW])
bar.update()

lines = {k.lower().removesuffix("?"): v for k, v in json.loads((Path(__file__).parent / "class_descriptions.json").read_text()).items()}
lines = [[line.split(".")[0] for line in lines[n.removesuffix("?")]] for n in names]                    # 102 x 10
nameless = [[re.sub(re.escape(n.removesuffix("?")), "", line, flags=re.I) for line in some] for n, some in zip(names, lines)]
for sentences, text in (("descriptions", lines), ("descriptions, no name", nameless)):
    name_classes(sentences, [F.normalize(torch.stack([encode(some).mean(0) for some in text]), dim=1)])
    bar.update()

# --- colours and forms
for sentences, ways in (("forms of training", [[f"a {c} flower" for c in ORDINARY]]), ("forms never trained", [[t.format(c) for c in ORDINARY] for t in NEW]),
                        (", ".join(SYNONYMS), [[f"a {c} flower" for c in SYNONYMS]])):
    right = torch.stack([(vectors @ encode(way).T).argmax(1) == shares.argmax(1) for way in ways]).double().mean(0)
    add("colour", sentences, right[clear], 1 / 7)
    if sentences == "forms of training":
        for k, c in enumerate(COLOURS): add(f"colour, {c}", sentences, right[clear & (shares.argmax(1) == k)], 1 / 7)
add("colour", f"always {COLOURS[shares[clear].argmax(1).mode().values]}", (shares[clear].argmax(1) == shares[clear].argmax(1).mode().values), 1 / 7)
forms = [f for f in FORMS if f]
form = torch.tensor([forms.index(f) if (f := FORM_OF[names[k]]) else -1 for k in labels.tolist()])
add("form", "forms of training", ((vectors @ encode([f"a {f} flower" for f in forms]).T).argmax(1) == form)[form >= 0], 1 / len(forms))
bar.update()

# --- retrieval, each picture having a sentence
form_of, pen = [FORM_OF[names[k]] for k in labels.tolist()], random.Random(1)
trained = [write(pen, k, names[k], c) for k, c in zip(labels.tolist(), main.tolist())]
new = [Said(pen.choice(NEW).format(f"{COLOURS[c]} {names[k]}" if c >= 0 else names[k]), k, c, "") for k, c in zip(labels.tolist(), main.tolist())]
for sentences, said in (("forms of training", trained), ("forms never trained", new)):
    said = list({s.text: s for s in said}.values())
    search(sentences, [s.text for s in said], holds(said, labels, shares, form_of))
    bar.update()
of_class = torch.arange(102).repeat_interleave(10)
for sentences, text in (("descriptions", lines), ("descriptions, no name", nameless)):
    search(sentences, sum(text, []), labels[:, None] == of_class, of_class)
    bar.update()

# --- what the descriptions claim
colour_of = {w: k for k, c in enumerate(COLOURS) for w in SHADES[c] if w not in ("pale", "rose-coloured", "blue-violet")}
claimed = torch.zeros(1020, 7, dtype=torch.bool)
for i, line in enumerate(sum(nameless, [])): claimed[i, [colour_of[w] for w in words(line) if w in colour_of]] = True
wrong = (claimed.any(1) & ~claimed[:, shares.argmax(1)].T)[clear]                                      # (pictures, descriptions)
own = torch.stack([wrong[:, of_class == k].double().mean(1) for k in range(102)], 1).gather(1, labels[clear][:, None])[:, 0]
add("names wrong colours", "descriptions, of pictures of their own class", own, wrong.double().mean().item(), labels[clear])
bar.update(); bar.close()

tables.write(args.out, rows)
for r in rows: print(f"{r['measure']:>20} | {r['sentences']:<60} | {float(r['share']):6.1%} +- {float(r['se']):.1%} | chance {float(r['chance']):.1%} | n {r['n']}")
