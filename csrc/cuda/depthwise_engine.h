// Running plans of depthwise convolutions; as engine.h.

#pragma once

#include <cstdint>

#include "cuda/depthwise_plan.h"
#include "cuda/engine.h"

namespace radconv::cuda {

void prepare(const DepthwisePlan& plan, int device);
void prepare(const DepthwiseGradientPlan& plan, int device);

// Two launches.
void run(const DepthwisePlan& plan, int device, uintptr_t stream, const void* x, const Small& w, const Small& parameter,
         const Small& bias, void* y, void* workspace, const void* tables);

// Two launches.
void run(const DepthwiseGradientPlan& plan, int device, uintptr_t stream, const void* x, const void* grad,
         const Small& w, const Small& parameter, const Gradients& gradients, void* workspace, const void* tables);

}  // namespace radconv::cuda
