// The preparation of a depthwise convolution, one small launch before it: sigma -> P -> w P, in double, and the bias
// beside it.
//
// Every block makes P for itself, then a thread folds one value.  What bounds it is latency.

#include "cuda/depthwise.h"
#include "cuda/launches.h"
#include "cuda/primitives.cuh"
#include "cuda/profile.cuh"

namespace radconv::cuda {
namespace {

__global__ void __launch_bounds__(kFoldThreads, 2) fold(const __grid_constant__ FoldParams p) {
  const ProfileParams& profile = p.profile;
  const int rings = profile.rings, shells = profile.shells, rows = shells + 1;
  unsigned char* const memory = shared_memory();  // P: doubles (shells, rings)
  for (int i = threadIdx.x; i < rings * shells; i += kFoldThreads) {
    const int bucket = profile.tables[profile.columns + i / rings];
    store_shared<double>(memory + 8 * i, profile_at(profile, i % rings, bucket).value);
  }
  __syncthreads();
  const int64_t count = int64_t{p.chunks} * rows * p.chunk;
  for (int64_t i = int64_t{blockIdx.x} * kFoldThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kFoldThreads) {
    const int64_t row = i / p.chunk;
    const int shell = static_cast<int>(row % rows);
    const int64_t channel = row / rows * p.chunk + i % p.chunk;
    double sum = 0;
    if (channel < p.channels) {
      if (shell < shells)
        for (int ring = 0; ring < rings; ++ring)
          sum += as_float(p.weights.w, channel * p.weights.group + ring, p.weights.w_type) *
                 load_shared<double>(memory + 8 * (shell * rings + ring));
      else if (p.bias != nullptr)
        sum = as_float(p.bias, channel, p.bias_type);
    }
    p.values[i] = static_cast<float>(sum);
  }
}

}  // namespace

cudaError_t prepare_fold(int shared) { return prepare_kernel(fold, shared); }

cudaError_t launch_fold(unsigned blocks, int shared, cudaStream_t stream, const FoldParams& params) {
  return launch_kernel(fold, blocks, kFoldThreads, shared, stream, params);
}

}  // namespace radconv::cuda
