"""Two threads, as the figures in README.md were measured; RADCONV_BENCH_THREADS changes that."""

import os

import torch

torch.set_num_threads(int(os.environ.get("RADCONV_BENCH_THREADS", "2")))
