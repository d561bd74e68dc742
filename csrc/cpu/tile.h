// What the driver (engine.cpp) hands to the kernels (tile.cpp), which are compiled once per instruction set.
//
// Plain data only.  tile.cpp and the headers that it alone includes must not use inline functions of the standard
// library: the linker keeps one copy of each, and a copy compiled for AVX-512 would crash a smaller machine.

#pragma once

#include <cstdint>

#include "../radconv.h"
#include "mix.h"

namespace radconv::cpu {

// The tile of one call: output pixels, the halo they read, and buffer pitches.
//
// Channels are worked on in lane groups of `unit`: one channel, lanes of a vector being pixels, or as many channels as
// a vector has lanes.  A column is `unit` floats; pitches count floats.
struct TileShape {
  int64_t unit;
  int64_t images;       // samples that a tile spans: more than one where it holds them whole
  int64_t out[3];       // largest tile, pixels of a sample
  int64_t count[3];     // tiles per axis
  int64_t halo[3];      // input elements that the largest tile reads
  int64_t even_lines;   // 1: a line of pixels takes an even number of places, so that pairs don't straddle lines
  int64_t phase_pitch;  // a halo row is stored as `stride` phases: column h is h / stride of phase h % stride
  int64_t row_pitch;    // halo row
  int64_t all_sums;     // 1: all pair sums of a plane are kept, their rows without gaps
  int64_t sum_pitch;    // row of pair sums
  int64_t sum_rows;     // rows of pair sums that are kept: all, or those that one line of outputs reads
  int64_t sum_step;     // from one pair's sums to the next pair's
  int64_t pitch;        // places of a tile, rounded up to whole strips of any product (pixels, not floats)

  RADCONV_INLINE int64_t tiles(int64_t batch) const {
    return (batch + images - 1) / images * count[0] * count[1] * count[2];
  }
};

// The additions: mirrored planes, then mirrored columns (pair sums, kept for `sum_rows` rows), then rows into buckets.
struct AddProgram {
  int planes;                 // pairs of mirrored planes
  const int64_t* plane_low;   // (planes) first halo plane, from that of the first tap
  const int64_t* plane_high;  // (planes) its mirror image
  int64_t centre;             // the plane without one
  int64_t plane_sums;         // sums of columns of paired planes, which come first; the others are of the centre plane
  const int64_t* low;         // (sums) offset of the left tap in a row of the centre plane, or of the first plane pair
  const int64_t* high;        // (sums) the right one; the same for the centre
  int64_t sums;
  int buckets;
  const int64_t* begin;  // (buckets + 1) range of each bucket in `row`
  const int64_t* row;    // (sum_rows, summands) offset of each summand in the pair sums, by the first row modulo
                         // sum_rows; (1, summands) where all sums are kept
};

// How to multiply.
enum class Product {
  kFma,   // float32 vectors
  kPair,  // pairs of bfloat16 to float32
  kTile,  // AMX: tiles of 16 x 32 bfloat16; float32 as the sum of three
};

struct Call {
  ConvShape shape;
  TileShape tile;
  AddProgram add;
  const void* x;
  Strides xs;
  bool turned;           // lane groups of channels, which lie apart in x: each sample is transposed first
  Strides line_strides;  // of what halos are copied from: x or its transposed samples
  int64_t rows;          // basis functions per input channel; per output of a channel when depthwise
  int64_t block;         // of them, computed at a time
  const float* basis;    // (ceil(rows / block), buckets, block), depthwise: per group; null: the buckets themselves.
                         // Depthwise in lane groups: (ceil(groups / unit), buckets, unit)
  int64_t basis_stride;  // between groups (depthwise: lane groups); 0 when shared
  int64_t chunk;         // input channels per panel: whole pairs of lane groups, or all
  Product product;       // in bfloat16, the convolution always takes the instruction set's
  bool* nonfinite;       // set, by any thread, by NaN or Inf in x, the gradient or a result
};

struct ConvCall : Call {
  const void* mix;  // folded weights as `layout` says, one after the other for the groups; null when depthwise
  MixLayout layout;
  const int* corner;  // depthwise.h's problems: bucket per tap (pairs, pairs) of the kernel's first corner, -1: none
  const float* bias;
  void* y;
  Strides ys;
  bool past_caches;   // y is too large to be found in a cache by who reads it
  int64_t out_block;  // output channels of a task: whole blocks of any product; all of a group when depthwise
  int64_t out_blocks;
  int64_t groups_per_task;  // lane groups when depthwise
  int64_t group_tasks;
};

struct WeightCall : Call {
  const void* grad;
  Strides gs;
  int64_t splits;      // fixed by problem and instruction set, not by threads, so the sum's order is too
  int64_t chunks;      // of input channels (depthwise: of lane groups of groups)
  int64_t grad_block;  // output channels packed at a time
  SumLayout layout;
  float* sums;  // (splits, groups, layout)
};

// Sums over basis functions become gradients.
struct FinishCall {
  WeightView view;
  const float* sums;  // (groups, layout)
  SumLayout layout;
  const float* to_w;               // (n, m) or null
  float* grad_w;                   // like w
  int64_t parameters;              // sums over outputs and channels of w times the sums, for pairs of ring and function
  const int64_t *ring, *function;  // (parameters)
  double* partial;                 // (tasks, parameters), zeros at first

  RADCONV_INLINE int64_t tasks(int64_t lanes) const {
    const int64_t all = layout.lanes_are_channels() ? view.in_per_group : view.out_per_group;
    return view.groups * ((all + lanes - 1) / lanes);
  }
};

// One instruction set's kernels.
struct Kernels {
  const char* name;
  int lanes;                                              // floats per vector
  int rows;                                               // MR: rows of a register block
  int strip;                                              // NR: columns of a register block, lanes * vectors
  Product float32, bfloat16;                              // the fastest product of large problems
  void (*fold_task)(const FoldCall& call, int64_t task);  // one block of outputs of one group
  void (*conv_task)(const ConvCall& call, int64_t task);
  void (*weight_task)(const WeightCall& call, int64_t task);
  void (*finish_task)(const FinishCall& call, int64_t task);
};

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
extern const Kernels kernels_amx;

// 64-byte aligned memory of this thread, kept and reused: zeros at first, then what the last task left.  Lanes past the
// end of a row read that, and never mix with valid ones.
float* scratch(int64_t floats);

}  // namespace radconv::cpu
