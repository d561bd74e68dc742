// What the preparation is told: profile, factorisation, weights.  Plain C++.

#pragma once

#include <cstdint>

#include "cuda/conv.h"
#include "cuda/profile_params.h"

namespace radconv::cuda {

constexpr int kPrepThreads = 256;
constexpr int kMostPrepDoubles = 6144;  // of P and L: what fits the 48 KiB that every block has

struct PrepParams {
  ProfileParams profile;
  WeightParams weights;
  unsigned char* workspace;  // basis at 0, folded weights at `folded`

  int rows;                         // of the basis: min(rings, buckets)
  int basis_pitch, slot, per_pass;  // function r of the basis lies at r / per_pass * slot + r % per_pass

  // Channels and outputs of one group of the convolution, which may be `merged` groups of the weights.
  int channels, outputs, groups, merged;
  int out_blocks, block_outputs, chunks, passes;
  int64_t folded;
  Format format;
};

}  // namespace radconv::cuda
