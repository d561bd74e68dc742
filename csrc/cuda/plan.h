// From a convolution to launches: which kernel, tiles, residue classes, tables, shared memory.  Plain C++, no CUDA.

#pragma once

#include <cstdint>
#include <vector>

#include "cuda/conv.h"
#include "cuda/cost.h"
#include "cuda/geometry.h"
#include "cuda/prep.h"
#include "radconv.h"

namespace radconv::cuda {

// Functions of the basis that a step of a compiled kernel makes at most.
constexpr int functions_of(const KernelSize& size) { return size.k > 0 ? size.k / 2 + 1 : kTableFunctions; }

struct Plan {
  KernelSize size{};
  ConvParams conv{};
  PrepParams prep{};
  std::vector<int32_t> tables;          // to be copied to the device, 8-byte aligned
  int64_t workspace = 0;                // bytes, 256-byte aligned
  double clocks = 0, dense_clocks = 0;  // by cost.h: of this plan, and of the dense convolution
  unsigned blocks = 0, prep_blocks = 0;
  int shared = 0, prep_shared = 0;
  Format format = Format::kFloat32;
};

// `exact`: float32 is multiplied as such, not in TF32.  `transpose` as in cpu::conv.
Plan make_plan(const ConvShape& shape, const RingModel& model, bool transpose, bool exact, const Strides& x,
               const Strides& y, const Card& card);

}  // namespace radconv::cuda
