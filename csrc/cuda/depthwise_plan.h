// From a depthwise convolution, or its weight gradient, to launches.  Plain C++, no CUDA.

#pragma once

#include <cstdint>
#include <vector>

#include "cuda/cost.h"
#include "cuda/depthwise.h"
#include "cuda/geometry.h"
#include "cuda/gradient_plan.h"
#include "radconv.h"

namespace radconv::cuda {

struct DepthwisePlan {
  KernelSize size{};
  DepthwiseParams conv{};
  FoldParams fold{};
  std::vector<int32_t> tables;  // to be copied to the device, 8-byte aligned
  int64_t workspace = 0;        // bytes, 256-byte aligned
  unsigned blocks = 0, fold_blocks = 0;
  int shared = 0, fold_shared = 0;
  Format format = Format::kFloat32;
};

// The launch that sums over pixels, and what finish.cu makes of the sums.
struct DepthwiseGradientPlan {
  KernelSize size{};
  DepthwiseGradientParams conv{};
  FinishPlan finish;
  std::vector<int32_t> tables;
  int64_t workspace = 0;
  unsigned blocks = 0;
  int shared = 0;
  Format format = Format::kFloat32;
};

// Both throw Unservable.  `transpose` as in cpu::conv; float32 is full float32 whether `exact` or not, since nothing
// here is multiplied on matrix units.
DepthwisePlan make_depthwise_plan(const ConvShape& shape, const RingModel& model, bool transpose, bool exact,
                                  const Strides& x, const Strides& y, const Card& card);
DepthwiseGradientPlan make_depthwise_gradient_plan(const ConvShape& shape, const RingModel& model, bool transpose,
                                                   bool exact, const Strides& x, const Strides& grad, const Card& card);

}  // namespace radconv::cuda
