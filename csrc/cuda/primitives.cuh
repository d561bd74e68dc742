// What the kernels say to the hardware: shared memory, asynchronous copies, barriers, matrix instructions, number
// formats. Everything that reaches shared memory goes through here.
//
// tests/emulation/cuda/primitives.cuh is this file's twin: with that folder first on the include path, g++ compiles the
// kernels into a program for the CPU that checks what they do.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace radconv::cuda {

// ---- shared memory --------------------------------------------------------------------------------------------------

// Dynamic shared memory of the block, 128-byte aligned.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

template <class T>
__device__ __forceinline__ T load_shared(const void* from) {
  return *static_cast<const T*>(from);
}

template <class T>
__device__ __forceinline__ void store_shared(void* to, T value) {
  *static_cast<T*>(to) = value;
}

// ---- registers ------------------------------------------------------------------------------------------------------

// threadIdx.x, asked for here and now: what is computed from it isn't kept in registers from before a loop.
__device__ __forceinline__ unsigned thread_anew() {
  unsigned thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// ---- asynchronous copies from global to shared memory ---------------------------------------------------------------
// SIZE bytes (4 or 16, both sides aligned to it), those from `bytes` on as zeros; with bytes == 0, `from` is not read.
// They belong to the thread's next group, and are there for this thread after wait_copies, for others after a barrier
// on top.

template <int SIZE>
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  static_assert(SIZE == 4 || SIZE == 16);
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (SIZE == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}

// All of them: without a count, which takes ten instructions.
template <int SIZE>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  static_assert(SIZE == 4 || SIZE == 16);
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (SIZE == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"(from) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `LEFT` of this thread's groups are under way.
template <int LEFT>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// ---- named barriers (1 to 15; 0 is __syncthreads) -------------------------------------------------------------------
// `threads`, a multiple of 32, counts all who take part, those who wait and those who only arrive.

__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- between blocks -------------------------------------------------------------------------------------------------

// True in the last block of the launch that gets here; it sees what all others wrote to global memory before.  By all
// threads of a block; `counter` is 0 before the launch.
__device__ __forceinline__ bool is_last_block(unsigned* counter) {
  __threadfence();
  __syncthreads();
  unsigned before = 0;
  if (threadIdx.x == 0) before = atomicAdd(counter, 1);
  const bool last = __syncthreads_or(threadIdx.x == 0 && before == gridDim.x - 1);
  __threadfence();
  return last;
}

// ---- matrix instructions, by the whole warp -------------------------------------------------------------------------

// Four matrices of 8 rows of 16 bytes. Lane l names row l % 8 of matrix l / 8; it gets word l % 4 of row l / 4 of each.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void* row) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(at)
               : "memory");
}

// The same, each matrix transposed: the lane gets column l / 4 of rows l % 4 * 2 and l % 4 * 2 + 1, 16 bits each.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(at)
               : "memory");
}

// Number formats of the tensors and of the product. A word holds `kChannels` channels, the first one in the low bits.
// unpack<j>(word): channel j as float.  pack: floats to a word, rounded to nearest as the product wants them.
// multiply: sums (16 x 8) += a (16 x 32 bytes) * b (32 bytes x 8), the fragments of mma.sync.

struct Float16 {
  static constexpr int kChannels = 2;
  using Scalar = uint16_t;

  template <int J>
  static __device__ __forceinline__ float unpack(uint32_t word) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(J ? word >> 16 : word & 0xffff)));
  }
  static __device__ __forceinline__ uint32_t pack(const float (&v)[2]) {
    const __half2 both = __floats2half2_rn(v[0], v[1]);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
  static __device__ __forceinline__ float to_float(Scalar v) { return __half2float(__ushort_as_half(v)); }
  static __device__ __forceinline__ Scalar from_float(float v) { return __half_as_ushort(__float2half_rn(v)); }
  // as an element of the product's operands
  static __device__ __forceinline__ Scalar operand(float v) { return from_float(v); }

  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

struct BFloat16 {
  static constexpr int kChannels = 2;
  using Scalar = uint16_t;

  template <int J>
  static __device__ __forceinline__ float unpack(uint32_t word) {
    return __uint_as_float(J ? word & 0xffff0000u : word << 16);
  }
  static __device__ __forceinline__ uint32_t pack(const float (&v)[2]) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(v[0], v[1]);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
  static __device__ __forceinline__ float to_float(Scalar v) { return __uint_as_float(uint32_t{v} << 16); }
  static __device__ __forceinline__ Scalar from_float(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
  static __device__ __forceinline__ Scalar operand(float v) { return from_float(v); }

  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// float32 tensors, products of TF32 operands (10 bits of mantissa) summed in float32
struct TF32 {
  static constexpr int kChannels = 1;
  using Scalar = float;

  template <int J>
  static __device__ __forceinline__ float unpack(uint32_t word) {
    return __uint_as_float(word);
  }
  static __device__ __forceinline__ uint32_t pack(const float (&v)[1]) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(v[0]));
    return rounded;
  }
  static __device__ __forceinline__ float to_float(Scalar v) { return v; }
  static __device__ __forceinline__ Scalar from_float(float v) { return v; }
  static __device__ __forceinline__ Scalar operand(float v) { return __uint_as_float(pack({v})); }

  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// float32 tensors: operands are two TF32 numbers each, and three of the four products are summed, which leaves errors
// of 2^-21.
struct Float32 {
  static constexpr int kChannels = 1;
  using Scalar = float;

  template <int J>
  static __device__ __forceinline__ float unpack(uint32_t word) {
    return __uint_as_float(word);
  }
  static __device__ __forceinline__ uint32_t pack(const float (&v)[1]) { return __float_as_uint(v[0]); }
  static __device__ __forceinline__ float to_float(Scalar v) { return v; }
  static __device__ __forceinline__ Scalar from_float(float v) { return v; }
  static __device__ __forceinline__ Scalar operand(float v) { return v; }

  static __device__ __forceinline__ void split(uint32_t word, uint32_t& large, uint32_t& small) {
    large = word & 0xffffe000u;
    // to nearest: matrix units ignore the last 13 bits.  Of what is not finite, the large part says so
    small = __float_as_uint(__uint_as_float(word) - __uint_as_float(large)) + 0x1000u;
  }
  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t large[4], small[4], b_large[2], b_small[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) split(a[i], large[i], small[i]);
    split(b0, b_large[0], b_small[0]);
    split(b1, b_large[1], b_small[1]);
    // apart from the sums: matrix units cut off what an addition drops, which would tell in long ones
    float product[4] = {};
    TF32::multiply(product, small, b_large[0], b_large[1]);
    TF32::multiply(product, large, b_small[0], b_small[1]);
    TF32::multiply(product, large, b_large[0], b_large[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += product[i];
  }
};

// ---- launches -------------------------------------------------------------------------------------------------------

// Makes the kernel known to the current device and allows it `shared` bytes. Never under a stream capture.
template <class Params>
cudaError_t prepare_kernel(void (*kernel)(Params), int shared) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              shared);
}

template <class Params>
cudaError_t launch_kernel(void (*kernel)(Params), unsigned blocks, int threads, int shared, cudaStream_t stream,
                          const Params& params) {
  kernel<<<blocks, threads, shared, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace radconv::cuda
