"""A VAE of Oxford-102 at 64x64 that keeps one number of 12, of 24 or of 48: 40 minutes of one CPU core each.

    python benchmarks/train_vae.py --latent 16      # 8x8x16 numbers of 64x64x3: 12 to 1; weights vae12
    python benchmarks/train_vae.py --latent 8       # 24 to 1; vae24
    python benchmarks/train_vae.py --latent 4       # 48 to 1, as in Stable Diffusion 1; vae48

Trains on *fit*, never on *held*, by the loss of chapter 09: half the log of the squared error, beta times the KL divergence, and the perceptual
distance by our own small classifier (benchmarks/train_perception.py). The log, a line for each hundred steps, goes to nbs/measured/09_vae12.csv
and so on. Ctrl-C keeps what there is.

    python benchmarks/train_vae.py --decoder zerodiff/weights/vae24.safetensors --steps 600 --lr 1e-3

goes on with the decoder alone. The encoder and so every latent stay as they are, and what was trained on the latents stays right.
"""
import argparse, csv, shlex, sys
from pathlib import Path

import torch
from zerodiff.data import flowers102, replacing
from zerodiff.training import load_network
from zerodiff.vae import VAE, Perception, VAELoss, VAETrainer

root = Path(__file__).parent.parent
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--latent", type=int, default=8, help="channels of the latent (8)")
p.add_argument("--decoder", type=Path, metavar="FILE", help="weights to begin with, of which only the decoder is trained")
p.add_argument("--steps", type=int, default=3500)
p.add_argument("--batch", type=int, default=24)
p.add_argument("--lr", type=float, default=2e-3)
p.add_argument("--beta", type=float, default=.1)
p.add_argument("--weight", type=float, default=1., help="of the perceptual distance (1)")
p.add_argument("--ema", type=float, default=.998)
p.add_argument("--out", type=Path, help="file of the weights (zerodiff/weights/vae12, 24, 48.safetensors)")
p.add_argument("--log", type=Path, help="file of the log (nbs/measured/09_vae12, 24, 48.csv)")
args = p.parse_args()

torch.manual_seed(0)
vae, fit = VAE(args.latent), flowers102(split="fit", size=64)
if args.decoder:
    vae = load_network(args.decoder, VAE)
    vae.decoder.requires_grad_(True)
name = f"vae{vae.ratio:g}"
out, log = args.out or root / "zerodiff" / "weights" / f"{name}.safetensors", args.log or root / "nbs" / "measured" / f"09_{name}{'_decoder' if args.decoder else ''}.csv"
about = dict(data="flowers102", split="fit", size=64, command=shlex.join(["python", "benchmarks/train_vae.py", *sys.argv[1:]]))
if args.decoder: about["begun_with"] = vae.info
trainer = VAETrainer(vae, fit, out, beta=args.beta, network=load_network("perception", Perception), weight=args.weight, info=about,
                     steps=args.steps, batch=args.batch, lr=args.lr, warmup=200, ema=args.ema)
try: trainer.fit()
finally:
    rows = [trainer.history[i:i + 100] for i in range(0, len(trainer.history), 100)]
    with replacing(log) as aside, open(aside, "w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["step", *VAELoss._fields])
        for i, some in enumerate(rows): writer.writerow([i * 100 + len(some), *(f"{sum(v) / len(some):.5f}" for v in zip(*some))])
