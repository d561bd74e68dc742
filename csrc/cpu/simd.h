// Vectors of one instruction set, and float32 from and to the types of tensors.  For tile.cpp alone.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace radconv::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8, kVectors = 3;  // 24 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRows = 4, kVectors = 3;  // 12 of 16
#else
constexpr int kLanes = 4, kRows = 4, kVectors = 3;
#endif
constexpr int kStrip = kLanes * kVectors;

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef float LooseVec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline float read(const float* p) { return *p; }
inline float read(const uint16_t* p) {
  const uint32_t u = static_cast<uint32_t>(*p) << 16;
  float v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

inline void write(float* p, float v) { *p = v; }
inline void write(uint16_t* p, float v) {
  uint32_t u;
  std::memcpy(&u, &v, sizeof u);
  // NaN keeps its top bits and stays NaN; everything else rounds to nearest even
  *p = (u & 0x7fffffffu) > 0x7f800000u ? static_cast<uint16_t>((u >> 16) | 0x40u)
                                       : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// A sum that is 0 while everything added was finite, and NaN from the first NaN or Inf on.
struct FiniteCheck {
  Vec vectors{};
  float scalars = 0;

  void add(Vec v) { vectors += v * 0.0f; }
  void add(float v) { scalars += v * 0.0f; }
  bool finite() const {
    float sum = scalars;
    for (int i = 0; i < kLanes; ++i) sum += vectors[i];
    return sum == 0;
  }
  void report(bool* nonfinite) const {
    if (!finite()) __atomic_store_n(nonfinite, true, __ATOMIC_RELAXED);
  }
};

// Vectors from and to tensors of either type.
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

inline Vec load_as_float(const float* p) { return load(p); }
inline Vec load_as_float(const uint16_t* p) {
  const Halves halves = *reinterpret_cast<const LooseHalves*>(p);
  return reinterpret_cast<Vec>(__builtin_convertvector(halves, Words) << 16);
}

inline void store_rounded(float* p, Vec v) { store(p, v); }
inline void store_rounded(uint16_t* p, Vec v) {
  const Words u = reinterpret_cast<Words>(v);
  const Words nearest = u + 0x7fffu + (u >> 16 & 1u);
  const Words words = (u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : nearest;
  *reinterpret_cast<LooseHalves*>(p) = __builtin_convertvector(words >> 16, Halves);
}

// Past the caches, where the address allows it: `finish_streams` must follow before another thread may look.
inline void stream(float* p, Vec v) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Vec) == 0) return _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Vec) == 0) return _mm256_stream_ps(p, v);
#endif
  store(p, v);
}
inline void stream(uint16_t* p, Vec v) { store_rounded(p, v); }

inline void finish_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// A run of less than a vector.
template <typename T>
inline void copy_few(const T* from, int64_t count, float* to, FiniteCheck& check) {
  for (int64_t i = 0; i < count; ++i) check.add(to[i] = read(from + i));
}
#if defined(__AVX512F__)
template <>
inline void copy_few(const float* from, int64_t count, float* to, FiniteCheck& check) {
  const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
  const __m512 v = _mm512_maskz_loadu_ps(mask, from);
  check.add(reinterpret_cast<Vec>(v));
  _mm512_mask_storeu_ps(to, mask, v);
}
#endif

// Copies a run of elements to float32.  A run that doesn't fill whole vectors ends with one that overlaps the last.
template <typename T>
inline void copy_run(const T* from, int64_t count, float* to, FiniteCheck& check) {
  if (count < kLanes) return copy_few(from, count, to, check);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t at = smaller(i, count - kLanes);
    const Vec v = load_as_float(from + at);
    check.add(v);
    store(to + at, v);
  }
}

// Zeros from `to` on: whole vectors, so up to kLanes - 1 more than `count`.
inline void zero_run(float* to, int64_t count) {
  if (count <= 0) return;
  store(to, Vec{});  // mostly all: a loop would be made a call of memset
  for (int64_t i = kLanes; i < count; i += kLanes) store(to + i, Vec{});
}

// Lanes i and j of vectors i and j change places: the rows of a square become its columns.
inline void transpose(Vec (&v)[kLanes]) {
#pragma GCC unroll 4
  for (int d = kLanes / 2; d > 0; d /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & d) continue;
      const Vec a = v[i], b = v[i | d];
#if defined(__clang__)
      for (int l = 0; l < kLanes; ++l) {
        v[i][l] = l & d ? b[l - d] : a[l];
        v[i | d][l] = l & d ? b[l] : a[l + d];
      }
#else
      typedef int Choice __attribute__((vector_size(kLanes * sizeof(int))));
      Choice low{}, high{};
      for (int l = 0; l < kLanes; ++l) {
        low[l] = l & d ? kLanes + l - d : l;
        high[l] = l & d ? kLanes + l : l + d;
      }
      v[i] = __builtin_shuffle(a, b, low);
      v[i | d] = __builtin_shuffle(a, b, high);
#endif
    }
}

// to (columns, rows) = from (rows, columns), both in whole squares of vectors.
inline void transpose(const float* from, int64_t from_pitch, int64_t rows, int64_t columns, float* to,
                      int64_t to_pitch) {
  for (int64_t r = 0; r < rows; r += kLanes)
    for (int64_t c = 0; c < columns; c += kLanes) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) v[i] = load(from + (r + i) * from_pitch + c);
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (c + i) * to_pitch + r, v[i]);
    }
}

}  // namespace
}  // namespace radconv::cpu
