// Running plans: the only place that launches.  The device is the current one.

#pragma once

#include <cstdint>
#include <string>

#include "cuda/gradient_plan.h"
#include "cuda/plan.h"

namespace radconv::cuda {

struct Small {  // a small tensor of any type; null where there is none
  const void* data;
  DType type;
};

// What the planner asks of a device.  Throws std::runtime_error.
Card card(int device);

// One sentence, without a full stop, why the kernels in this library can't run on the device; empty when they can.
std::string why_not(int device);

// Makes the plan's kernels known to the device.  Throws std::runtime_error.  Not under a stream capture.
void prepare(const Plan& plan, int device);

void prepare(const GradientPlan& plan, int device);

// Two launches, on a stream of the device.  Throws std::runtime_error when one is refused.
void run(const Plan& plan, int device, uintptr_t stream, const void* x, const Small& w, const Small& parameter,
         const Small& bias, void* y, void* workspace, const void* tables);

// What finish.cu writes; null where not wanted.  In the types of what they are gradients of, but grad_bias in float32.
struct Gradients {
  void *w, *parameter, *bias;
};

void run(const GradientPlan& plan, int device, uintptr_t stream, const void* x, const void* grad, const Small& w,
         const Small& parameter, const Gradients& gradients, void* workspace, const void* tables);

// The launch behind any weight gradient.
void finish(const FinishPlan& plan, uintptr_t stream, const Small& w, const Small& parameter,
            const Gradients& gradients, void* workspace, const void* tables);

}  // namespace radconv::cuda
