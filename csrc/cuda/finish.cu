// From sums over pixels to gradients, one small launch behind the weight gradient's: copies are added up in order, then
// grad_w = S P^T, grad_P[i, s] = sum of w[o, c, i] S[o, c, s], by chain rule the gradient of sigma, and that of the
// bias.
//
// A block takes (output, channel) pairs some at a time: first one or more threads for each sum of a pair, whose copies
// they add, then one for each ring.  The profile's gradient is a sum over all pairs: each block leaves its share, and
// the one that is done last adds the shares up, in the blocks' order.  What bounds it is the latency of reading the
// copies.

#include "cuda/gradient.h"
#include "cuda/launches.h"
#include "cuda/primitives.cuh"
#include "cuda/profile.cuh"

namespace radconv::cuda {
namespace {

constexpr int kWarps = kFinishThreads / 32;

__device__ __forceinline__ int bucket_of(const FinishParams& p, int shell) {
  return p.profile.tables[p.profile.columns + shell];
}

__device__ __forceinline__ float copies_summed(const float* from, int copies, int64_t step) {
  float sum = 0;
#pragma unroll 8
  for (int copy = 0; copy < copies; ++copy) sum += from[copy * step];
  return sum;
}

// An output by an input channel of the weights: where its ring weights begin, and where its sums lie in one copy.
struct Pair {
  int64_t weights, sums;
};

__device__ __forceinline__ Pair pair_of(const FinishParams& p, int64_t pair) {
  const int outputs = p.outputs / p.merged, channels = p.channels / p.merged;
  const int channel = static_cast<int>(pair % channels);
  pair /= channels;
  const int output = static_cast<int>(pair % outputs);
  const int64_t group = pair / outputs;
  const int within = static_cast<int>(group % p.merged);
  return {group * p.weights.group + output * p.weights.out + channel * p.weights.in,
          (group / p.merged * p.shells * p.outputs + within * outputs + output) * p.channel_pitch + within * channels +
              channel};
}

__global__ void __launch_bounds__(kFinishThreads, 1) finish(const __grid_constant__ FinishParams p) {
  const ProfileParams& profile = p.profile;
  const int rings = profile.rings, shells = p.shells, together = p.pairs_together;
  unsigned char* const memory = shared_memory();
  unsigned char* const value_at = memory;                     // floats (rings, shells)
  unsigned char* const sum_at = memory + 4 * rings * shells;  // floats (shells, together)
  const int outputs = p.outputs * p.groups;
  const int64_t pairs = int64_t{outputs} / p.merged * p.channels;
  const int64_t copy = int64_t{p.groups} * shells * p.outputs * p.channel_pitch;
  const float* const sums = reinterpret_cast<const float*>(p.workspace + p.sums);
  double* const shares = reinterpret_cast<double*>(p.workspace + p.shares);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int sums_together = shells * together, ways = finish_ways(sums_together);

  for (int i = threadIdx.x; i < rings * shells; i += kFinishThreads)
    store_shared<float>(value_at + 4 * i,
                        static_cast<float>(profile_at(profile, i / shells, bucket_of(p, i % shells)).value));
  if (p.grad_bias != nullptr)
    for (int o = blockIdx.x * kFinishThreads + threadIdx.x; o < outputs; o += gridDim.x * kFinishThreads)
      static_cast<float*>(p.grad_bias)[o] =
          copies_summed(reinterpret_cast<const float*>(p.workspace + p.bias_sums) + o, p.copies, outputs);

  const int64_t begin = blockIdx.x * int64_t{together}, step = gridDim.x * int64_t{together};
  for (int64_t first = begin; first < pairs; first += step) {
    const int here = static_cast<int>(min(int64_t{together}, pairs - first));
    __syncthreads();  // the sums of the last ones have been read
    // few sums: several threads for each, with their shares of the copies
    for (int i = threadIdx.x; i < sums_together * ways; i += kFinishThreads) {
      const int way = i / sums_together, shell = i % sums_together / together, pair = i % together;
      const int begin_copy = p.copies * way / ways, end_copy = p.copies * (way + 1) / ways;
      if (pair < here)
        store_shared<float>(sum_at + 4 * i,
                            copies_summed(sums + pair_of(p, first + pair).sums +
                                              int64_t{shell} * p.outputs * p.channel_pitch + begin_copy * copy,
                                          end_copy - begin_copy, copy));
    }
    __syncthreads();
    if (ways > 1) {
      for (int i = threadIdx.x; i < sums_together; i += kFinishThreads) {
        float sum = 0;
        for (int way = 0; way < ways; ++way) sum += load_shared<float>(sum_at + 4 * (way * sums_together + i));
        store_shared<float>(sum_at + 4 * i, sum);
      }
      __syncthreads();
    }
    const auto sum_of = [&](int shell, int pair) { return load_shared<float>(sum_at + 4 * (shell * together + pair)); };
    if (p.grad_w != nullptr)
      for (int i = threadIdx.x; i < here * rings; i += kFinishThreads) {
        const int pair = i / rings, ring = i % rings;
        double sum = 0;
        for (int shell = 0; shell < shells; ++shell)
          sum += double{1} * load_shared<float>(value_at + 4 * (ring * shells + shell)) * sum_of(shell, pair);
        store_as(p.grad_w, pair_of(p, first + pair).weights + ring, p.weights.w_type, static_cast<float>(sum));
      }
    if (p.grad_parameter != nullptr)
      for (int i = warp; i < rings * shells; i += kWarps) {
        double sum = 0;
        for (int pair = lane; pair < here; pair += 32)
          sum += double{1} * as_float(p.weights.w, pair_of(p, first + pair).weights + i / shells, p.weights.w_type) *
                 sum_of(i % shells, pair);
        sum = warp_sum(sum);
        double* const share = shares + int64_t{blockIdx.x} * rings * shells + i;
        if (lane == 0) *share = first == begin ? sum : *share + sum;
      }
  }
  if (p.grad_parameter == nullptr || !is_last_block(reinterpret_cast<unsigned*>(p.workspace + p.counter))) return;

  // the sums over all pairs, where the shares of the first block were
  for (int i = warp; i < rings * shells; i += kWarps) {
    double sum = 0;
    for (int block = lane; block < static_cast<int>(gridDim.x); block += 32)
      sum += shares[int64_t{block} * rings * shells + i];
    sum = warp_sum(sum);
    if (lane == 0) shares[i] = sum;
  }
  __syncthreads();
  const bool custom = profile.family == Family::kCustom;
  for (int i = threadIdx.x; i < (custom ? rings * profile.buckets : rings); i += kFinishThreads) {
    const int ring = custom ? i / profile.buckets : i;
    double sum = 0;
    for (int shell = 0; shell < shells; ++shell) {
      const double by_value = shares[ring * shells + shell];
      if (!custom)
        sum += profile_at(profile, ring, bucket_of(p, shell)).slope * by_value;
      else if (bucket_of(p, shell) == i % profile.buckets)
        sum += by_value;
    }
    store_as(p.grad_parameter, i, profile.parameter_type, static_cast<float>(sum));
  }
}

}  // namespace

cudaError_t prepare_finish(int shared) { return prepare_kernel(finish, shared); }

cudaError_t launch_finish(unsigned blocks, int shared, cudaStream_t stream, const FinishParams& params) {
  return launch_kernel(finish, blocks, kFinishThreads, shared, stream, params);
}

}  // namespace radconv::cuda
