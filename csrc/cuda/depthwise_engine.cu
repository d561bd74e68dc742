#include "cuda/depthwise_engine.h"

#include "cuda/launches.h"
#include "cuda/running.h"

namespace radconv::cuda {
namespace {

const SizedKernels<DepthwiseParams>& kernels_of(const DepthwisePlan& plan) {
#define X(K, DEPTH) &depthwise_##K##x##DEPTH,
  return of_size<DepthwiseParams>({RADCONV_CUDA_SIZES}, plan.size);
#undef X
}

const SizedKernels<DepthwiseGradientParams>& kernels_of(const DepthwiseGradientPlan& plan) {
#define X(K, DEPTH) &depthwise_gradient_##K##x##DEPTH,
  return of_size<DepthwiseGradientParams>({RADCONV_CUDA_SIZES}, plan.size);
#undef X
}

// What depends on addresses: `out` is the tensor of the output's size.
void set_addresses(DepthwiseGeometry& g, const void* x, const void* out, const void* tables) {
  g.x = x;
  g.tables = static_cast<const int*>(tables);
  g.loader = loader_of(x, g.x_strides, 1, g.channels, g.item);
  int64_t strides[5];
  for (int i = 0; i < 5; ++i) strides[i] = g.out.strides[i] / g.item;
  g.out.words = loader_of(out, strides, 1, g.channels, g.item) != Loader::kScalar;
}

}  // namespace

void prepare(const DepthwisePlan& plan, int device) {
  expect_current(device);
  check(prepare_fold(kMostFoldShared), "loading the folding kernel");
  check(kernels_of(plan).prepare(plan.format, card(device).shared), "loading the depthwise kernel");
}

void prepare(const DepthwiseGradientPlan& plan, int device) {
  expect_current(device);
  check(kernels_of(plan).prepare(plan.format, card(device).shared), "loading the depthwise weight gradient kernel");
  check(prepare_finish(kMostFinishShared), "loading the kernel that finishes gradients");
}

void run(const DepthwisePlan& plan, int device, uintptr_t stream, const void* x, const Small& w, const Small& parameter,
         const Small& bias, void* y, void* workspace, const void* tables) {
  expect_current(device);
  const cudaStream_t queue = reinterpret_cast<cudaStream_t>(stream);
  FoldParams fold = plan.fold;
  set(fold.profile, fold.weights, w, parameter, tables);
  fold.bias = bias.data;
  fold.bias_type = bias.type;
  fold.values = static_cast<float*>(workspace);
  check(launch_fold(plan.fold_blocks, plan.fold_shared, queue, fold), "launching the folding");
  DepthwiseParams conv = plan.conv;
  set_addresses(conv, x, y, tables);
  conv.y = y;
  conv.values = static_cast<const unsigned char*>(workspace);
  check(kernels_of(plan).launch(plan.format, plan.blocks, plan.shared, queue, conv),
        "launching the depthwise convolution");
}

void run(const DepthwiseGradientPlan& plan, int device, uintptr_t stream, const void* x, const void* grad,
         const Small& w, const Small& parameter, const Gradients& gradients, void* workspace, const void* tables) {
  expect_current(device);
  DepthwiseGradientParams params = plan.conv;
  set_addresses(params, x, grad, tables);
  params.grad = grad;
  params.workspace = static_cast<unsigned char*>(workspace);
  check(kernels_of(plan).launch(plan.format, plan.blocks, plan.shared, reinterpret_cast<cudaStream_t>(stream), params),
        "launching the depthwise weight gradient");
  finish(plan.finish, stream, w, parameter, gradients, workspace, tables);
}

}  // namespace radconv::cuda
