// The launchers of each kernel file: one pair of functions a kernel, and the table of the convolution's sizes.

#pragma once

#include <cuda_runtime_api.h>

#include "cuda/conv.h"
#include "cuda/prep.h"
#include "cuda_sizes.h"

namespace radconv::cuda {

// `prepare_*` makes a kernel known to the current device and allows it `shared` bytes; never under a stream capture.
cudaError_t prepare_prep(int shared);
cudaError_t launch_prep(unsigned blocks, int shared, cudaStream_t stream, const PrepParams& params);

// The convolution for kernels of one size, k wide and high and `depth` deep; 0 for any size.
struct ConvKernels {
  int k, depth;
  int functions;  // of the basis, that a step makes at most
  cudaError_t (*prepare)(DType type, int shared);
  cudaError_t (*launch)(DType type, unsigned blocks, int shared, cudaStream_t stream, const ConvParams& params);
};

// One for each pair of RADCONV_CUDA_SIZES, a list X(k, depth) X(k, depth) ... from CMakeLists.txt; 0, 0 is last.
#define RADCONV_DECLARE(K, DEPTH) extern const ConvKernels conv_##K##x##DEPTH;
#define X RADCONV_DECLARE
RADCONV_CUDA_SIZES
#undef X

}  // namespace radconv::cuda
