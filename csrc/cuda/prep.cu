// The preparation, one small launch before a convolution: sigma -> P = L Q -> basis Q and folded weights w L.
//
// The rows of Q are orthonormal over the taps (shell multiplicities as weights): rings overlap, and rounding them one
// by one would lose what weights that cancel leave over.  In double, since L's condition number passes 1e4.  Powers of
// two move from L to Q so that w L is about as large as w, whatever the kernel's size.
//
// Every block does the small algebra for itself, in one warp, and folds its share of the weights.  What bounds it is
// the latency of n * n dots, one after the other.

#include "cuda/prep.h"

#include "cuda/conv.h"
#include "cuda/launches.h"
#include "cuda/primitives.cuh"
#include "cuda/profile.cuh"

namespace radconv::cuda {
namespace {

// A matrix of doubles in shared memory.
struct Matrix {
  unsigned char* memory;
  int columns;

  __device__ __forceinline__ double get(int row, int column) const {
    return load_shared<double>(memory + 8 * (row * columns + column));
  }
  __device__ __forceinline__ void set(int row, int column, double value) const {
    store_shared<double>(memory + 8 * (row * columns + column), value);
  }
};

// Gram-Schmidt by one warp, a lane for every 32nd bucket, each row swept twice: once is not orthogonal to rounding when
// rings overlap.  `basis` holds P and ends as Q.
__device__ __forceinline__ void orthogonalise(const ProfileParams& p, int rows, const Matrix& basis, const Matrix& mix,
                                              int lane) {
  const auto dot = [&](int a, int b) {
    double sum = 0;
    for (int s = lane; s < p.buckets; s += 32) sum += number(p, p.counts, s) * basis.get(a, s) * basis.get(b, s);
    return warp_sum(sum);
  };
  for (int i = 0; i < p.rings; ++i) {
    const double before = dot(i, i);
    for (int sweep = 0; sweep < 2; ++sweep)
      for (int j = 0; j < i; ++j) {
        const double share = dot(i, j);
        if (lane == 0) mix.set(i, j, (sweep > 0 ? mix.get(i, j) : 0.0) + share);
        for (int s = lane; s < p.buckets; s += 32) basis.set(i, s, basis.get(i, s) - share * basis.get(j, s));
      }
    const double after = dot(i, i);
    // a ring that the earlier ones already span leaves rounding noise, which must not be blown up to a direction;
    // written so that NaN stays NaN
    const bool independent = !(after <= before * 1e-28);
    const double norm =
        p.rings == 1 ? 1.0 : sqrt(after);  // one ring needs no basis, and weights stay as exact as they are
    if (lane == 0)
      for (int j = i; j < rows; ++j) mix.set(i, j, j == i && independent ? norm : 0.0);
    for (int s = lane; s < p.buckets; s += 32) basis.set(i, s, independent ? basis.get(i, s) / norm : 0.0);
  }
}

template <class T>
__device__ __forceinline__ void fold(const PrepParams& p, const Matrix& mix, int exponent) {
  using Scalar = typename T::Scalar;
  constexpr int kChunk = kWords * T::kChannels;
  const WeightParams& w = p.weights;
  const int64_t count = int64_t{p.groups} * p.out_blocks * p.chunks * p.block_outputs * kChunk;
  for (int64_t i = int64_t{blockIdx.x} * kPrepThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kPrepThreads) {
    int64_t rest = i / kChunk;
    const int channel = static_cast<int>(i % kChunk), output = static_cast<int>(rest % p.block_outputs);
    rest /= p.block_outputs;
    const int64_t block = rest;  // (group, block of outputs, chunk)
    const int in = static_cast<int>(rest % p.chunks) * kChunk + channel;
    rest /= p.chunks;
    const int out = static_cast<int>(rest % p.out_blocks) * p.block_outputs + output;
    // groups that were merged don't see each other
    const int outputs = p.outputs / p.merged, channels = p.channels / p.merged;
    const bool there = in < p.channels && out < p.outputs && in / channels == out / outputs;
    const int64_t group = rest / p.out_blocks * p.merged + out / outputs;
    const int64_t from = group * w.group + out % outputs * w.out + in % channels * w.in;
    const int half = channel * static_cast<int>(sizeof(Scalar)) / 16 ^ output / 4 % 2;
    unsigned char* const to = p.workspace + p.folded + block * p.passes * p.per_pass * p.block_outputs * kPixelBytes +
                              output * kPixelBytes + half * 16 + channel * sizeof(Scalar) % 16;
    for (int r = 0; r < p.passes * p.per_pass; ++r) {
      double sum = 0;
      if (there && r < p.rows)
        for (int ring = 0; ring < p.profile.rings; ++ring)
          sum += as_float(w.w, from + ring, w.w_type) * mix.get(ring, r);
      *reinterpret_cast<Scalar*>(to + int64_t{r} * p.block_outputs * kPixelBytes) =
          T::operand(static_cast<float>(ldexp(sum, -exponent)));
    }
  }
}

__global__ void __launch_bounds__(kPrepThreads, 2) prepare(const __grid_constant__ PrepParams p) {
  const ProfileParams& profile = p.profile;
  const int rings = profile.rings, buckets = profile.buckets;
  unsigned char* const memory = shared_memory();
  const Matrix basis{memory, buckets}, mix{memory + 8 * rings * buckets, p.rows};
  const bool diagonal = rings >= buckets;  // P itself is L, and Q only scales
  for (int i = threadIdx.x; i < rings * buckets; i += kPrepThreads) {
    const double value = profile_at(profile, i / buckets, i % buckets).value;
    (diagonal ? mix : basis).set(i / buckets, i % buckets, value);
  }
  if (diagonal)
    for (int i = threadIdx.x; i < buckets * buckets; i += kPrepThreads)
      basis.set(i / buckets, i % buckets, i / buckets == i % buckets);
  __syncthreads();
  if (!diagonal && threadIdx.x < 32) orthogonalise(profile, p.rows, basis, mix, threadIdx.x);
  __syncthreads();
  double largest = 0;
  for (int i = 0; i < rings * p.rows; ++i) largest = fmax(largest, fabs(mix.get(i / p.rows, i % p.rows)));
  int exponent = 0;
  if (largest > 0 && largest < INFINITY) exponent = ilogb(largest) + 1;

  if (blockIdx.x == 0)
    for (int i = threadIdx.x; i < profile.shells * p.basis_pitch; i += kPrepThreads) {
      const int at = i % p.basis_pitch, column = profile.tables[profile.columns + i / p.basis_pitch];
      const int r = at / p.slot * p.per_pass + at % p.slot;
      const bool there = at % p.slot < p.per_pass && r < p.rows && column >= 0;
      reinterpret_cast<float*>(p.workspace)[i] =
          there ? static_cast<float>(ldexp(basis.get(r, column), exponent)) : 0.0f;
    }
  if (p.format == Format::kFloat16)
    fold<Float16>(p, mix, exponent);
  else if (p.format == Format::kBFloat16)
    fold<BFloat16>(p, mix, exponent);
  else if (p.format == Format::kTF32)
    fold<TF32>(p, mix, exponent);
  else
    fold<Float32>(p, mix, exponent);
}

}  // namespace

cudaError_t prepare_prep(int shared) { return prepare_kernel(prepare, shared); }

cudaError_t launch_prep(unsigned blocks, int shared, cudaStream_t stream, const PrepParams& params) {
  return launch_kernel(prepare, blocks, kPrepThreads, shared, stream, params);
}

}  // namespace radconv::cuda
