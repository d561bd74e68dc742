// What the preparation is told: profile, factorisation, weights.  Plain C++.

#pragma once

#include <cstdint>

#include "radconv.h"

namespace radconv::cuda {

constexpr int kPrepThreads = 256;
constexpr int kMostPrepDoubles = 6144;  // of P and L: what fits the 48 KiB that every block has

struct PrepParams {
  const void* w;
  const void* parameter;  // sigma (rings) or P (rings, buckets); null for families without
  DType w_type, parameter_type;
  unsigned char* workspace;  // basis at 0, weights at `weights`
  const int* tables;

  Family family;
  int rings, buckets, rows;  // rows of the basis: min(rings, buckets)
  double sigma_min, sigma_max;
  int radii, counts, centres, columns;      // places in `tables`; columns: the bucket of each shell, or -1
  int shells, basis_pitch, slot, per_pass;  // function r of the basis lies at r / per_pass * slot + r % per_pass

  int64_t w_group, w_out, w_in;   // strides, in elements
  int channels, outputs, groups;  // the first two of one group
  int out_blocks, block_outputs, chunks, passes;
  int64_t weights;
  DType type;  // of the folded weights
};

}  // namespace radconv::cuda
