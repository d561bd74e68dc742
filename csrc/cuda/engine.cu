#include "cuda/engine.h"

#include <cuda_runtime_api.h>

#include "cuda/launches.h"
#include "cuda/running.h"

namespace radconv::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "asking for the device's properties");
  return value;
}

const SizedKernels<ConvParams>& kernels_of(const Plan& plan) {
#define X(K, DEPTH) &conv_##K##x##DEPTH,
  return of_size<ConvParams>({RADCONV_CUDA_SIZES}, plan.size);
#undef X
}

const SizedKernels<GradientParams>& kernels_of(const GradientPlan& plan) {
#define X(K, DEPTH) &gradient_##K##x##DEPTH,
  return of_size<GradientParams>({RADCONV_CUDA_SIZES}, plan.size);
#undef X
}

}  // namespace

Card card(int device) {
  return {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          attribute(cudaDevAttrMultiProcessorCount, device)};
}

std::string why_not(int device) {
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  const std::string card = "compute capability " + std::to_string(major) + "." + std::to_string(minor);
  if (major < 8) return "needs compute capability 8.0, this card has " + card.substr(card.size() - 3);
  expect_current(device);
  const cudaError_t error = prepare_prep(8 * kMostPrepDoubles);
  if (error == cudaSuccess) return "";
  (void)cudaGetLastError();
  return "the kernels that were built don't run on this card of " + card + ": " + cudaGetErrorString(error);
}

void prepare(const Plan& plan, int device) {
  expect_current(device);
  check(prepare_prep(8 * kMostPrepDoubles), "loading the preparation kernel");
  // as much as there is: the limit is the kernel's, and other plans may need more
  check(kernels_of(plan).prepare(plan.format, card(device).shared), "loading the convolution kernel");
}

void prepare(const GradientPlan& plan, int device) {
  expect_current(device);
  check(kernels_of(plan).prepare(plan.format, card(device).shared), "loading the weight gradient kernel");
  check(prepare_finish(kMostFinishShared), "loading the kernel that finishes gradients");
}

void run(const Plan& plan, int device, uintptr_t stream, const void* x, const Small& w, const Small& parameter,
         const Small& bias, void* y, void* workspace, const void* tables) {
  expect_current(device);
  const cudaStream_t queue = reinterpret_cast<cudaStream_t>(stream);
  PrepParams prep = plan.prep;
  set(prep.profile, prep.weights, w, parameter, tables);
  prep.workspace = static_cast<unsigned char*>(workspace);
  check(launch_prep(plan.prep_blocks, plan.prep_shared, queue, prep), "launching the preparation");
  ConvParams conv = plan.conv;
  conv.x = x;
  conv.y = y;
  conv.bias = bias.data;
  conv.bias_type = bias.type;
  conv.wide_stores =
      loader_of(y, conv.y_strides, conv.groups, conv.outputs, conv.item) == Loader::kVector && conv.outputs % 8 == 0;
  conv.workspace = prep.workspace;
  conv.tables = prep.profile.tables;
  conv.loader = loader_of(x, conv.x_strides, conv.groups, conv.channels, conv.item);
  check(kernels_of(plan).launch(plan.format, plan.blocks, plan.shared, queue, conv), "launching the convolution");
}

void run(const GradientPlan& plan, int device, uintptr_t stream, const void* x, const void* grad, const Small& w,
         const Small& parameter, const Gradients& gradients, void* workspace, const void* tables) {
  expect_current(device);
  GradientParams params = plan.gradient;
  params.x = x;
  params.grad = grad;
  params.tables = static_cast<const int*>(tables);
  params.workspace = static_cast<unsigned char*>(workspace);
  params.wants_bias = gradients.bias != nullptr;
  params.loader = loader_of(x, params.x_strides, params.groups, params.channels, params.item);
  params.grad_loader = loader_of(grad, params.grad_strides, params.groups, params.outputs, params.item);
  check(kernels_of(plan).launch(plan.format, plan.blocks, plan.shared, reinterpret_cast<cudaStream_t>(stream), params),
        "launching the weight gradient");
  finish(plan.finish, stream, w, parameter, gradients, workspace, tables);
}

void finish(const FinishPlan& plan, uintptr_t stream, const Small& w, const Small& parameter,
            const Gradients& gradients, void* workspace, const void* tables) {
  FinishParams params = plan.params;
  set(params.profile, params.weights, w, parameter, tables);
  params.workspace = static_cast<unsigned char*>(workspace);
  params.grad_w = gradients.w;
  params.grad_parameter = gradients.parameter;
  params.grad_bias = gradients.bias;
  check(launch_finish(plan.blocks, plan.shared, reinterpret_cast<cudaStream_t>(stream), params),
        "launching the kernel that finishes gradients");
}

}  // namespace radconv::cuda
