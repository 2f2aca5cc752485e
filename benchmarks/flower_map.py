"""The map of flowers: draws 20 flowers of each class, places them by their FlowerCLIP vectors, and writes the page that chapter 07c shows.

    python benchmarks/flower_map.py                        # all of it: some ten minutes of two cores, most of them for drawing the flowers
    python benchmarks/flower_map.py page                   # one part: page, or photographs
    python benchmarks/flower_map.py --weights flowers --per-class 8 --steps 8      # a quick trial

page         nbs/films/07c_map.html, with thumbnails, places and sentences in it, and the flowers' vectors: nbs/measured/07c_map.safetensors
photographs  how alike neighbours are among all 8,189 of Oxford-102, in space and in each plane, and the 20 photographs nearest to some
             sentences: nbs/measured/07c_neighbours.csv and 07c_words.csv (left out where the data set is not found: ZERODIFF_DATA)
"""
import argparse, json
from pathlib import Path

import tables
import torch
import torch.nn.functional as F
from tqdm import tqdm
from zerodiff.atlas import by_chance, kept, neighbours, pca, save_map, settle, tsne
from zerodiff.clip import across, digest, load_clip, vectors_of
from zerodiff.data import COLOURS, Pictures, flowers102, to_float, to_uint8
from zerodiff.judge import flower_colour
from zerodiff.pipeline import Pipeline
from zerodiff.training import write_tensors

NBS = Path(__file__).parent.parent / "nbs"
NAMED = ["sunflower", "oxeye daisy", "rose", "water lily", "passion flower", "foxglove", "snapdragon", "daffodil", "corn poppy", "hibiscus", "moon orchid", "bearded iris",
         "cyclamen", "frangipani", "bird of paradise", "globe thistle", "californian poppy", "morning glory", "bougainvillea", "petunia", "tiger lily", "grape hyacinth",
         "anthurium", "artichoke"]
SENTENCES = [f"{'an' if c[0] in 'aeiou' else 'a'} {c} flower" for c in COLOURS] + [f"{'an' if n[0] in 'aeiou' else 'a'} {n}" for n in NAMED]
ASKED = [f"{'an' if c[0] in 'aeiou' else 'a'} {c} flower" for c in [*COLOURS, "violet", "blue-violet", "green", "black"]] + ["a blue rose", "a blue sunflower", "a purple daffodil",
         "a flower that is not red"]

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", help="page, photographs (default: both)")
    p.add_argument("--weights", default="flowers64", help="name or path (flowers64)")
    p.add_argument("--per-class", type=int, default=20, help="flowers of each class (20)")
    p.add_argument("--steps", type=int, default=12, help="sampling steps (12)")
    p.add_argument("--scale", type=float, default=2., help="guidance weight (2)")
    p.add_argument("--pixels", type=int, default=48, help="largest side of a thumbnail (48)")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    unknown = set(args.parts) - {"page", "photographs"}
    if unknown: p.error(f"parts: got {', '.join(sorted(unknown))}, expected page or photographs")
    return args

def draw(args):
    "A picture of each class per_class times, each from a noise of its own; its label; and the names."
    pipe = Pipeline.load(args.weights, precision=None)
    classes = list(range(len(pipe.classes))) * args.per_class
    x = pipe.draw(pipe.labels(classes), len(classes), args.seed, steps=args.steps, scale=args.scale, progress=True)
    return x, torch.tensor(classes), pipe.classes

def page(args, clip):
    x, labels, classes = draw(args)
    v, text = vectors_of(clip, Pictures(to_uint8(x), labels)), across(clip, clip.encode_text(SENTENCES)).cpu()
    size, flat, plane = min(args.pixels, x.shape[-1]), tsne(v), pca(v)
    small = F.interpolate(x, (size, size), mode="bilinear", antialias=True).clamp(-1, 1)
    title = f"A map of {len(x):,} generated flowers"
    save_map(NBS / "films" / "07c_map.html", small, {"t-SNE": flat, "PCA": plane(v)}, [classes[i] for i in labels], SENTENCES,
             {"t-SNE": settle(text, v, flat), "PCA": plane(text)}, (v @ text.T).argmax(1), title)
    about = dict(what="FlowerCLIP vectors of the flowers in 07c_map.html, in their order", encoder=digest(clip), classes=classes) | {k: v for k, v in vars(args).items() if k != "parts"}
    write_tensors(NBS / "measured" / "07c_map.safetensors", dict(vectors=v.half(), labels=labels.short(), colours=flower_colour(x).half()), json.dumps(dict(format=1, info=about)))
    print(f"{len(x)} flowers: {(NBS / 'films' / '07c_map.html').stat().st_size / 1e6:.2f} MB")

def write(name, rows):
    tables.write(NBS / "measured" / name, rows)
    for row in rows: print(row)

def photographs(clip):
    try: sets = [flowers102(split=s, size=clip.size, download=False) for s in ("fit", "held")]
    except FileNotFoundError as e: return print(f"photographs: left out ({e})")
    images, labels, v = torch.cat([s.images for s in sets]), torch.cat([s.labels for s in sets]), torch.cat([vectors_of(clip, s) for s in sets])
    shares = torch.cat([flower_colour(to_float(part)) for part in tqdm(images.split(256), "colours")])
    colours, true, held = shares.argmax(1), neighbours(v), torch.arange(len(v)) >= len(sets[0])
    spaces = {"pixels": F.interpolate(to_float(images), (32, 32), mode="area").flatten(1), "vectors": v, "PCA": pca(v)(v), "t-SNE": tsne(v)}
    rows = []
    for space, x in tqdm(spaces.items(), "planes"):
        near = true if space == "vectors" else neighbours(x)
        for some, who in (("all", held | True), ("held", held)):           # held: they too look for neighbours among all
            rows.append(dict(space=space, of=some, n=int(who.sum()), kept=f"{kept(near[who], true[who]):.4f}", label=f"{(labels[near] == labels[:, None])[who].float().mean():.4f}",
                             colour=f"{(colours[near] == colours[:, None])[who].float().mean():.4f}"))
    rows.append(dict(space="chance", of="all", n=len(v), kept=f"{10 / (len(v) - 1):.4f}", label=f"{by_chance(labels):.4f}", colour=f"{by_chance(colours):.4f}"))
    write("07c_neighbours.csv", rows)
    plane, rows = pca(v), []
    def row(sentence, among):
        counts, most = torch.bincount(colours[among], minlength=len(COLOURS)).tolist(), labels[among].mode().values
        return dict(sentence=sentence, **dict(zip(COLOURS, counts)), most=sets[0].classes[most].lower(), of_it=int((labels[among] == most).sum()))
    for sentence, q in zip(ASKED, across(clip, clip.encode_text(ASKED)).cpu()):
        x, y = plane(q).tolist()
        cosines = {f"cos_{c}": f"{(v[colours == k] @ q).mean():.3f}" for k, c in enumerate(COLOURS)}
        rows.append(row(sentence, (v @ q).topk(20).indices) | cosines | dict(x=f"{x:.3f}", y=f"{y:.3f}"))        # the largest cosine is the smallest distance
    write("07c_words.csv", rows + [row("all photographs", slice(None))])

def main(args):
    clip, parts = load_clip(), args.parts or ["page", "photographs"]
    if "page" in parts: page(args, clip)
    if "photographs" in parts: photographs(clip)

if __name__ == "__main__": main(arguments())
