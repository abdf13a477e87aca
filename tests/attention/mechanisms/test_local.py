"""Local attention."""

import torch
from contract import Contract, softmax_map


class TestLocal(Contract):
    name = "local"
    needs_positions = True
    variants = ({"local_window": 1}, {"local_window": 2}, {})
    model_options = {"local_window": 2}  # noqa: RUF012
    # A key taken out of the middle would bring its neighbours nearer to each other: padding stands at the ends.
    removed = ([0], [4], [0, 3, 4])

    def weights(self, mechanism, q, k, x, bias, visible):
        offset = k.size(2) - q.size(2)
        near = torch.zeros(q.size(2), k.size(2), dtype=torch.bool)
        for i in range(q.size(2)):
            near[i, max(0, offset + i - mechanism.reach) : offset + i + mechanism.reach + 1] = True
        return softmax_map(q, k, bias, visible & near)
