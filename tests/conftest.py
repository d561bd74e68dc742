"""Two threads whatever the machine, so that timings and sums are comparable."""

import torch

torch.set_num_threads(2)
