// From a convolution to the launches of its weight gradient.  Plain C++, no CUDA.

#pragma once

#include <cstdint>
#include <vector>

#include "cuda/cost.h"
#include "cuda/gradient.h"

namespace radconv::cuda {

struct FinishPlan {
  FinishParams params{};
  unsigned blocks = 0;
  int shared = 0;
};

struct GradientPlan {
  KernelSize size{};
  Format format = Format::kFloat32;
  GradientParams gradient{};
  FinishPlan finish;
  std::vector<int32_t> tables;  // to be copied to the device, 8-byte aligned
  int64_t workspace = 0;        // bytes
  unsigned blocks = 0;
  int shared = 0;
};

// The gradient by w and by the parameter of a convolution of this shape, from x and the gradient of its output; the
// shape has no upsampling.  `transpose` and `exact` as in make_plan.
GradientPlan make_gradient_plan(const ConvShape& shape, const RingModel& model, bool transpose, bool exact,
                                const Strides& x, const Strides& grad, const Card& card);

// What finish.cu makes of `copies` of sums at these bytes of the workspace; it takes some more from `end` on, which
// moves.
struct Sums {
  int64_t sums, bias_sums, counter;
  int copies, shells, channel_pitch, merged;
};
FinishPlan make_finish_plan(const ConvShape& shape, const ProfileParams& profile, const WeightParams& weights,
                            const Sums& sums, int64_t& end);

}  // namespace radconv::cuda
