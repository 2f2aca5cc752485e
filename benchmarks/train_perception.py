"""A small classifier of Oxford-102, from zero, at 64x64: its features are what the VAEs of chapter 09 compare pictures by.

    python benchmarks/train_perception.py

Trains on *fit* (flips, shifts by up to 6 pixels, light and colour varied, label smoothing .1), never on *held*, which is tried once, at the end.
Some five minutes of two cores; the weights go to zerodiff/weights/perception.safetensors.
"""
import argparse, math, shlex, sys, time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from zerodiff.data import flowers102
from zerodiff.training import pick_device, pick_precision, save_network
from zerodiff.vae import Perception

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--epochs", type=int, default=25)
p.add_argument("--batch", type=int, default=64)
p.add_argument("--lr", type=float, default=2e-3)
p.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "zerodiff" / "weights" / "perception.safetensors")
args = p.parse_args()
device = pick_device()
fast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=pick_precision(device) == torch.bfloat16)
fit, held = flowers102(split="fit", size=64), flowers102(split="held", size=64)


def varied(x, rng):
    "Each picture mirrored or not, moved by up to 6 pixels (the edge repeated), and lighter or darker, a colour more or less."
    rand = lambda *shape: torch.rand(*shape, generator=rng)
    x = torch.where(rand(len(x), 1, 1, 1) < .5, x.flip(-1), x)
    big, place = F.pad(x, (6,) * 4, mode="replicate"), torch.randint(0, 13, (2, len(x), 1), generator=rng)
    rows, columns = (torch.arange(64) + place).unbind(0)
    x = big[torch.arange(len(x))[:, None, None, None], torch.arange(3)[:, None, None], rows[:, None, :, None], columns[:, None, None]]
    return x * (.8 + .4 * rand(len(x), 3, 1, 1)) + .2 * (rand(len(x), 1, 1, 1) - .5)


@torch.no_grad()
def scores(net):
    x, labels = held.batch(range(len(held)))
    with fast(): best = torch.cat([net(part.to(device)).float().cpu() for part in x.split(128)]).topk(5).indices
    hits = best == labels[:, None]
    return hits[:, 0].float().mean().item(), hits.any(1).float().mean().item()


torch.manual_seed(0)
net = Perception(len(fit.classes)).to(device, memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(.9, .99), weight_decay=.05)
rng, total, start = torch.Generator().manual_seed(0), args.epochs * (len(fit) // args.batch), time.perf_counter()
with tqdm(total=total, desc="perception", mininterval=10) as bar:
    for epoch in range(args.epochs):
        for i in torch.randperm(len(fit), generator=rng)[:len(fit) // args.batch * args.batch].view(-1, args.batch):
            optimizer.param_groups[0]["lr"] = args.lr * min(1, (bar.n + 1) / 200) * .5 * (1 + math.cos(math.pi * bar.n / total))
            x, labels = fit.batch(i)
            with fast(): logits = net(varied(x, rng).to(device, memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels.to(device), label_smoothing=.1)
            optimizer.zero_grad(); loss.backward(); optimizer.step()
            bar.update()
        bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}")
top1, top5 = scores(net.eval())
save_network(args.out, net, data="flowers102", split="fit", size=64, epochs=args.epochs, minutes=round((time.perf_counter() - start) / 60, 1),
             held=dict(top1=round(top1, 4), top5=round(top5, 4), n=len(held)), command=shlex.join(["python", "benchmarks/train_perception.py", *sys.argv[1:]]))
print(f"held: top-1 {top1:.1%}, top-5 {top5:.1%}, n {len(held)}; {sum(v.numel() for v in net.parameters()) / 1e6:.2f} M weights")
