// Twin of csrc/cuda/primitives.cuh for the CPU: the same names with the same meaning, and as much of the CUDA language
// as the kernels use. What the kernels do with it is checked (machine.h).
//
// Words of the language are macros, so kernels can be compiled as C++17 by g++. Threads are counted in one dimension.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <typeinfo>

#include "../cuda_runtime_api.h"
#include "../machine.h"

// ---- the CUDA language ----------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

using radconv::emulation::blockDim;
using radconv::emulation::blockIdx;
using radconv::emulation::gridDim;
using radconv::emulation::threadIdx;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }

inline uint32_t __float_as_uint(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

inline float __uint_as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

inline void __syncthreads() {
  radconv::emulation::barrier(0, static_cast<int>(blockDim.x), radconv::emulation::Wait::kYes);
}

inline int __syncthreads_or(int flag) {
  return radconv::emulation::barrier(0, static_cast<int>(blockDim.x), radconv::emulation::Wait::kReduce, flag != 0);
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  radconv::emulation::collective(radconv::emulation::Operation::kSyncWarp, mask, nullptr);
}

inline int __any_sync(unsigned mask, int flag) {
  radconv::emulation::Vote vote{flag != 0};
  radconv::emulation::collective(radconv::emulation::Operation::kAny, mask, &vote);
  return vote.flag;
}

namespace radconv::emulation {

template <class T>
T shuffle(Operation operation, unsigned mask, T value, int source) {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) <= 8);
  Shuffle argument{0, source};
  std::memcpy(&argument.value, &value, sizeof value);
  collective(operation, mask, &argument);
  std::memcpy(&value, &argument.value, sizeof value);
  return value;
}

inline void multiply(Operation operation, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Product argument{sums, a, {b0, b1}};
  collective(operation, 0xffffffffu, &argument);
}

inline int lane() { return static_cast<int>(threadIdx.x % kWarp); }

}  // namespace radconv::emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return radconv::emulation::shuffle(radconv::emulation::Operation::kShuffle, mask, value, source & 31);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  const int lane = radconv::emulation::lane();
  return radconv::emulation::shuffle(radconv::emulation::Operation::kShuffleXor, mask, value, (lane ^ bits) & 31);
}

// The last `by` lanes keep their own value.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const int lane = radconv::emulation::lane();
  const int source = lane + static_cast<int>(by & 31u);
  return radconv::emulation::shuffle(radconv::emulation::Operation::kShuffleDown, mask, value,
                                     source < radconv::emulation::kWarp ? source : lane);
}

namespace radconv::cuda {

// ---- shared memory --------------------------------------------------------------------------------------------------

inline unsigned char* shared_memory() { return emulation::shared_view.memory; }

template <class T>
T load_shared(const void* from) {
  static_assert(std::is_trivially_copyable<T>::value);
  emulation::check_access(emulation::Access::kLoad, from, sizeof(T), alignof(T));
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
void store_shared(void* to, T value) {
  static_assert(std::is_trivially_copyable<T>::value);
  emulation::check_access(emulation::Access::kStore, to, sizeof(T), alignof(T));
  std::memcpy(to, &value, sizeof value);
}

// ---- registers ------------------------------------------------------------------------------------------------------

inline unsigned thread_anew() { return threadIdx.x; }

// ---- asynchronous copies from global to shared memory ---------------------------------------------------------------
// The destination is filled with 0xFF when the copy is issued; the source is read, and the data appears, in the wait.

template <int SIZE>
void copy_async(void* to, const void* from, int bytes) {
  static_assert(SIZE == 4 || SIZE == 16);
  emulation::copy_async(to, from, bytes, SIZE);
}

template <int SIZE>
void copy_async(void* to, const void* from) {
  copy_async<SIZE>(to, from, SIZE);
}

inline void commit_copies() { emulation::commit_copies(); }

template <int LEFT>
void wait_copies() {
  static_assert(LEFT >= 0);
  emulation::wait_copies(LEFT);
}

// ---- named barriers -------------------------------------------------------------------------------------------------

inline void barrier_sync(int id, int threads) { emulation::barrier(id, threads, emulation::Wait::kYes); }
inline void barrier_arrive(int id, int threads) { emulation::barrier(id, threads, emulation::Wait::kNo); }

// ---- between blocks -------------------------------------------------------------------------------------------------

inline bool is_last_block(unsigned* counter) {
  __syncthreads();
  return __syncthreads_or(threadIdx.x == 0 && (*counter)++ == gridDim.x - 1) != 0;
}

// ---- matrix instructions, by the whole warp -------------------------------------------------------------------------

inline void load_matrices(uint32_t (&words)[4], const void* row) {
  emulation::check_access(emulation::Access::kLoadMatrices, row, 16, 16);
  emulation::MatrixRow argument{row, words};
  emulation::collective(emulation::Operation::kLoadMatrices, 0xffffffffu, &argument);
}

inline void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  emulation::check_access(emulation::Access::kLoadMatrices, row, 16, 16);
  emulation::MatrixRow argument{row, words};
  emulation::collective(emulation::Operation::kLoadMatricesTransposed, 0xffffffffu, &argument);
}

// ---- number formats -------------------------------------------------------------------------------------------------

struct Float16 {
  static constexpr int kChannels = 2;
  using Scalar = uint16_t;

  template <int J>
  static float unpack(uint32_t word) {
    return to_float(static_cast<Scalar>(J ? word >> 16 : word & 0xffff));
  }
  static uint32_t pack(const float (&v)[2]) { return from_float(v[0]) | uint32_t{from_float(v[1])} << 16; }

