"""What the benchmarks judge by: features of EfficientNet-Lite0, kept in runs/features; chapter 12 measures by them. Not a command."""
import functools

import torch
from torch import Tensor
from zerodiff import metrics

extractor = functools.cache(metrics.lite0)


def features(x: Tensor, size: int = 224) -> Tensor:
    "Features (B, 1280) of pictures, seen at size x size; what a network leaves outside [-1, 1] is clipped."
    return metrics.features(extractor(size), x.clamp(-1, 1), "runs/features")


def apart(a: Tensor, b: Tensor) -> Tensor:
    "One minus the cosine between the features of each pair, (B,): 0 for the same picture."
    return 1 - torch.cosine_similarity(a, b, dim=1)
