// The ring stage of one lane group: halo -> pair sums -> buckets -> basis rows.  For tile.cpp alone.
//
// Mirrored planes are added first, then mirrored columns: each such sum serves as many lines of outputs as the kernel
// is high.  Where all sums of a tile's plane fit the cache, they are made first, and its lines are one long line.
// Otherwise it goes line by line: the rows of sums that one line reads are kept, the oldest overwritten by the next.
// The buckets (shells or bands) are sums of these rows, and stay in registers while they are combined into basis rows.
//
// Bound: per vector, at k = 9, 39 loads with their additions and 65 multiply-adds, all from the first cache.

#pragma once

#include "halo.h"

namespace radconv::cpu {
namespace {

// Vectors that a pass works on at once, when it sums up `rows` rows: so that all stay in registers.
#if defined(__AVX512F__)
constexpr int vectors_for(int rows) { return rows == 1 ? 8 : rows <= 6 ? 4 : 3; }
#else
constexpr int vectors_for(int rows) { return rows <= 2 ? 4 : 2; }
#endif

constexpr int64_t kBucketRun = 8 * kLanes;

struct RingBuffers {
  float* turned;  // a sample's lane group, its channels together
  float* halo;
  float* planes;   // (planes, halo lines) sums of two planes
  float* sums;     // (sums, sum_rows, sum_pitch)
  float* buckets;  // (buckets, kBucketRun), where they don't stay in registers
};

// Sums of a row's mirrored columns, V vectors of each.
template <int V>
inline void add_columns(const int64_t* lows, const int64_t* highs, int64_t count, const float* row, float* to,
                        int64_t next) {
  for (int64_t s = 0; s < count; ++s, to += next) {
    const float* low = row + lows[s];
    const float* high = row + highs[s];
    if (low == high) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store(to + v * kLanes, load(low + v * kLanes));
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store(to + v * kLanes, load(low + v * kLanes) + load(high + v * kLanes));
    }
  }
}

// The same, of a whole row.
void add_row(const int64_t* lows, const int64_t* highs, int64_t count, int64_t width, const float* row, float* to,
             int64_t next) {
  int64_t i = 0;
  for (; i + 3 * kLanes < width; i += 4 * kLanes) add_columns<4>(lows, highs, count, row + i, to + i, next);
  for (; i + kLanes < width; i += 2 * kLanes) add_columns<2>(lows, highs, count, row + i, to + i, next);
  if (i < width) add_columns<1>(lows, highs, count, row + i, to + i, next);
}

// Sums of mirrored planes, for the outputs of plane `z`: all lines at once, since a sum that is read, a few columns
// off, right after it was written makes the reader wait.
void add_planes(const Call& call, const TilePlace& at, int64_t z, const RingBuffers& b) {
  const AddProgram& add = call.add;
  const int64_t size = call.tile.halo[1] * call.tile.row_pitch, used = at.halo[1] * call.tile.row_pitch;
  for (int p = 0; p < add.planes; ++p) {
    const float* low = b.halo + (z + add.plane_low[p]) * size;
    const float* high = b.halo + (z + add.plane_high[p]) * size;
    float* to = b.planes + p * size;
    for (int64_t i = 0; i < used; i += kLanes) store(to + i, load(low + i) + load(high + i));
  }
}

// Sums of mirrored columns of halo row `h`, for the outputs of plane `z`, to row `slot` of the sums.
void add_pairs(const Call& call, const TilePlace& at, int64_t z, int64_t h, int64_t slot, const RingBuffers& b) {
  const TileShape& tile = call.tile;
  const AddProgram& add = call.add;
  const int64_t width = at.size[2] * tile.unit, paired = add.plane_sums, next = tile.sum_step;
  const float* centre = b.halo + ((z + add.centre) * tile.halo[1] + h) * tile.row_pitch;
  float* to = b.sums + slot * tile.sum_pitch;
  add_row(add.low, add.high, paired, width, b.planes + h * tile.row_pitch, to, next);
  add_row(add.low + paired, add.high + paired, add.sums - paired, width, centre, to + paired * next, next);
}

// The rows from `row` up to `end`, which becomes the next bucket's first.
template <int V>
inline void sum_bucket(const int64_t*& row, const int64_t* end, const float* sums, Vec (&total)[V]) {
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) total[v] = row < end ? load(sums + *row + v * kLanes) : Vec{};
  for (row += row < end; row < end; ++row) {
    const float* from = sums + *row;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) total[v] += load(from + v * kLanes);
  }
}

