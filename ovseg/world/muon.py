"""Muon (Jordan et al. 2024), the optimiser of the matrices in the small CLIP's blocks.

torch.optim.Muon is not used: it orthogonalises in bfloat16, which most CPUs emulate, 5 to 80 times slower than float32.
"""

import itertools

import torch


class Muon(torch.optim.Optimizer):
    """Each step moves a matrix along the nearest orthogonal matrix to its momentum, times lr and sqrt(max(1, rows / columns)).
    params: 2-D tensors. momentum: share of the previous average that is kept."""

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            kept = group["momentum"]
            by_shape = sorted((p for p in group["params"] if p.grad is not None), key=lambda p: tuple(p.shape))
            for (rows, columns), matrices in itertools.groupby(by_shape, key=lambda p: tuple(p.shape)):
                matrices = list(matrices)
                for p in matrices:
                    self.state[p].setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 1 - kept)
                ahead = torch.stack([p.grad.lerp(self.state[p]["momentum"], kept) for p in matrices])  # Nesterov's; n, rows, columns
                for p, direction in zip(matrices, orthogonalised(ahead), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonalised(m, steps=5):
    """m (n, rows, columns) with all singular values brought near 1 (0.7 to 1.2), by Newton-Schulz steps of a quintic whose
    coefficients are those of Muon's public code."""
    tall = m.shape[1] > m.shape[2]
    x = m.mT if tall else m
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return x.mT if tall else x
