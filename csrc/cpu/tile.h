// What the driver (engine.cpp) hands to the kernels (tile.cpp), which are compiled once per instruction set.
//
// Plain data only.  tile.cpp must not use inline functions of the standard library: the linker keeps one copy of each,
// and a copy compiled for AVX-512 would crash a smaller machine.

#pragma once

#include <cstdint>

#include "../radconv.h"

namespace radconv::cpu {

// The tile of one call: output pixels, the halo they read, and buffer pitches, all in elements.
struct TileShape {
  int64_t out[3];       // largest tile
  int64_t count[3];     // tiles per axis
  int64_t halo[3];      // input elements that the largest tile reads
  int64_t phase_pitch;  // a halo row is stored as `stride` phases: column h at (h % stride) * phase_pitch + h / stride
  int64_t row_pitch;    // halo row
  int64_t sum_pitch;    // row of pair sums
  int64_t sum_plane;    // all rows of one pair
  int64_t pitch;        // pixels of a tile, rounded up to whole strips
};

// The additions: first horizontal pairs, then rows of pairs into buckets.
struct AddProgram {
  int pairs;                 // ceil(kernel width / 2)
  const int64_t* pair_low;   // (pairs) offset of the left tap in a halo row
  const int64_t* pair_high;  // (pairs) the right one; the same for the centre
  int buckets;
  const int64_t* begin;  // (buckets + 1) range of each bucket in `row`
  const int64_t* row;    // offset of each summand in the pair sums
};

struct Call {
  ConvShape shape;
  TileShape tile;
  AddProgram add;
  const void* x;
  Strides xs;
  int rows;              // basis functions per input channel; per output of a channel when depthwise
  const float* basis;    // (ceil(rows / MR), buckets, MR); depthwise: one such block per group
  int64_t basis_stride;  // between groups; 0 when shared
  int64_t chunk;         // input channels per panel
  bool* nonfinite;       // set, by any thread, by NaN or Inf in x, the gradient or a result
};

struct ConvCall : Call {
  const float* mix;  // (groups, ceil(O' / MR), C' * rows, MR); null when depthwise
  const float* bias;
  void* y;
  Strides ys;
  int64_t out_block;  // output channels of a task: a multiple of MR; all of a group when depthwise
  int64_t out_blocks;
  int64_t groups_per_task;
  int64_t group_tasks;
};

struct WeightCall : Call {
  const void* grad;
  Strides gs;
  int64_t splits;      // fixed by problem and instruction set, not by threads, so the sum's order is too
  int64_t chunks;      // of input channels
  int64_t out_pitch;   // O' rounded up to whole vectors
  int64_t grad_block;  // output channels packed at a time, whole strips
  float* sums;         // (splits, groups, C' * rows, out_pitch)
};

// One instruction set's kernels.
struct Kernels {
  const char* name;
  int lanes;  // floats per vector
  int rows;   // MR: rows of a register block
  int strip;  // NR: columns of a register block, lanes * vectors
  void (*conv_task)(const ConvCall& call, int64_t task);
  void (*weight_task)(const WeightCall& call, int64_t task);
};

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

// 64-byte aligned memory of this thread, kept and reused: zeros at first, then what the last task left.  Lanes past the
// end of a row read that, and never mix with valid ones.
float* scratch(int64_t floats);

}  // namespace radconv::cpu
