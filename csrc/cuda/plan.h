// From a convolution to launches: which kernel, tiles, residue classes, tables, shared memory.  Plain C++, no CUDA.

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/conv.h"
#include "cuda/prep.h"
#include "radconv.h"

namespace radconv::cuda {

// A convolution that the kernels can't do; what() is one sentence without a full stop.
struct Unservable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Plan {
  int k = 0, depth = 0;  // of the kernel, 0 for any size
  ConvParams conv{};
  PrepParams prep{};
  std::vector<int32_t> tables;  // to be copied to the device, 8-byte aligned
  int64_t workspace = 0;        // bytes, 256-byte aligned
  unsigned blocks = 0, prep_blocks = 0;
  int shared = 0, prep_shared = 0;
  DType dtype = DType::kFloat32;
};

// `most_shared`: bytes of shared memory that a block may have.  `transpose` as in cpu::conv.
Plan make_plan(const ConvShape& shape, const RingModel& model, bool transpose, const Strides& x, const Strides& y,
               int most_shared);

// Sizes of the compiled kernels, (k, depth), any size last.
struct KernelSize {
  int k, depth, functions;
};
const std::vector<KernelSize>& kernel_sizes();

// How channels come into shared memory when x is at this address.
Loader loader_of(const Plan& plan, const void* x);

}  // namespace radconv::cuda
