"""A small vision transformer learns to name the 102 classes of Oxford-102, from zero, at 32x32: some minutes on one core.

    python benchmarks/train_vit.py

Trains on *fit* (flips, shifts by up to 3 pixels, label smoothing .1), never on *held*, and tries *held* as it goes: nbs/measured/08_vit.csv
(epoch, loss, top-1 and top-5 on held), the last row being what is reported; nothing was chosen by it. The weights, in float16, go to
nbs/measured/08_vit.safetensors with the network's configuration in the header; chapter 08 looks through their eyes.
"""
import argparse, json, math, time
from pathlib import Path

import tables
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm import tqdm
from zerodiff.attention import ViT
from zerodiff.data import flowers102, replacing
from zerodiff.training import pick_device, pick_precision

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--epochs", type=int, default=25)
p.add_argument("--channels", type=int, default=96)
p.add_argument("--depth", type=int, default=4)
p.add_argument("--batch", type=int, default=64)
p.add_argument("--lr", type=float, default=1e-3)
p.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "nbs" / "measured")
args = p.parse_args()
device = pick_device()
fast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=pick_precision(device) == torch.bfloat16)
fit, held = flowers102(split="fit", size=32), flowers102(split="held", size=32)


def varied(x, rng):
    "Each picture mirrored or not, and moved by up to 3 pixels, the edge repeated."
    x = torch.where(torch.rand(len(x), 1, 1, 1, generator=rng) < .5, x.flip(-1), x)
    big, place = F.pad(x, (3,) * 4, mode="replicate"), torch.randint(0, 7, (2, len(x), 1), generator=rng)
    rows, columns = (torch.arange(32) + place).unbind(0)
    return big[torch.arange(len(x))[:, None, None, None], torch.arange(3)[:, None, None], rows[:, None, :, None], columns[:, None, None]]


@torch.no_grad()
def scores(net):
    x, labels = held.batch(range(len(held)))
    with fast(): best = torch.cat([net(part.to(device)).float().cpu() for part in x.split(128)]).topk(5).indices
    hits = best == labels[:, None]
    return hits[:, 0].float().mean().item(), hits.any(1).float().mean().item()


torch.manual_seed(0)
net = ViT(102, patch=4, channels=args.channels, depth=args.depth).to(device)
optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(.9, .99), weight_decay=.05)
rng, total, rows, start = torch.Generator().manual_seed(0), args.epochs * (len(fit) // args.batch), [], time.process_time()
with tqdm(total=total, desc="ViT") as bar:
    for epoch in range(args.epochs):
        order, losses = torch.randperm(len(fit), generator=rng), []
        for i in order[:len(fit) // args.batch * args.batch].view(-1, args.batch):
            optimizer.param_groups[0]["lr"] = args.lr * min(1, (bar.n + 1) / 200) * .5 * (1 + math.cos(math.pi * bar.n / total))
            x, labels = fit.batch(i)
            with fast(): logits = net(varied(x, rng).to(device))
            loss = F.cross_entropy(logits.float(), labels.to(device), label_smoothing=.1)
            optimizer.zero_grad(); loss.backward(); optimizer.step()
            losses.append(loss.item())
            bar.update()
        top1, top5 = scores(net)
        rows.append(dict(epoch=epoch + 1, cpu_seconds=round(time.process_time() - start), loss=f"{sum(losses) / len(losses):.4f}", top1=f"{top1:.4f}", top5=f"{top5:.4f}"))
        bar.set_postfix(top1=f"{top1:.3f}", top5=f"{top5:.3f}")
tables.write(args.out / "08_vit.csv", rows)
header = dict(network=net.config, classes=fit.classes, trained_on="Oxford-102, fit", pictures=len(fit), held=len(held), **{k: v for k, v in vars(args).items() if k != "out"}, **rows[-1])
with replacing(args.out / "08_vit.safetensors") as aside:
    save_file({k: v.half().cpu().contiguous() for k, v in net.state_dict().items()}, aside, metadata={"zerodiff": json.dumps(header)})
print(rows[-1], f"{len(fit)} fit, {len(held)} held, {sum(v.numel() for v in net.parameters())} weights")
