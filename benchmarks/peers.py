"""The networks that race: ours as shipped, and the peers' own at equal parameters or at equal FLOPs a picture."""
import itertools, statistics
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zerodiff.conditioning import ClassConditional
from zerodiff.unet import UNet


@dataclass
class Racer:
    name: str
    network: nn.Module
    call: object                     # (network, x, t) -> the network's output

    def __post_init__(self):
        self.parameters = sum(p.numel() for p in self.network.parameters())

    def flops(self, size):
        "Floating-point operations of one forward pass of one picture (2 a multiply-add)."
        device = next(self.network.parameters()).device
        x, t = torch.randn(1, 3, size, size, device=device), torch.zeros(1, dtype=torch.long, device=device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter: self.call(self.network.eval(), x, t)
        self.network.train()
        return counter.get_total_flops()


def ours(size):
    net = ClassConditional(UNet(128, (1, 2, 2), cond_dim=256, patch=max(1, size // 16)), 102)
    return Racer("zerodiff", net, lambda n, x, t: n(x, t, torch.zeros_like(t)))


def lucidrains(dim):
    from denoising_diffusion_pytorch import Unet
    return Racer("denoising-diffusion-pytorch", Unet(dim=dim, dim_mults=(1, 2, 4), flash_attn=False), lambda n, x, t: n(x, t))


def diffusers(width, size=32, classes=None):
    from diffusers import UNet2DModel
    net = UNet2DModel(sample_size=size, block_out_channels=(width, 2 * width, 2 * width), layers_per_block=2, norm_num_groups=8, num_class_embeds=classes,
                      down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"))
    return Racer("diffusers", net, lambda n, x, t: n(x, t, torch.zeros_like(t) if classes else None).sample)


def matched(make, goal, measure, widths=range(16, 200, 8)):
    "The racer of `make(width)` whose `measure` comes nearest to `goal`."
    found = {}
    with torch.device("meta"):                           # shapes only: nothing is computed
        for width in widths:
            found[width] = measure(make(width))
            if found[width] > 1.5 * goal: break
    return make(min(found, key=lambda width: abs(found[width] - goal)))


def field(size, equal):
    "Ours and the two peers, matched to ours by `equal`: 'parameters' or 'flops'."
    us = ours(size)
    measure = {"parameters": lambda r: r.parameters, "flops": lambda r: r.flops(size)}[equal]
    goal = measure(us)
    return [us, matched(lucidrains, goal, measure), matched(lambda w: diffusers(w, size), goal, measure)]


def matmul_peak(dtype, n=2048, tries=8):
    "The machine's best rate at n x n matrix products, FLOP/s, as a matrix product or as a 1x1 convolution."
    import time
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    x, conv = a.reshape(1, n, n // 32, 32).to(memory_format=torch.channels_last), nn.Conv2d(n, n, 1, bias=False).to(device, dtype)
    best = float("inf")
    with torch.no_grad():
        for f in (lambda: a @ b, lambda: conv(x)):
            for _ in range(tries):
                start = time.perf_counter(); f()
                if device == "cuda": torch.cuda.synchronize()
                best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def ways(fp32=False):
    "Every precision and memory layout that a side may choose from."
    return list(itertools.product([torch.float32] if fp32 else [torch.float32, torch.bfloat16], [torch.contiguous_format, torch.channels_last]))


def row(racer, flops, way, *measured):
    "A line of a table: the network, how it ran, and what was measured."
    dtype, layout = way
    return " ".join(f"| {cell}" for cell in (racer.name, f"{racer.parameters / 1e6:.1f} M", f"{flops / 1e9:.2f}", str(dtype)[6:],
                                             "channels_last" if layout == torch.channels_last else "contiguous", *measured)) + " |"


def faster(ours, theirs):
    "How many times as long theirs took, by the median of turns; nothing where both are one."
    return "" if theirs is ours else f"{statistics.median(b / a for a, b in zip(ours, theirs)):.2f}x"


def machine():
    "What this is measured on, in a line."
    import platform
    if torch.cuda.is_available(): return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor()) if platform.system() == "Linux" else platform.processor()
    return f"{torch.get_num_threads()} cores of {name} ({torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}"
