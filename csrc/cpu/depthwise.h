// Depthwise convolution by a small odd kernel, one output a channel, stride and dilation 1.  For tile.cpp alone.
//
// Down a strip of columns: a line's pair sums are made once, in registers, and added, each times its weight, to the
// lines of outputs that they belong to, as many as the kernel is high, which stay in registers too.  Nothing is kept in
// memory between the input and the output.
//
// Bound: per vector, at k = 7 with circular support, 22 multiply-adds and 7 misaligned loads.

#pragma once

#include "rings.h"

namespace radconv::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// Vectors of a strip: sums of `k` lines of them, and a pair sum, stay in registers.
constexpr int strip_vectors(int k) {
  const int most = (kRegisters - 4) / (k + 1);
  return most > 4 ? 4 : most < 1 ? 1 : most;
}

// Whether a kernel with circular support has a tap at line `i` and column `j`.
constexpr bool in_disk(int k, int i, int j) {
  const int y = 2 * i - (k - 1), x = 2 * j - (k - 1);
  return y * y + x * x < k * k;
}

// `taps`: weights (pairs, pairs) by distance from the kernel's first line and column, each a number or, by lane, a
// vector.  Disk: the support is circular.
template <int K, int V, bool ByLane, bool Disk>
void strip(const float* halo, int64_t row_pitch, int64_t lines, const float* taps, float* to, int64_t line,
           Ahead ahead) {
  constexpr int kPairs = (K + 1) / 2, kUnit = ByLane ? kLanes : 1;
  Vec sum[K][V];  // of output lines h - K + 1 .. h
#pragma GCC unroll 16
  for (int i = 0; i < K; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[i][v] = Vec{};
  for (int64_t h = 0; h < lines + K - 1; ++h, halo += row_pitch) {
    if constexpr (!ByLane) ahead.fetch(h + 1, lines + K - 1);
#pragma GCC unroll 8
    for (int j = 0; j < kPairs; ++j) {
      Vec pair[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        pair[v] = load(halo + j * kUnit + v * kLanes);
        if (j != K - 1 - j) pair[v] += load(halo + (K - 1 - j) * kUnit + v * kLanes);
      }
#pragma GCC unroll 16
      for (int i = 0; i < K; ++i) {
        if (Disk && !in_disk(K, i, j)) continue;
        const float* tap = taps + ((i < kPairs ? i : K - 1 - i) * kPairs + j) * kUnit;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          if constexpr (ByLane)
            sum[i][v] += load(tap) * pair[v];
          else
            sum[i][v] += *tap * pair[v];
        }
      }
    }
    if (h >= K - 1)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(to + (h - K + 1) * line + v * kLanes, sum[0][v]);
#pragma GCC unroll 16
    for (int i = 0; i < K; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[i][v] = i + 1 < K ? sum[i + 1][v] : Vec{};
  }
}

// Strips from right to left: what runs over a line's end is overwritten by the next line's first strip.  The last one
// fetches what is ahead.
template <int K, bool ByLane, bool Disk, int V = strip_vectors(K)>
void strips(const float* halo, int64_t row_pitch, int64_t lines, int64_t width, const float* taps, float* to,
            int64_t line, Ahead ahead) {
  const int64_t whole = width / (V * kLanes) * V * kLanes;
  if (whole < width) {
    if constexpr (V > 1)
      strips<K, ByLane, Disk, V / 2>(halo + whole, row_pitch, lines, width - whole, taps, to + whole, line,
                                     whole > 0 ? kNothingAhead : ahead);
    else
      strip<K, 1, ByLane, Disk>(halo + whole, row_pitch, lines, taps, to + whole, line,
                                whole > 0 ? kNothingAhead : ahead);
  }
  for (int64_t i = whole - V * kLanes; i >= 0; i -= V * kLanes)
    strip<K, V, ByLane, Disk>(halo + i, row_pitch, lines, taps, to + i, line, i > 0 ? kNothingAhead : ahead);
}

using Strips = void (*)(const float*, int64_t, int64_t, int64_t, const float*, float*, int64_t, Ahead);

template <bool ByLane, bool Disk>
Strips strips_for(int64_t k) {
  switch (k) {
    case 3:
      return strips<3, ByLane, false>;  // a disk as it is
    case 5:
      return strips<5, ByLane, Disk>;
    case 7:
      return strips<7, ByLane, Disk>;
    case 9:
      return strips<9, ByLane, Disk>;
    case 11:
      return strips<11, ByLane, Disk>;
    case 13:
      return strips<13, ByLane, Disk>;
    default:
      return strips<15, ByLane, Disk>;
  }
}

// Outputs of one lane group: all places of the tile.  `weights`: per bucket, (buckets, unit).
template <typename T>
void depthwise_rows(const ConvCall& call, const TilePlace& at, const HaloMap& map, int64_t channel, int64_t channels,
                    const float* weights, const RingBuffers& b, float* to) {
  const TileShape& tile = call.tile;
  const int64_t k = call.shape.axis[2].kernel, pairs = (k + 1) / 2, line = at.line * tile.unit;
  float* taps = b.buckets;
  for (int64_t tap = 0; tap < pairs * pairs; ++tap)
    for (int64_t l = 0; l < tile.unit; ++l) {
      const int64_t bucket = call.corner[tap];
      taps[tap * tile.unit + l] = bucket < 0 ? 0.0f : weights[bucket * tile.unit + l];
    }
  const bool disk = call.corner[0] < 0;  // the only support without its corners
  const Strips go = tile.unit > 1 ? disk ? strips_for<true, true>(k) : strips_for<true, false>(k)
                    : disk        ? strips_for<false, true>(k)
                                  : strips_for<false, false>(k);
  for (int64_t image = 0; image < at.images; ++image, to += at.size[1] * line) {
    const T* from = sample_at<T>(call, at, image, channel);
    load_sample<T>(call, at, map, from, channels, false, b);
    go(b.halo, tile.row_pitch, at.size[1], at.size[2] * tile.unit, taps, to, line, ahead_of<T>(call, at, map, from));
  }
}

}  // namespace
}  // namespace radconv::cpu
