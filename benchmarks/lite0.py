"""What the benchmarks of chapters 09 and 10 judge by: features of EfficientNet-Lite0, on which nothing here is trained, and the KID between two sets. Not a command."""
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from zerodiff.data import replacing
from zerodiff.judge import load_lite0, picture_features

KEPT = Path("runs/lite0")                              # a file for each set of pictures, named by their bytes


@torch.no_grad()
def features(x: Tensor, size: int = 224) -> Tensor:
    "Features (B, 1280) of pictures in [-1, 1], seen at size x size; what a network leaves outside that range is clipped."
    x = x.clamp(-1, 1).contiguous()
    path = KEPT / f"{sha256(str((size, tuple(x.shape))).encode() + x.numpy().tobytes()).hexdigest()[:32]}.safetensors"
    if path.exists(): return load_file(path)["features"]
    lite0, parts = load_lite0(), tqdm(x.split(64), "features", leave=False, disable=None)
    found = torch.cat([picture_features(lite0, part, size) for part in parts])
    KEPT.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside: save_file({"features": found}, aside)
    return found


def mmd(a: Tensor, b: Tensor) -> float:
    "Squared maximum mean discrepancy of two sets of features, of any two sizes, under the kernel (x.y / d + 1)^3, without bias (1801.01401, eq. 4)."
    kernel = lambda u, v: (u @ v.T / u.shape[1] + 1) ** 3
    within = lambda u: (kernel(u, u).sum() - kernel(u, u).diag().sum()) / (len(u) * (len(u) - 1))
    a, b = a.double(), b.double()
    return (within(a) + within(b) - 2 * kernel(a, b).mean()).item()


def kid(a: Tensor, b: Tensor, folds: int = 10) -> tuple[float, float]:
    "KID of two sets of features, and its standard error by the jackknife over `a`."
    fold = torch.randperm(len(a), generator=torch.Generator().manual_seed(0)) % folds
    left = torch.tensor([mmd(a[fold != i], b) for i in range(folds)])
    return mmd(a, b), ((folds - 1) * left.var(correction=0)).sqrt().item()


def apart(a: Tensor, b: Tensor) -> Tensor:
    "One minus the cosine between the features of each pair, (B,): 0 for the same picture."
    return 1 - torch.cosine_similarity(a, b, dim=1)
