"""How much a training step keeps; for the benchmarks of chapter 10. Not a command."""
import torch


def kept(network, *inputs) -> float:
    "Megabytes that autograd keeps between the forward and the backward pass, each storage once, the weights aside."
    mine, found = {w.untyped_storage().data_ptr() for w in network.parameters()}, {}
    def note(v):
        storage = v.untyped_storage()
        if storage.data_ptr() not in mine: found[storage.data_ptr()] = storage.nbytes()
        return v
    with torch.autograd.graph.saved_tensors_hooks(note, lambda v: v): out = network(*inputs)
    assert out.requires_grad
    return sum(found.values()) / 1e6
