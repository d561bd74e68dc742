// The fused convolution: forward, and, with weights the other way round, the gradient by the input.
//
// A block owns 128 output pixels and up to 128 output channels and walks over the input channels in chunks of 32 bytes
// a pixel (16 halves or 8 floats).  Two groups of four warps take turns: each copies the halo of its chunk into shared
// memory (the next one while it works on this one), sums shells, combines them to basis functions (rings.cuh) and
// leaves these, rounded to the tensor's type, to the four warps that multiply them by the folded weights (product.cuh).
// So plain units and matrix units work at the same time, and nothing of the size of the rings ever leaves the chip.
//
// What bounds it, by counting (python -m benchmarks.resources): half types on sm_90 issue slots, TF32 shared memory,
// and half types on sm_80, from k = 7 on, the float32 lanes.
//
// This file is compiled once per kernel size: RADCONV_K wide and high, RADCONV_KD deep, 0 for any.

#include "cuda/conv.h"

#include "cuda/halo.cuh"
#include "cuda/launcher.cuh"
#include "cuda/primitives.cuh"
#include "cuda/product.cuh"
#include "cuda/rings.cuh"

namespace radconv::cuda {
namespace {

// Named barriers; two of each of the last three, one per group.
enum : int { kWeights = 1, kHalo = 2, kFull = 4, kFree = 6 };

constexpr int kPairThreads = 2 * kGroupThreads;  // the multiplying warps and one group

// Rows of the product's operands at a time.  In 3D the ring stage takes most of the time, and most of the registers;
// full float32 splits operands in two.
constexpr int rows_together(int depth, bool split) { return depth == 7 || split ? 1 : depth <= 1 ? 4 : 2; }

template <class T, int K, int KD>
using ProductOf = Product<T, Rings<T, K, KD>::kFunctions, rows_together(KD, std::is_same_v<T, Float32>)>;

// Rings of every other step, into shared memory.
template <class T, int K, int KD>
__device__ __forceinline__ void gather(const ConvParams& p, unsigned char* memory, int group, int thread) {
  using R = Rings<T, K, KD>;
  constexpr int kChunk = kWords * T::kChannels, kItem = sizeof(typename T::Scalar);
  const unsigned char* const table = memory + p.gather_at;
  unsigned char* const halos = memory + group * p.halo_buffers * p.halo_bytes;
  unsigned char* const rings = memory + p.ring_at + group * ring_bytes(R::kFunctions);
  const auto load = [&](int task, int step, int buffer) {
    const int first = (K > 0 ? task : task / p.passes) * kChunk;  // one pass is enough for sizes that are known
    const int64_t base = load_place(p, memory).base + first * p.x_strides[1];
    const Source source{static_cast<const unsigned char*>(p.x) + base * kItem, p.x_strides[1] * kItem,
                        p.channels - first, p.plane, p.loader};
    R::load(source, step, table, halos + buffer * p.halo_bytes, thread);
    commit_copies();
  };
  int buffer = 0;
  if (group < p.steps) load(group, 0, 0);
  for (int task = group; task < p.steps; task += 2) {
    typename R::Sums sums;
#pragma unroll 1
    for (int step = 0; step < R::kSteps; ++step) {
      const bool last = step == R::kSteps - 1, more = !last || task + 2 < p.steps;
      wait_copies<0>();
      // the halo is here, and nobody reads the other buffer any more
      barrier_sync(kHalo + group, kGroupThreads);
      if (more && p.halo_buffers == 2) load(last ? task + 2 : task, last ? 0 : step + 1, buffer ^ 1);
      if (last && task >= 2) barrier_sync(kFree + group, kPairThreads);
      static_for<R::kSteps>([&](auto dz) {
        if (dz == step)
          R::template step<dz>(p, sums, K > 0 ? 0 : task % p.passes, halos + buffer * p.halo_bytes, memory, rings,
                               thread);
      });
      if (p.halo_buffers == 2) {
        buffer ^= 1;
      } else if (more) {
        barrier_sync(kHalo + group, kGroupThreads);  // before the only buffer is overwritten
        load(last ? task + 2 : task, last ? 0 : step + 1, 0);
      }
    }
    barrier_arrive(kFull + group, kPairThreads);
  }
}

// Rings by weights, step after step.
template <class T, int K, int KD>
__device__ __forceinline__ void multiply(const ConvParams& p, unsigned char* memory, ProductOf<T, K, KD>& product,
                                         int thread) {
  constexpr int kFunctions = Rings<T, K, KD>::kFunctions;
  const int functions = K > 0 ? kFunctions : p.per_pass;
  const int bytes = p.weight_bytes;  // of one step
  unsigned char* const buffers = memory + p.weight_at;
  const auto load = [&](int task, int buffer) {
    const Place at = load_place(p, memory);
    const int64_t step = (int64_t{at.group} * p.out_blocks + at.out_block) * p.steps + task;
    const unsigned char* const from = p.workspace + p.weights + step * bytes;
#pragma unroll 2
    for (int i = thread * 16; i < bytes; i += kGroupThreads * 16)
      copy_async<16>(buffers + buffer * bytes + i, from + i);
    commit_copies();
  };
  load(0, 0);
  for (int task = 0; task < p.steps; ++task) {
    const int group = task % 2, buffer = p.weight_buffers == 2 ? group : 0;
    wait_copies<0>();
    // the weights are here, and nobody reads the other buffer any more
    barrier_sync(kWeights, kGroupThreads);
    if (task + 1 < p.steps && p.weight_buffers == 2) load(task + 1, group ^ 1);
    barrier_sync(kFull + group, kPairThreads);
    const Share share(p, load_place(p, memory).out_block, thread);  // made anew: registers are short
    product.add(share, memory + p.ring_at + group * ring_bytes(kFunctions), buffers + buffer * bytes, functions,
                p.block_outputs);
    if (task + 2 < p.steps) barrier_arrive(kFree + group, kPairThreads);
    if (task + 1 < p.steps && p.weight_buffers == 1) {
      barrier_sync(kWeights, kGroupThreads);  // before the only buffer is overwritten
      load(task + 1, 0);
    }
  }
}

// Whether some thread of the block found sums that are not finite in the first attempt; rings are smaller from then on,
// which the gathering threads (GATHERS) see to.
template <int K, bool GATHERS>
__device__ __forceinline__ bool try_again(const ConvParams& p, unsigned char* memory, bool finite) {
  const bool again = __syncthreads_or(!finite) && load_place(p, memory).scale == 1.0f;
  __syncthreads();  // all have read the scale
  if (!again) return false;
  if constexpr (GATHERS) {
    const int first = static_cast<int>(threadIdx.x) - kGroupThreads;
    if (first == 0) {
      Place at = load_place(p, memory);
      at.scale = kShrink;
      store_shared<Place>(memory + p.place_at, at);
    }
    if constexpr (K > 0)
      for (int i = first; i < p.shells * p.basis_pitch; i += kThreads - kGroupThreads) {
        unsigned char* const value = memory + p.basis_at + 4 * i;
        store_shared<float>(value, load_shared<float>(value) * kShrink);
      }
  }
  __syncthreads();
  return true;
}

template <class T, int K, int KD>
__global__ void __launch_bounds__(kThreads, 1) conv(const __grid_constant__ ConvParams p) {
  using R = Rings<T, K, KD>;
  unsigned char* const memory = shared_memory();
  if (threadIdx.x == 0) store_shared<Place>(memory + p.place_at, place_of(p, blockIdx.x));
  const int role = threadIdx.x / kGroupThreads, thread = threadIdx.x % kGroupThreads;
  if constexpr (K > 0) {
    for (int i = threadIdx.x; i < p.shells * R::kPitch; i += kThreads)
      store_shared<float>(memory + p.basis_at + 4 * i, reinterpret_cast<const float*>(p.workspace)[i]);
  } else if (threadIdx.x < kPixels) {
    make_pixel_table(p, memory + p.pixel_at, threadIdx.x);
  }
  __syncthreads();
  make_gather_table<kThreads>(p, load_place(p, memory), memory + p.gather_at, threadIdx.x);
  __syncthreads();

  // float16 ends at 65504, which rings may leave where outputs, with small weights, don't: once more, then, with
  // smaller ones.  Small values keep all their digits in the first attempt.
  constexpr bool kMayOverflow = std::is_same_v<T, Float16>;
  if (role > 0) {
    do {
      gather<T, K, KD>(p, memory, role - 1, thread);
    } while (kMayOverflow && try_again<K, true>(p, memory, true));
    return;
  }
  ProductOf<T, K, KD> product;
  do {
    product.clear();
    multiply<T, K, KD>(p, memory, product, thread);
  } while (kMayOverflow && try_again<K, false>(p, memory, product.is_finite()));
  // everything in shared memory has been read: by the rings before their last step, by the product before this barrier
  barrier_sync(kWeights, kGroupThreads);
  product.template store<(K > 0)>(p, memory, thread);
}

Kernel<ConvParams> kernel_of(Format format) {
  if (format == Format::kFloat16) return conv<Float16, RADCONV_K, RADCONV_KD>;
  if (format == Format::kBFloat16) return conv<BFloat16, RADCONV_K, RADCONV_KD>;
  if (format == Format::kTF32) return conv<TF32, RADCONV_K, RADCONV_KD>;
  return conv<Float32, RADCONV_K, RADCONV_KD>;
}

using Convs = Launcher<ConvParams, kernel_of, kThreads>;

}  // namespace

const SizedKernels<ConvParams> RADCONV_NAME(conv, RADCONV_K, RADCONV_KD) = {RADCONV_K, RADCONV_KD, Convs::prepare,
                                                                            Convs::launch};

}  // namespace radconv::cuda