// The buckets themselves.
template <int V>
void bucket_rows(const AddProgram& add, const int64_t* row, const float* sums, float* to, int64_t pitch) {
  const int64_t *first = row, *begin = add.begin;
  for (int s = 0, buckets = add.buckets; s < buckets; ++s) {
    Vec total[V];
    sum_bucket<V>(row, first + begin[s + 1], sums, total);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(to + s * pitch + v * kLanes, total[v]);
  }
}

// Where a pass finds its buckets, and what a row makes of them.
enum class From { kSums, kBuckets, kSumsByLane };

// R basis rows of V vectors.  `basis`: (buckets, R), or, by lane, (buckets, lanes) for one row.
template <int R, int V, From from>
void basis_rows(const AddProgram& add, const int64_t* row, const float* source, int64_t source_pitch,
                const float* basis, float* to, int64_t pitch) {
  Vec sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = Vec{};
  const int64_t *first = row, *begin = add.begin;
  for (int s = 0, buckets = add.buckets; s < buckets; ++s) {
    Vec total[V];
    if constexpr (from == From::kBuckets) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) total[v] = load(source + s * source_pitch + v * kLanes);
    } else {
      sum_bucket<V>(row, first + begin[s + 1], source, total);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if constexpr (from == From::kSumsByLane) {
        const Vec factor = load(basis + s * kLanes);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] += factor * total[v];
      } else {
        const float factor = basis[s * R + r];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] += factor * total[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(to + r * pitch + v * kLanes, sum[r][v]);
}

// A line by V vectors at a time, its end by fewer.  Whole vectors: what runs over a line's end is overwritten by the
// next line, which comes later.
template <int R, From from, int V = vectors_for(R)>
void basis_line(const AddProgram& add, const int64_t* row, int64_t width, const float* source, int64_t source_pitch,
                const float* basis, float* to, int64_t pitch) {
  int64_t i = 0;
  for (; i + (V - 1) * kLanes < width; i += V * kLanes)
    basis_rows<R, V, from>(add, row, source + i, source_pitch, basis, to + i, pitch);
  if constexpr (V > 1)
    if (i < width) basis_line<R, from, V / 2>(add, row, width - i, source + i, source_pitch, basis, to + i, pitch);
}

template <int V = vectors_for(1)>
void bucket_line(const AddProgram& add, const int64_t* row, int64_t width, const float* sums, float* to,
                 int64_t pitch) {
  int64_t i = 0;
  for (; i + (V - 1) * kLanes < width; i += V * kLanes) bucket_rows<V>(add, row, sums + i, to + i, pitch);
  if constexpr (V > 1)
    if (i < width) bucket_line<V / 2>(add, row, width - i, sums + i, to + i, pitch);
}

using BasisLine = void (*)(const AddProgram&, const int64_t*, int64_t, const float*, int64_t, const float*, float*,
                           int64_t);

template <From from>
BasisLine basis_line_for(int64_t rows) {
  switch (rows) {
    case 1:
      return basis_line<1, from>;
    case 2:
      return basis_line<2, from>;
    case 3:
      return basis_line<3, from>;
#if defined(__AVX512F__)
    case 4:
      return basis_line<4, from>;
    case 5:
      return basis_line<5, from>;
    case 6:
      return basis_line<6, from>;
    case 7:
      return basis_line<7, from>;
#endif
    default:
      return basis_line<kRows, from>;
  }
}

