"""FlowerCLIP, from zero: an image tower and a text tower learn from pictures of Oxford-102 and sentences that are true of them.

    python benchmarks/train_clip.py

Trains on *fit*, never on *held*; makes zerodiff/weights/flowerclip.safetensors and nbs/measured/07_training.csv.
"""
import argparse, math, random, time
from copy import deepcopy
from pathlib import Path

import tables
import torch
import torch.nn.functional as F
from tqdm import tqdm
from zerodiff.attention import ViT
from zerodiff.clip import CLIP, FORM_OF, TextTower, holds, save_clip, vectors_of, words, write
from zerodiff.data import COLOURS, flowers102, to_float
from zerodiff.judge import flower_colour
from zerodiff.training import pick_device, pick_precision

root = Path(__file__).parent.parent
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--epochs", type=int, default=50)
p.add_argument("--batch", type=int, default=128)
p.add_argument("--lr", type=float, default=1e-3)
p.add_argument("--size", type=int, default=64)
p.add_argument("--patch", type=int, default=8)
p.add_argument("--channels", type=int, default=128)
p.add_argument("--depth", type=int, default=6)
p.add_argument("--dim", type=int, default=128)
p.add_argument("--weights", type=Path, default=root / "zerodiff" / "weights" / "flowerclip.safetensors")
p.add_argument("--log", type=Path, default=root / "nbs" / "measured" / "07_training.csv")
args = p.parse_args()
device = pick_device()
fast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=pick_precision(device) == torch.bfloat16)
fit, held = (flowers102(split=s, size=args.size) for s in ("fit", "held"))
colours, held_colours = (flower_colour(to_float(d.images)) for d in (fit, held))
names = [n.lower() for n in fit.classes]
forms = [FORM_OF.get(n, "") for n in names]
main = torch.where(colours.max(1).values > .4, colours.argmax(1), -1).tolist()
labels = fit.labels.tolist()
pen, rng = random.Random(0), torch.Generator().manual_seed(0)
describe = lambda i: write(pen, labels[i], names[labels[i]], main[i])
known = sorted(set(w for _ in range(4) for i in range(len(fit)) for w in words(describe(i).text)))


def varied(x):
    "Each picture cropped, turned a little, mirrored or not, lightened or darkened."
    draw = lambda low, high: low + (high - low) * torch.rand(len(x), generator=rng)
    zoom, angle, mirror = draw(.65, 1), draw(-.35, .35), draw(-1, 1).sign()
    x0, y0 = ((1 - zoom) * draw(-1, 1) for _ in range(2))
    rows = [torch.stack((zoom * mirror * angle.cos(), -zoom * angle.sin(), x0), 1), torch.stack((zoom * mirror * angle.sin(), zoom * angle.cos(), y0), 1)]
    x = F.grid_sample(x, F.affine_grid(torch.stack(rows, 1), x.shape, align_corners=False), padding_mode="reflection", align_corners=False)
    return ((x + 1) * draw(.85, 1.15)[:, None, None, None] - 1).clamp(-1, 1)


@torch.no_grad()
def scores(net):
    net.eval()
    with fast():
        images = torch.cat([net.encode_image(x.to(device)).cpu() for x in to_float(held.images).split(128)])
        classes, shades = (net.encode_text(t).cpu() for t in ([f"a photo of a {n}" for n in names], [f"a {c} flower" for c in COLOURS]))
    net.train()
    best, clear = (images @ classes.T).topk(5).indices == held.labels[:, None], held_colours.max(1).values > .6
    colour = ((images @ shades.T).argmax(1) == held_colours.argmax(1))[clear]
    return dict(top1=best[:, 0].float().mean().item(), top5=best.any(1).float().mean().item(), colour=colour.float().mean().item(), gap=(images.mean(0) - classes.mean(0)).norm().item())


@torch.no_grad()
def finish(net, rows):
    "Write the weights, with the means of the vectors of both kinds, and how the run went so far."
    net.eval()
    net.image_mean.copy_(vectors_of(net, fit).mean(0))
    said = [describe(i).text for i in range(len(fit))]
    net.text_mean.copy_(torch.cat([net.encode_text(said[i:i + 512]) for i in range(0, len(said), 512)]).mean(0))
    recipe = {k: v for k, v in vars(args).items() if k not in ("weights", "log")}
    save_clip(args.weights, net, data="flowers102", split="fit", pictures=len(fit), held=len(held), **recipe, **rows[-1])
    tables.write(args.log, rows)


torch.manual_seed(0)
image = ViT(args.dim, args.patch, args.channels, args.depth)
net = CLIP(image, TextTower(len(known), args.dim), known, args.size).to(device)
decay, plain = ([v for v in net.parameters() if (v.ndim > 1) == big] for big in (True, False))
optimizer = torch.optim.AdamW([dict(params=decay, weight_decay=.1), dict(params=plain, weight_decay=0.)], lr=args.lr, betas=(.9, .98))
average, a_round, rows, start = deepcopy(net), len(fit) // args.batch, [], time.process_time()
with tqdm(total=args.epochs * a_round, desc="FlowerCLIP") as bar:
    for epoch in range(args.epochs):
        order, losses = torch.randperm(len(fit), generator=rng), []
        for i in order[:a_round * args.batch].view(-1, args.batch):
            rate = args.lr * min(1, (bar.n + 1) / 200) * .5 * (1 + math.cos(math.pi * bar.n / bar.total))
            for group in optimizer.param_groups: group["lr"] = rate
            said = [describe(k) for k in i.tolist()]
            true = holds(said, fit.labels[i], colours[i], [forms[k] for k in fit.labels[i].tolist()]) | torch.eye(len(i), dtype=torch.bool)
            with fast(): loss = net(varied(to_float(fit.images[i])).to(device), [s.text for s in said], true.to(device))
            optimizer.zero_grad(); loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                for a, b in zip(average.parameters(), net.parameters()): a.lerp_(b, 1 - min(.99, (bar.n + 1) / (bar.n + 10)))
            bar.update()
        if epoch % 5 == 4 or epoch == args.epochs - 1:
            rows.append(dict(epoch=epoch + 1, cpu_seconds=round(time.process_time() - start), loss=f"{sum(losses) / len(losses):.4f}",
                             scale=f"{net.scale.item():.2f}", **{k: f"{v:.4f}" for k, v in scores(average).items()}))
            bar.set_postfix(top1=rows[-1]["top1"])
            finish(average, rows)
print(rows[-1])
