// The CPU kernels: one task is one tile of output pixels (or one chunk of weight gradients).
//
//   halo -> pair sums -> bucket sums -> basis rows -> product with the weights -> output
//
// Per input channel, a halo of the input is copied to a float32 scratch tile (padding, wrapping, strides, zero
// insertion and data type are this copy's business alone); columns at equal distance are added once per row (pair
// sums); rows of pair sums are added into buckets (shells or bands); a small product combines the buckets into basis
// rows (rings), which are laid down as the right-hand panel of the product with the mixing matrix.  Lanes are output
// pixels throughout.
//
// Bound: the product, 2 * O * rows FLOP per pixel and channel, which runs from registers (MR x NR blocks).  Beside it,
// at k = 9, each vector of pixels and each channel take 39 loads of pair sums with their additions and 65
// multiply-adds.
//
// Compiled once per instruction set with RADCONV_ISA = baseline, avx2 or avx512; see tile.h for what must not be used.

#include "tile.h"

#include <cstring>

#define RADCONV_CONCAT_(a, b) a##b
#define RADCONV_CONCAT(a, b) RADCONV_CONCAT_(a, b)

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

inline uint32_t bits_of(float v) {
  uint32_t u;
  std::memcpy(&u, &v, sizeof u);
  return u;
}

inline float from_bits(uint32_t u) {
  float v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

inline float read(const float* p) { return *p; }
inline float read(const uint16_t* p) { return from_bits(static_cast<uint32_t>(*p) << 16); }

inline void write(float* p, float v) { *p = v; }
inline void write(uint16_t* p, float v) {
  uint32_t u = bits_of(v);
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
  void add_run(const float* run, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) add(load(run + i));
    for (; i < count; ++i) add(run[i]);
  }
  bool finite() const {
    float sum = scalars;
    for (int i = 0; i < kLanes; ++i) sum += vectors[i];
    return sum == 0;
  }
};

// Copies a run of elements to float32.
inline void copy_run(const float* from, int64_t count, float* to, FiniteCheck& check) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec v = load(from + i);
    check.add(v);
    store(to + i, v);
  }
  for (; i < count; ++i) check.add(to[i] = from[i]);
}

inline void copy_run(const uint16_t* from, int64_t count, float* to, FiniteCheck& check) {
  for (int64_t i = 0; i < count; ++i) to[i] = read(from + i);
  check.add_run(to, count);
}

// --- product: C (R x V vectors) = or += A (R x depth) * B (depth x V vectors) ----------------------------------------

// Packed: A is (depth, kRows).  Otherwise rows of A are `a_row` apart and depth is contiguous.
template <int R, int V, bool Packed>
void block_product(int64_t depth, const float* a, int64_t a_row, const float* b, int64_t b_row, float* c, int64_t c_row,
                   bool accumulate) {
  Vec sum[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) sum[i][v] = accumulate ? load(c + i * c_row + v * kLanes) : Vec{};
  for (int64_t d = 0; d < depth; ++d) {
    Vec right[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const float left = Packed ? a[i] : a[i * a_row];
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[i][v] += left * right[v];
    }
    a += Packed ? kRows : 1;
    b += b_row;
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) store(c + i * c_row + v * kLanes, sum[i][v]);
}

using BlockProduct = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool);

template <int R, bool Packed>
BlockProduct block_product_of(int vectors) {
  switch (vectors) {
    case 1:
      return block_product<R, 1, Packed>;
    case 2:
      return block_product<R, 2, Packed>;
    default:
      return block_product<R, 3, Packed>;
  }
}

// The register block for `rows` (1 .. kRows) by `columns` (1 .. kStrip, computed in whole vectors).
template <bool Packed>
BlockProduct block_product_for(int64_t rows, int64_t columns) {
  const int vectors = static_cast<int>(ceil_div(columns, kLanes));
  switch (rows) {
    case 1:
      return block_product_of<1, Packed>(vectors);
    case 2:
      return block_product_of<2, Packed>(vectors);
    case 3:
      return block_product_of<3, Packed>(vectors);
#if defined(__AVX512F__)
    case 4:
      return block_product_of<4, Packed>(vectors);
    case 5:
      return block_product_of<5, Packed>(vectors);
    case 6:
      return block_product_of<6, Packed>(vectors);
    case 7:
      return block_product_of<7, Packed>(vectors);
#endif
    default:
      return block_product_of<kRows, Packed>(vectors);
  }
}

