// The launchers of each kernel file: one pair of functions a kernel, for some a pair for each size.

#pragma once

#include <cuda_runtime_api.h>

#include "cuda/conv.h"
#include "cuda/depthwise.h"
#include "cuda/gradient.h"
#include "cuda/prep.h"
#include "cuda_sizes.h"

namespace radconv::cuda {

// `prepare_*` makes a kernel known to the current device and allows it `shared` bytes; never under a stream capture.
cudaError_t prepare_prep(int shared);
cudaError_t prepare_finish(int shared);
cudaError_t launch_finish(unsigned blocks, int shared, cudaStream_t stream, const FinishParams& params);
cudaError_t launch_prep(unsigned blocks, int shared, cudaStream_t stream, const PrepParams& params);
cudaError_t prepare_fold(int shared);
cudaError_t launch_fold(unsigned blocks, int shared, cudaStream_t stream, const FoldParams& params);

// The kernels of one file for kernels of one size, k wide and high and `depth` deep; 0 for any size.
template <class Params>
struct SizedKernels {
  int k, depth;
  cudaError_t (*prepare)(Format format, int shared);
  cudaError_t (*launch)(Format format, unsigned blocks, int shared, cudaStream_t stream, const Params& params);
};

// One for each pair of RADCONV_CUDA_SIZES, a list X(k, depth) X(k, depth) ... from CMakeLists.txt; 0, 0 is last.
#define RADCONV_DECLARE(K, DEPTH)                                     \
  extern const SizedKernels<ConvParams> conv_##K##x##DEPTH;           \
  extern const SizedKernels<GradientParams> gradient_##K##x##DEPTH;   \
  extern const SizedKernels<DepthwiseParams> depthwise_##K##x##DEPTH; \
  extern const SizedKernels<DepthwiseGradientParams> depthwise_gradient_##K##x##DEPTH;
#define X RADCONV_DECLARE
RADCONV_CUDA_SIZES
#undef X

// The name that a file gives to its kernels of the size that it is compiled for.
#define RADCONV_NAMED(FILE, K, DEPTH) FILE##_##K##x##DEPTH
#define RADCONV_NAME(FILE, K, DEPTH) RADCONV_NAMED(FILE, K, DEPTH)

}  // namespace radconv::cuda
