// The weights: as they come, and folded as each product wants them.

#pragma once

#include <cstdint>

namespace radconv::cpu {

// Hazard: of a function that is not inlined the linker keeps one copy, maybe one for an instruction set that the
// machine lacks.  What instruction sets share is inlined in any case.
#define RADCONV_INLINE __attribute__((always_inline))

constexpr int64_t kWholeStrips = 96;  // whole blocks and strips of any product
constexpr int64_t kTileRows = 16;     // of an AMX tile, each of 16 pairs of bfloat16
constexpr int64_t kTileBytes = 1024;

// w as the kernels want it.
struct WeightView {
  const float* w;
  bool transpose;  // (G * I, O, n) instead of (G * O, I, n)
  int64_t groups, in_per_group, out_per_group;
  int rings;

  RADCONV_INLINE int64_t offset(int64_t group, int64_t out, int64_t in) const {
    const int64_t major = transpose ? group * in_per_group + in : group * out_per_group + out;
    const int64_t minors = transpose ? out_per_group : in_per_group;
    return (major * minors + (transpose ? out : in)) * rings;
  }
};

// The inner index of a product counts lane groups of `unit` channels; within one, basis functions; within one,
// channels.  Pairs join neighbouring lane groups.
struct MixLayout {
  enum class Kind {
    kFloats,  // (ceil(O / block), columns, block) floats
    kPairs,   // the same of pairs of bfloat16
    kTiles,   // (ceil(O / 16), columns / 16, parts) tiles of pairs of bfloat16
  };
  Kind kind = Kind::kFloats;
  int64_t unit = 1;
  int64_t block = 1;
  int64_t parts = 1;          // bfloat16 numbers whose sum is the weight
  bool output_lanes = false;  // kTiles: outputs are a tile's columns instead of its rows

  RADCONV_INLINE bool pairs() const { return kind != Kind::kFloats; }

  // Columns of `channels` channels with `rows` basis functions each.
  RADCONV_INLINE int64_t columns(int64_t channels, int64_t rows) const {
    const int64_t step = pairs() ? 2 * unit : unit;
    const int64_t all = (channels + step - 1) / step * rows * unit;
    return kind == Kind::kTiles ? (all + kTileRows - 1) / kTileRows * kTileRows : all;
  }

  RADCONV_INLINE int64_t blocks(int64_t outputs) const { return (outputs + block - 1) / block; }

  // Bytes of one block of outputs.
  RADCONV_INLINE int64_t block_bytes(int64_t columns) const {
    return kind == Kind::kTiles ? columns / kTileRows * parts * kTileBytes : columns * block * 4;
  }
};

// Where the sums of the weight gradient lie: basis function `j` of input channel `c` for output `o`.
struct SumLayout {
  int64_t unit;    // lane groups of channels, as in TileShape
  int64_t rows;    // basis functions per channel
  int64_t k_step;  // between neighbouring (channel, function) pairs
  int64_t o_step;  // between outputs
  int64_t group;   // floats of a group

  RADCONV_INLINE bool lanes_are_channels() const { return k_step == 1; }

  RADCONV_INLINE int64_t at(int64_t c, int64_t j, int64_t o) const {
    return ((c / unit * rows + j) * unit + c % unit) * k_step + o * o_step;
  }
};

// w times `matrix` (n, m), summed in double, rounded once, and laid out for each group and block of outputs.
constexpr int64_t kFoldLanes = 8;

struct FoldCall {
  WeightView view;
  const double* matrix;  // (n, pitch)
  int64_t m;
  MixLayout layout;
  void* to;

  RADCONV_INLINE int64_t pitch() const { return (m + kFoldLanes - 1) / kFoldLanes * kFoldLanes; }
};

}  // namespace radconv::cpu