  static float to_float(Scalar v) {
    const uint32_t sign = (v & 0x8000u) << 16, magnitude = v & 0x7fffu;
    if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000u | magnitude << 13);
    if (magnitude >= 0x0400) return __uint_as_float(sign | ((magnitude << 13) + (112u << 23)));
    const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -subnormal : subnormal;
  }

  static Scalar from_float(float v) {
    const uint32_t bits = __float_as_uint(v), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;                                // NaN
    if (magnitude >= 0x477ff000u) return static_cast<Scalar>(sign | 0x7c00u);  // from 65520 on: Inf
    if (magnitude < 0x33000000u) return static_cast<Scalar>(sign);             // below 2^-25: zero
    const int exponent = static_cast<int>(magnitude >> 23);                    // biased by 127
    const uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
    const int dropped = exponent < 113 ? 126 - exponent : 13;  // bits; more for subnormals
    const uint32_t kept = significand >> dropped, rest = significand & ((1u << dropped) - 1);
    const uint32_t half = 1u << (dropped - 1);
    const uint32_t up = rest > half || (rest == half && (kept & 1));
    // a normal number's leading bit adds one to the exponent, and so does a carry out of the rounding
    const uint32_t base = exponent < 113 ? 0 : static_cast<uint32_t>(exponent - 113) << 10;
    return static_cast<Scalar>(sign | (base + kept + up));
  }
  static Scalar operand(float v) { return from_float(v); }

  static void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulation::multiply(emulation::Operation::kMultiplyFloat16, sums, a, b0, b1);
  }
};

struct BFloat16 {
  static constexpr int kChannels = 2;
  using Scalar = uint16_t;

  template <int J>
  static float unpack(uint32_t word) {
    return __uint_as_float(J ? word & 0xffff0000u : word << 16);
  }
  static uint32_t pack(const float (&v)[2]) { return from_float(v[0]) | uint32_t{from_float(v[1])} << 16; }
  static float to_float(Scalar v) { return __uint_as_float(uint32_t{v} << 16); }

  static Scalar from_float(float v) {
    const uint32_t bits = __float_as_uint(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // NaN
    return static_cast<Scalar>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
  }
  static Scalar operand(float v) { return from_float(v); }

  static void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulation::multiply(emulation::Operation::kMultiplyBFloat16, sums, a, b0, b1);
  }
};

struct TF32 {
  static constexpr int kChannels = 1;
  using Scalar = float;

  template <int J>
  static float unpack(uint32_t word) {
    return __uint_as_float(word);
  }
  // Ties go away from zero: half of the last place is added to the magnitude, whose carry may run into the exponent.
  static uint32_t pack(const float (&v)[1]) {
    const uint32_t bits = __float_as_uint(v[0]);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffe000u;  // NaN
    return (bits + 0x1000u) & ~0x1fffu;
  }
  static float to_float(Scalar v) { return v; }
  static Scalar from_float(float v) { return v; }
  static Scalar operand(float v) { return __uint_as_float(pack({v})); }

  static void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulation::multiply(emulation::Operation::kMultiplyTF32, sums, a, b0, b1);
  }
};

// float32 tensors: operands are two TF32 numbers each, and three of the four products are summed, which leaves errors
// of 2^-21.
struct Float32 {
  static constexpr int kChannels = 1;
  using Scalar = float;

  template <int J>
  static float unpack(uint32_t word) {
    return __uint_as_float(word);
  }
  static uint32_t pack(const float (&v)[1]) { return __float_as_uint(v[0]); }
  static float to_float(Scalar v) { return v; }
  static Scalar from_float(float v) { return v; }
  static Scalar operand(float v) { return v; }

  static void split(uint32_t word, uint32_t& large, uint32_t& small) {
    large = word & 0xffffe000u;
    // to nearest: matrix units ignore the last 13 bits.  Of what is not finite, the large part says so
    small = __float_as_uint(__uint_as_float(word) - __uint_as_float(large)) + 0x1000u;
  }
  static void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t large[4], small[4], b_large[2], b_small[2];
    for (int i = 0; i < 4; ++i) split(a[i], large[i], small[i]);
    split(b0, b_large[0], b_small[0]);
    split(b1, b_large[1], b_small[1]);
    // apart from the sums: matrix units cut off what an addition drops, which would tell in long ones
    float product[4] = {};
    TF32::multiply(product, small, b_large[0], b_large[1]);
    TF32::multiply(product, large, b_small[0], b_small[1]);
    TF32::multiply(product, large, b_large[0], b_large[1]);
    for (int i = 0; i < 4; ++i) sums[i] += product[i];
  }
};

// ---- launches -------------------------------------------------------------------------------------------------------
// A kernel that breaks a rule ends the launch with a std::runtime_error. Error codes are for what the runtime refuses.

template <class Params>
cudaError_t prepare_kernel(void (*kernel)(Params), int shared) {
  return emulation::prepare(reinterpret_cast<const void*>(kernel), shared);
}

template <class Params>
cudaError_t launch_kernel(void (*kernel)(Params), unsigned blocks, int threads, int shared, cudaStream_t /* stream */,
                          const Params& params) {
  struct Call {
    void (*kernel)(Params);
    const Params* params;
  };
  const Call call{kernel, &params};
  const auto body = [](const void* context) {
    const Call& c = *static_cast<const Call*>(context);
    c.kernel(*c.params);
  };
  return emulation::launch(reinterpret_cast<const void*>(kernel), typeid(Params), body, &call, blocks, threads, shared);
}

}  // namespace radconv::cuda