// --- halo: input to scratch
// --------------------------------------------------------------------------------------------

struct TilePlace {
  int64_t batch;
  int64_t first[3];  // first output element per axis
  int64_t size[3];
  int64_t halo[3];

  int64_t pixels() const { return size[0] * size[1] * size[2]; }
};

TilePlace place_of(const Call& call, int64_t index) {
  TilePlace at;
  for (int i = 2; i >= 0; --i) {
    const Axis& axis = call.shape.axis[i];
    const int64_t tile = index % call.tile.count[i];
    index /= call.tile.count[i];
    at.first[i] = tile * call.tile.out[i];
    at.size[i] = smaller(call.tile.out[i], axis.out - at.first[i]);
    at.halo[i] = (at.size[i] - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
  }
  at.batch = index;
  return at;
}

// Input element at a virtual position, or -1 for a zero.
inline int64_t source(const Axis& axis, bool wrap, int64_t v) {
  if (wrap) return v < 0 ? v + axis.in : v >= axis.in ? v - axis.in : v;
  if (v < 0) return -1;
  if (axis.upsample != 1) {
    if (v % axis.upsample) return -1;
    v /= axis.upsample;
  }
  return v < axis.in ? v : -1;
}

// The columns of a halo row: input column per halo column, and the run that can be copied as it stands.
struct Columns {
  const int64_t* source;  // (halo[2]), -1 for a zero
  int64_t begin, end;     // outside all zeros, inside consecutive; begin == end: not such a row
};

Columns columns_of(const Call& call, const TilePlace& at, int64_t* buffer) {
  const Axis& axis = call.shape.axis[2];
  const int64_t first = at.first[2] * axis.stride - axis.low;
  for (int64_t h = 0; h < at.halo[2]; ++h) buffer[h] = source(axis, call.shape.wrap, first + h);
  Columns columns{buffer, 0, 0};
  if (axis.stride != 1 || axis.upsample != 1 || call.xs.of[4] != 1) return columns;
  int64_t begin = 0, end = at.halo[2];
  while (begin < end && buffer[begin] < 0) ++begin;
  while (end > begin && buffer[end - 1] < 0) --end;
  for (int64_t h = begin + 1; h < end; ++h)
    if (buffer[h] != buffer[h - 1] + 1) return columns;
  columns.begin = begin;
  columns.end = end;
  return columns;
}

template <typename T>
void load_halo(const Call& call, const TilePlace& at, const Columns& columns, int64_t channel, float* halo,
               FiniteCheck& check) {
  const TileShape& tile = call.tile;
  const Axis* axis = call.shape.axis;
  const int64_t* step = call.xs.of;
  const T* image = static_cast<const T*>(call.x) + at.batch * step[0] + channel * step[1];
  const int64_t stride = axis[2].stride;
  for (int64_t z = 0; z < at.halo[0]; ++z) {
    const int64_t from_z = source(axis[0], call.shape.wrap, at.first[0] * axis[0].stride - axis[0].low + z);
    for (int64_t y = 0; y < at.halo[1]; ++y) {
      float* row = halo + (z * tile.halo[1] + y) * tile.row_pitch;
      const int64_t from_y = source(axis[1], call.shape.wrap, at.first[1] * axis[1].stride - axis[1].low + y);
      if (from_z < 0 || from_y < 0) {
        std::memset(row, 0, tile.row_pitch * sizeof(float));
        continue;
      }
      const T* line = image + from_z * step[2] + from_y * step[3];
      if (columns.begin < columns.end) {
        std::memset(row, 0, columns.begin * sizeof(float));
        std::memset(row + columns.end, 0, (at.halo[2] - columns.end) * sizeof(float));
        copy_run(line + columns.source[columns.begin], columns.end - columns.begin, row + columns.begin, check);
        continue;
      }
      int64_t phase = 0, place = 0;
      for (int64_t h = 0; h < at.halo[2]; ++h) {
        const int64_t from = columns.source[h];
        const float v = from < 0 ? 0.0f : read(line + from * step[4]);
        check.add(v);
        row[phase * tile.phase_pitch + place] = v;
        if (++phase == stride) phase = 0, ++place;
      }
    }
  }
}

// --- additions
// -----------------------------------------------------------------------------------------------------------

void add_pairs(const Call& call, const TilePlace& at, const float* halo, float* sums) {
  const TileShape& tile = call.tile;
  const int64_t width = ceil_div(at.size[2], kLanes) * kLanes;
  for (int64_t z = 0; z < at.halo[0]; ++z)
    for (int64_t y = 0; y < at.halo[1]; ++y) {
      const int64_t r = z * tile.halo[1] + y;
      const float* row = halo + r * tile.row_pitch;
      for (int j = 0; j < call.add.pairs; ++j) {
        const float* low = row + call.add.pair_low[j];
        const float* high = row + call.add.pair_high[j];
        float* to = sums + j * tile.sum_plane + r * tile.sum_pitch;
        if (low == high)
          for (int64_t x = 0; x < width; x += kLanes) store(to + x, load(low + x));
        else
          for (int64_t x = 0; x < width; x += kLanes) store(to + x, load(low + x) + load(high + x));
      }
    }
}

template <int V>
inline void add_rows(const AddProgram& add, const float* sums, float* to, int64_t pitch) {
  for (int s = 0; s < add.buckets; ++s) {
    Vec total[V];
    int64_t e = add.begin[s];
    const int64_t end = add.begin[s + 1];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total[v] = e < end ? load(sums + add.row[e] + v * kLanes) : Vec{};
    for (++e; e < end; ++e) {
      const float* row = sums + add.row[e];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) total[v] += load(row + v * kLanes);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(to + s * pitch + v * kLanes, total[v]);
  }
}

// Bucket sums of all pixels of the tile, rows joined without gaps: (buckets, tile.pitch + kLanes).
void add_buckets(const Call& call, const TilePlace& at, const float* sums, float* buckets) {
  const TileShape& tile = call.tile;
  const Axis* axis = call.shape.axis;
  const int64_t pitch = tile.pitch + kLanes;
  for (int64_t z = 0; z < at.size[0]; ++z)
    for (int64_t y = 0; y < at.size[1]; ++y) {
      const float* from = sums + (z * axis[0].stride * tile.halo[1] + y * axis[1].stride) * tile.sum_pitch;
      float* to = buckets + (z * at.size[1] + y) * at.size[2];
      // whole vectors: what runs over a row's end is overwritten by the next row, which comes later
      for (int64_t x = 0; x < at.size[2]; x += 4 * kLanes) {
        const int64_t left = at.size[2] - x;
        if (left > 3 * kLanes)
          add_rows<4>(call.add, from + x, to + x, pitch);
        else if (left > 2 * kLanes)
          add_rows<3>(call.add, from + x, to + x, pitch);
        else if (left > kLanes)
          add_rows<2>(call.add, from + x, to + x, pitch);
        else
          add_rows<1>(call.add, from + x, to + x, pitch);
      }
    }
}

// Basis rows of one channel: row i of strip s at to + s * strip_step + i * row_step.
void combine(const Call& call, int64_t pixels, const float* basis, const float* buckets, float* to, int64_t strip_step,
             int64_t row_step) {
  const int64_t pitch = call.tile.pitch + kLanes;
  for (int64_t r = 0; r < call.rows; r += kRows)
    for (int64_t s = 0; s * kStrip < pixels; ++s)
      block_product_for<true>(smaller(kRows, call.rows - r), smaller(kStrip, pixels - s * kStrip))(
          call.add.buckets, basis + r * call.add.buckets, 0, buckets + s * kStrip, pitch,
          to + s * strip_step + r * row_step, row_step, false);
}

// Buffers of one task, carved out of this thread's scratch.
struct Buffers {
  int64_t* columns;
  float* halo;
  float* sums;
  float* buckets;
  float* panel;  // basis rows
  float* out;    // output tile, or the packed gradient
};

int64_t rounded(int64_t floats) { return ceil_div(floats, 16) * 16; }

Buffers buffers_of(const Call& call, int64_t out_floats) {
  const TileShape& tile = call.tile;
  const int64_t lines = tile.halo[0] * tile.halo[1];
  const int64_t slack = 64;  // vectors are read and written past the end of a row
  const int64_t size[6] = {rounded(2 * tile.halo[2]),
                           rounded(lines * tile.row_pitch + slack),
                           rounded(call.add.pairs * tile.sum_plane + slack),
                           rounded(call.add.buckets * (tile.pitch + kLanes) + slack),
                           rounded(call.chunk * call.rows * tile.pitch),
                           rounded(out_floats)};
  int64_t total = 0;
  for (int64_t s : size) total += s;
  float* at[6];
  at[0] = scratch(total);
  for (int i = 1; i < 6; ++i) at[i] = at[i - 1] + size[i - 1];
  return Buffers{reinterpret_cast<int64_t*>(at[0]), at[1], at[2], at[3], at[4], at[5]};
}

// From the input of one channel to its bucket sums.
template <typename T>
void channel_buckets(const Call& call, const TilePlace& at, const Columns& columns, int64_t channel, const Buffers& b) {
  FiniteCheck check;
  load_halo<T>(call, at, columns, channel, b.halo, check);
  if (!check.finite()) __atomic_store_n(call.nonfinite, true, __ATOMIC_RELAXED);
  add_pairs(call, at, b.halo, b.sums);
  add_buckets(call, at, b.sums, b.buckets);
}

// --- forward, input gradient
// ---------------------------------------------------------------------------------------------

template <typename T>
void store_tile(const ConvCall& call, const TilePlace& at, int64_t channel, int64_t count, const float* tile) {
  const int64_t* step = call.ys.of;
  T* image = static_cast<T*>(call.y) + at.batch * step[0] + channel * step[1];
  const int64_t pitch = call.tile.pitch;
  for (int64_t z = 0; z < at.size[0]; ++z)
    for (int64_t y = 0; y < at.size[1]; ++y) {
      T* line = image + (at.first[0] + z) * step[2] + (at.first[1] + y) * step[3] + at.first[2] * step[4];
      const float* from = tile + (z * at.size[1] + y) * at.size[2];
      if (step[4] == 1) {
        for (int64_t c = 0; c < count; ++c) {
          const float bias = call.bias ? call.bias[channel + c] : 0.0f;
          for (int64_t x = 0; x < at.size[2]; ++x) write(line + c * step[1] + x, from[c * pitch + x] + bias);
        }
      } else {
        for (int64_t x = 0; x < at.size[2]; ++x)
          for (int64_t c = 0; c < count; ++c)
            write(line + x * step[4] + c * step[1], from[c * pitch + x] + (call.bias ? call.bias[channel + c] : 0.0f));
      }
    }
}

template <typename T>
void conv_group(const ConvCall& call, const TilePlace& at, const Columns& columns, int64_t group, int64_t out_first,
                int64_t out_count, const Buffers& b) {
  const ConvShape& shape = call.shape;
  const int64_t pixels = at.pixels(), pitch = call.tile.pitch;
  const float* basis = call.basis + group * call.basis_stride;
  if (call.mix == nullptr) {  // depthwise: the basis rows are the outputs
    channel_buckets<T>(call, at, columns, group, b);
    combine(call, pixels, basis, b.buckets, b.out, kStrip, pitch);
  } else {
    const int64_t depth = shape.in_per_group * call.rows;
    const float* mix = call.mix + (group * ceil_div(shape.out_per_group, kRows) * kRows + out_first) * depth;
    for (int64_t c = 0; c < shape.in_per_group; c += call.chunk) {
      const int64_t channels = smaller(call.chunk, shape.in_per_group - c);
      const int64_t panel_depth = channels * call.rows;
      for (int64_t i = 0; i < channels; ++i) {
        channel_buckets<T>(call, at, columns, group * shape.in_per_group + c + i, b);
        combine(call, pixels, basis, b.buckets, b.panel + i * call.rows * kStrip, panel_depth * kStrip, kStrip);
      }
      for (int64_t s = 0; s * kStrip < pixels; ++s)
        for (int64_t o = 0; o < out_count; o += kRows)
          block_product_for<true>(smaller(kRows, out_count - o), smaller(kStrip, pixels - s * kStrip))(
              panel_depth, mix + o * depth + c * call.rows * kRows, 0, b.panel + s * panel_depth * kStrip, kStrip,
              b.out + o * pitch + s * kStrip, pitch, c > 0);
    }
  }
  // finite data may overflow in a sum that the dense form never makes
  FiniteCheck check;
  for (int64_t o = 0; o < out_count; ++o) check.add_run(b.out + o * pitch, pixels);
  if (!check.finite()) __atomic_store_n(call.nonfinite, true, __ATOMIC_RELAXED);
  store_tile<T>(call, at, group * shape.out_per_group + out_first, out_count, b.out);
}

template <typename T>
void conv_tile(const ConvCall& call, int64_t task) {
  const int64_t out_block = task % call.out_blocks;
  const int64_t group_task = task / call.out_blocks % call.group_tasks;
  const TilePlace at = place_of(call, task / call.out_blocks / call.group_tasks);
  const int64_t out_first = out_block * call.out_block;
  const int64_t out_count = smaller(call.out_block, call.shape.out_per_group - out_first);
  const Buffers b = buffers_of(call, call.out_block * call.tile.pitch);
  const Columns columns = columns_of(call, at, b.columns);
  const int64_t first = group_task * call.groups_per_task;
  const int64_t last = smaller(first + call.groups_per_task, call.shape.groups);
  for (int64_t g = first; g < last; ++g) conv_group<T>(call, at, columns, g, out_first, out_count, b);
}

void conv_task(const ConvCall& call, int64_t task) {
  call.shape.dtype == DType::kFloat32 ? conv_tile<float>(call, task) : conv_tile<uint16_t>(call, task);
}

// --- weight gradient
// -------------------------------------------------------------------------------------------------------

// Gradient of the tile, output channels as lanes: strip of kStrip channels, then pixel, then lane; missing lanes zero.
template <typename T>
void pack_gradient(const WeightCall& call, const TilePlace& at, int64_t channel, int64_t count, float* to,
                   FiniteCheck& check) {
  const int64_t* step = call.gs.of;
  const T* image = static_cast<const T*>(call.grad) + at.batch * step[0] + channel * step[1];
  const int64_t pixels = at.pixels();
  for (int64_t s = 0; s < count; s += kStrip) {
    const int64_t lanes = smaller(kStrip, count - s);
    float* strip = to + s * pixels;
    if (lanes < kStrip) std::memset(strip, 0, pixels * kStrip * sizeof(float));
    for (int64_t z = 0; z < at.size[0]; ++z)
      for (int64_t y = 0; y < at.size[1]; ++y) {
        const T* line =
            image + s * step[1] + (at.first[0] + z) * step[2] + (at.first[1] + y) * step[3] + at.first[2] * step[4];
        float* row = strip + (z * at.size[1] + y) * at.size[2] * kStrip;
        // eight pixels at a time, so that the lines of all channels stay in the first cache
        for (int64_t x0 = 0; x0 < at.size[2]; x0 += 8)
          for (int64_t c = 0; c < lanes; ++c)
            for (int64_t x = x0; x < smaller(x0 + 8, at.size[2]); ++x) {
              const float v = read(line + c * step[1] + x * step[4]);
              check.add(v);
              row[x * kStrip + c] = v;
            }
      }
  }
}

// Few output channels per group: lanes would be empty, so each sum is a dot product over the pixels.
void add_dots(int64_t pixels, int64_t depth, const float* rows, int64_t pitch, const float* packed, int64_t outputs,
              float* sums, int64_t sums_pitch, float* line) {
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t p = 0; p < pixels; ++p) line[p] = packed[p * kStrip + o];
    for (int64_t d = 0; d < depth; ++d) {
      const float* row = rows + d * pitch;
      Vec total{};
      int64_t p = 0;
      for (; p + kLanes <= pixels; p += kLanes) total += load(row + p) * load(line + p);
      float sum = 0;
      for (int i = 0; i < kLanes; ++i) sum += total[i];
      for (; p < pixels; ++p) sum += row[p] * line[p];
      sums[d * sums_pitch + o] += sum;
    }
  }
}

