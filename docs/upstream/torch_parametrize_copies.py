"""torch: taking a parametrization off a deep copy breaks the original module. Exits with 0 while that is so."""

import copy
import sys

import torch
from torch import nn
from torch.nn.utils import parametrize


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def main() -> int:
    original = nn.Linear(2, 2)
    parametrize.register_parametrization(original, "weight", Doubled())
    other = copy.deepcopy(original)
    print(f"the copy has the class object of the original: {type(other) is type(original)}")
    parametrize.remove_parametrizations(other, "weight")
    try:
        original(torch.zeros(1, 2))
    except AttributeError as error:
        print(f"after removing the copy's parametrization the original fails: {error}")
        return 0
    print("the original still works")
    return 1


if __name__ == "__main__":
    sys.exit(main())
