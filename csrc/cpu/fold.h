// Weights before and after the kernels: folded with the profile's factor, and gradients from sums over basis
// functions.  For tile.cpp alone.

#pragma once

#include "product.h"

namespace radconv::cpu {
namespace {

// Weights of even and odd lane groups, in the order of the layout, as pairs of bfloat16.
template <int Parts>
void round_block(const MixLayout& layout, int64_t columns, const float* even, const float* odd, void* to) {
  char* block = static_cast<char*>(to);
  if (layout.kind == MixLayout::Kind::kPairs) {
    const int64_t size = columns * layout.block;
    for (int64_t i = 0; i < size; i += kLanes) {
      char pairs[kLanes * 4];  // the next block is another task's
      round_pairs<1, Order::kInterleaved>(load(even + i), load(odd + i), pairs, 0);
      std::memcpy(block + i * 4, pairs, smaller(kLanes, size - i) * 4);
    }
    return;
  }
  for (int64_t i = 0; i < columns * 16; i += 16) {
    const int64_t column = layout.output_lanes ? i / 16 : i % columns;
    const int64_t row = layout.output_lanes ? column % 16 : i / columns;
    round_pairs<Parts, Order::kInterleaved>(load(even + i), load(odd + i),
                                            block + column / 16 * Parts * kTileBytes + row * 64, kTileBytes);
  }
}

typedef double Doubles __attribute__((vector_size(kFoldLanes * 8), aligned(8), may_alias));
typedef float Singles __attribute__((vector_size(kFoldLanes * 4)));
typedef float LooseSingles __attribute__((vector_size(kFoldLanes * 4), aligned(4), may_alias));

template <bool kHasPairs>
void fold_block(const FoldCall& call, int64_t task) {
  const WeightView& view = call.view;
  const MixLayout& layout = call.layout;
  const int64_t blocks = layout.blocks(view.out_per_group), columns = layout.columns(view.in_per_group, call.m);
  const int64_t group = task / blocks, first = task % blocks * layout.block;
  const int64_t size = columns * layout.block;
  void* to = static_cast<char*>(call.to) + task * layout.block_bytes(columns);
  float* values[2] = {static_cast<float*>(to), nullptr};
  if (layout.pairs()) {
    values[0] = scratch(2 * round_up(size + kSlack, 16));
    values[1] = values[0] + round_up(size + kSlack, 16);
    std::memset(values[1], 0, size * sizeof(float));
  }
  std::memset(values[0], 0, size * sizeof(float));
  const bool output_last = layout.kind != MixLayout::Kind::kTiles || layout.output_lanes;
  const int64_t output_step = output_last ? 1 : columns, column_step = output_last ? layout.block : 1;
  const int64_t step = layout.unit * column_step;
  const int64_t next_channel = view.offset(group, first, 1) - view.offset(group, first, 0);
  for (int64_t o = 0; o < smaller(layout.block, view.out_per_group - first); ++o) {
    const float* w = view.w + view.offset(group, first + o, 0);
    int64_t lanes = 0, lane = 0;  // lane group, channel in it
    for (int64_t c = 0; c < view.in_per_group; ++c, w += next_channel) {
      const int64_t column = (layout.pairs() ? lanes / 2 : lanes) * call.m * layout.unit + lane;
      float* value = values[layout.pairs() ? lanes % 2 : 0] + o * output_step + column * column_step;
      if (++lane == layout.unit) lane = 0, ++lanes;
      for (int64_t j = 0; j < call.m; j += kFoldLanes) {
        Doubles sum{};
        for (int64_t i = 0; i < view.rings; ++i)
          sum += static_cast<double>(w[i]) * *reinterpret_cast<const Doubles*>(call.matrix + i * call.pitch() + j);
        const Singles rounded = __builtin_convertvector(sum, Singles);
        // past the last one lie values that come later
        if (step == 1 && layout.pairs())
          *reinterpret_cast<LooseSingles*>(value + j) = rounded;
        else
          for (int64_t l = 0; l < smaller(kFoldLanes, call.m - j); ++l) value[(j + l) * step] = rounded[l];
      }
    }
  }
  if constexpr (kHasPairs)
    if (layout.pairs())
      (layout.parts == 3 ? round_block<3> : round_block<1>)(layout, columns, values[0], values[1], to);
}

typedef double Wide __attribute__((vector_size(kLanes * 8), aligned(8), may_alias));

// Lanes are what lies together in the sums: outputs, or the channels of a lane group.
void finish_task(const FinishCall& call, int64_t task) {
  const WeightView& view = call.view;
  const SumLayout& layout = call.layout;
  const int64_t n = view.rings, m = layout.rows, step = layout.unit * layout.k_step;
  const bool by_channel = layout.lanes_are_channels();
  const int64_t lane_count = by_channel ? view.in_per_group : view.out_per_group;
  const int64_t others = by_channel ? view.out_per_group : view.in_per_group;
  const int64_t blocks = ceil_div(lane_count, kLanes), group = task / blocks, first = task % blocks * kLanes;
  const int64_t lanes = smaller(kLanes, lane_count - first);
  float* gradient = scratch((2 * n + 2 * call.parameters) * kLanes);
  float* w = gradient + n * kLanes;
  Wide* partial = reinterpret_cast<Wide*>(w + n * kLanes);  // terms of a parameter's gradient cancel
  for (int64_t p = 0; p < call.parameters; ++p) partial[p] = Wide{};
  for (int64_t other = 0; other < others; ++other) {
    const int64_t c = by_channel ? first : other, o = by_channel ? other : first;
    const float* sums = call.sums + group * layout.group + layout.at(c, 0, o);
    const int64_t at = view.offset(group, o, c);
    const int64_t next = (by_channel ? view.offset(group, o, c + 1) : view.offset(group, o + 1, c)) - at;
    if (call.to_w != nullptr) {
      for (int64_t i = 0; i < n; ++i) {
        Vec sum{};
        for (int64_t j = 0; j < m; ++j) sum += call.to_w[i * m + j] * load(sums + j * step);
        store(gradient + i * kLanes, sum);
      }
      for (int64_t l = 0; l < lanes; ++l)
        for (int64_t i = 0; i < n; ++i) call.grad_w[at + l * next + i] = gradient[i * kLanes + l];
    }
    if (call.parameters == 0) continue;
    for (int64_t l = 0; l < kLanes; ++l)
      for (int64_t i = 0; i < n; ++i) w[i * kLanes + l] = l < lanes ? view.w[at + l * next + i] : 0.0f;
    for (int64_t p = 0; p < call.parameters; ++p)
      partial[p] += __builtin_convertvector(load(w + call.ring[p] * kLanes), Wide) *
                    __builtin_convertvector(load(sums + call.function[p] * step), Wide);
  }
  for (int64_t p = 0; p < call.parameters; ++p)
    for (int64_t l = 0; l < lanes; ++l) call.partial[task * call.parameters + p] += partial[p][l];
}

}  // namespace
}  // namespace radconv::cpu