template <typename T>
void weight_chunk(const WeightCall& call, int64_t task) {
  const ConvShape& shape = call.shape;
  const int64_t chunk = task % call.chunks;
  const int64_t group = task / call.chunks % shape.groups;
  const int64_t split = task / call.chunks / shape.groups;
  const int64_t first = chunk * call.chunk;
  const int64_t channels = smaller(call.chunk, shape.in_per_group - first);
  const int64_t depth = channels * call.rows;
  const int64_t tiles = shape.batch * call.tile.count[0] * call.tile.count[1] * call.tile.count[2];
  const int64_t pitch = call.tile.pitch;
  const bool dots = shape.out_per_group < 4;
  const Buffers b = buffers_of(call, (call.grad_block + kStrip) * pitch);
  float* sums = call.sums + ((split * shape.groups + group) * shape.in_per_group + first) * call.rows * call.out_pitch;
  for (int64_t t = tiles * split / call.splits; t < tiles * (split + 1) / call.splits; ++t) {
    const TilePlace at = place_of(call, t);
    const Columns columns = columns_of(call, at, b.columns);
    const int64_t pixels = at.pixels();
    for (int64_t i = 0; i < channels; ++i) {
      channel_buckets<T>(call, at, columns, group * shape.in_per_group + first + i, b);
      combine(call, pixels, call.basis, b.buckets, b.panel + i * call.rows * pitch, kStrip, pitch);
    }
    for (int64_t o = 0; o < shape.out_per_group; o += call.grad_block) {
      const int64_t outputs = smaller(call.grad_block, shape.out_per_group - o);
      FiniteCheck check;
      pack_gradient<T>(call, at, group * shape.out_per_group + o, outputs, b.out, check);
      if (!check.finite()) __atomic_store_n(call.nonfinite, true, __ATOMIC_RELAXED);
      if (dots) {
        add_dots(pixels, depth, b.panel, pitch, b.out, outputs, sums + o, call.out_pitch, b.out + kStrip * pitch);
        continue;
      }
      for (int64_t s = 0; s < outputs; s += kStrip)
        for (int64_t d = 0; d < depth; d += kRows)
          block_product_for<false>(smaller(kRows, depth - d), smaller(kStrip, outputs - s))(
              pixels, b.panel + d * pitch, pitch, b.out + s * pixels, kStrip, sums + d * call.out_pitch + o + s,
              call.out_pitch, true);
    }
  }
}

void weight_task(const WeightCall& call, int64_t task) {
  call.shape.dtype == DType::kFloat32 ? weight_chunk<float>(call, task) : weight_chunk<uint16_t>(call, task);
}

#define RADCONV_STRING_(a) #a
#define RADCONV_STRING(a) RADCONV_STRING_(a)

}  // namespace

extern const Kernels RADCONV_CONCAT(kernels_, RADCONV_ISA);
const Kernels RADCONV_CONCAT(kernels_, RADCONV_ISA) = {
    RADCONV_STRING(RADCONV_ISA), kLanes, kRows, kStrip, conv_task, weight_task};

}  // namespace radconv::cpu
