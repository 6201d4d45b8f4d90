"""A linear map as two low-rank factors."""

from typing import Any

from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """y = A (B x) + bias, with children ``B`` [r, in] and ``A`` [out, r], which carries the bias.

    Two plain ``nn.Linear`` children, so that LoRA, quantizers and exporters find what they know.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False, **factory: Any) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.B = nn.Linear(in_features, rank, bias=False, **factory)
        self.A = nn.Linear(rank, out_features, bias=bias, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.A(self.B(x))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
