// What kernels are told about the profile P and the ring weights.  Plain C++.

#pragma once

#include <cstdint>

#include "radconv.h"

namespace radconv::cuda {

struct ProfileParams {
  const void* parameter;  // sigma (rings) or P (rings, buckets); null for families without
  DType parameter_type;
  const int* tables;

  Family family;
  int rings, buckets;
  double sigma_min, sigma_max;
  int radii, counts, centres;  // places in `tables`: of buckets, taps of buckets, of rings
  int shells, columns;         // shells of the kernel, and the place in `tables` of the bucket of each
};

// Ring weights: groups of outputs by inputs, in elements from one to the next; rings are neighbours.
struct WeightParams {
  const void* w;
  DType w_type;
  int64_t group, out, in;
};

}  // namespace radconv::cuda