// Basis rows of `width` neighbouring floats, from the sums at `sums`: row i at to + i * pitch.
void combine(const Call& call, int64_t width, const int64_t* row, const float* sums, const float* basis, bool by_lane,
             float* buckets, float* to, int64_t pitch) {
  const AddProgram& add = call.add;
  if (basis == nullptr) return bucket_line(add, row, width, sums, to, pitch);
  if (by_lane) return basis_line<1, From::kSumsByLane>(add, row, width, sums, 0, basis, to, pitch);
  if (call.rows <= call.block)
    return basis_line_for<From::kSums>(call.rows)(add, row, width, sums, 0, basis, to, pitch);
  const BasisLine block = basis_line_for<From::kBuckets>(call.block);
  for (int64_t i = 0; i < width; i += kBucketRun) {
    const int64_t run = smaller(kBucketRun, width - i);
    bucket_line(add, row, run, sums + i, buckets, kBucketRun);
    // blocks are packed `block` rows wide, the last one too: `to` has room for its missing rows
    for (int64_t r = 0; r < call.rows; r += call.block)
      block(add, row, run, buckets, kBucketRun, basis + r * add.buckets, to + r * pitch + i, pitch);
  }
}

// From the halo of a lane group of one sample to its basis rows: row i of all places at to + i * pitch.
void sample_rows(const Call& call, const TilePlace& at, const float* basis, bool by_lane, const RingBuffers& b,
                 float* to, int64_t pitch) {
  const TileShape& tile = call.tile;
  const Axis* axis = call.shape.axis;
  const int64_t summands = call.add.begin[call.add.buckets];
  const int64_t width = at.size[2] * tile.unit, line = at.line * tile.unit;
  for (int64_t z = 0; z < at.size[0]; ++z, to += at.size[1] * line) {
    add_planes(call, at, z * axis[0].stride, b);
    if (tile.all_sums) {
      for (int64_t h = 0; h < at.halo[1]; ++h) add_pairs(call, at, z * axis[0].stride, h, h, b);
      // lines of sums without gaps are one
      const bool joined = width == tile.sum_pitch && width == line;
      for (int64_t y = 0; y < (joined ? 1 : at.size[1]); ++y)
        combine(call, joined ? at.size[1] * width : width, call.add.row, b.sums + y * tile.sum_pitch, basis, by_lane,
                b.buckets, to + y * line, pitch);
      continue;
    }
    int64_t ready = 0;  // rows of sums
    for (int64_t y = 0; y < at.size[1]; ++y) {
      const int64_t first = y * axis[1].stride;
      for (ready = ready < first ? first : ready; ready < first + tile.sum_rows; ++ready)
        add_pairs(call, at, z * axis[0].stride, ready, ready % tile.sum_rows, b);
      combine(call, width, call.add.row + first % tile.sum_rows * summands, b.sums, basis, by_lane, b.buckets,
              to + y * line, pitch);
    }
  }
}

// A sample's input from `channel` on.
template <typename T>
const T* sample_at(const Call& call, const TilePlace& at, int64_t image, int64_t channel) {
  return static_cast<const T*>(call.x) + (at.batch + image) * call.xs.of[0] + channel * call.xs.of[1];
}

// The halo of a lane group of one sample, `channels` of them from `from` on.
template <typename T>
void load_sample(const Call& call, const TilePlace& at, const HaloMap& map, const T* from, int64_t channels,
                 bool fetches, const RingBuffers& b) {
  if (!call.turned) return load_halo<T>(call, at, map, from, channels, fetches, b.halo);
  turn_sample(call, from, channels, b.turned);
  load_halo<float>(call, at, map, b.turned, kLanes, false, b.halo);
}

// Basis rows of one lane group: row i of all places of the tile at to + i * pitch.
template <typename T>
void ring_rows(const Call& call, const TilePlace& at, const HaloMap& map, int64_t channel, int64_t channels,
               const float* basis, bool by_lane, const RingBuffers& b, float* to, int64_t pitch) {
  for (int64_t image = 0; image < at.images; ++image) {
    load_sample<T>(call, at, map, sample_at<T>(call, at, image, channel), channels, true, b);
    sample_rows(call, at, basis, by_lane, b, to + image * at.image_lines() * at.line * call.tile.unit, pitch);
  }
}

}  // namespace
}  // namespace radconv::cpu
