// Forward and input gradient: one task is one tile of pixels and a block of outputs.  For tile.cpp alone.
//
//   basis rows (rings.h) -> panel -> product with the folded weights (product.h) -> output

#pragma once

#include "depthwise.h"
#include "product.h"
#include "stage.h"

namespace radconv::cpu {
namespace {

// Basis rows of a pair of lane groups (or, for float32, of one: `second` null) become columns of a panel of `columns`.
template <Product product, int Parts>
void pack_panel(const Call& call, const TilePlace& at, const float* first, const float* second, int64_t pitch,
                int64_t pair, int64_t columns, float* panel) {
  const int64_t places = at.places(), rows = call.rows;
  const bool by_place = call.tile.unit > 1;
  if constexpr (product == Product::kTile) {
    // a row of a tile is a column of the panel, or, where lanes are channels, a place
    const int64_t strip = columns / 16 * Parts * kTileBytes;
    for (int64_t r = 0; r < rows; ++r, first += pitch, second += pitch) {
      const int64_t column = pair * rows + r;
      char* to = reinterpret_cast<char*>(panel) +
                 (by_place ? column * Parts * kTileBytes : column / 16 * Parts * kTileBytes + column % 16 * 64);
      const int64_t vectors = by_place ? places : ceil_div(places, 16);
      for (int64_t i = 0; i < vectors; ++i)
        round_pairs<Parts, Order::kInterleaved>(load(first + i * 16), load(second + i * 16),
                                                to + (by_place ? i / 16 * strip + i % 16 * 64 : i * strip), kTileBytes);
    }
  } else {
    const int64_t unit = by_place ? kLanes : 1;
    for (int half = 0; half < (product == Product::kFma && second != nullptr ? 2 : 1); ++half) {
      const float* from = half ? second : first;
      for (int64_t r = 0; r < rows; ++r, from += pitch) {
        const int64_t column = ((product == Product::kFma ? 2 * pair + half : pair) * rows + r) * unit;
        for (int64_t i = 0; i < places * unit; i += kLanes) {
          float* to = by_place ? panel + i / kLanes * columns + column
                               : panel + (i / kStrip * columns + column) * kStrip + i % kStrip;
          if constexpr (product == Product::kFma) {
            store(to, load(from + i));
          } else {
            round_pairs<1, Order::kInterleaved>(load(from + i), load(second + r * pitch + i),
                                                reinterpret_cast<char*>(to), 0);
          }
        }
      }
    }
  }
}

// Columns that fill up the last tile are zeros, as their weights are: zero times what lay there might be NaN.
template <int Parts>
void zero_columns(const TilePlace& at, int64_t from, int64_t columns, float* panel) {
  for (int64_t strip = 0; strip * 16 < at.places(); ++strip)
    for (int64_t column = from; column < columns; ++column)
      for (int part = 0; part < Parts; ++part)
        std::memset(reinterpret_cast<char*>(panel) +
                        ((strip * (columns / 16) + column / 16) * Parts + part) * kTileBytes + column % 16 * 64,
                    0, 64);
}

// out = or += panel times folded weights: (outputs, places), or with lanes as channels (places, outputs).
template <Product product, int Parts>
void multiply(const ConvCall& call, const TilePlace& at, const float* panel, int64_t columns, const char* mix,
              int64_t block_bytes, int64_t outputs, float* out, int64_t out_pitch, bool accumulate) {
  const int64_t places = at.places();
  const bool by_place = call.tile.unit > 1;
  if constexpr (product == Product::kTile) {
    const char* tiles = reinterpret_cast<const char*>(panel);
    const int64_t steps = columns / 16, block = steps * Parts * kTileBytes;
    if (by_place)
      tile_products<Parts, Parts>(steps, tiles, block, places, mix, block_bytes, outputs, out, out_pitch, accumulate,
                                  false);
    else
      tile_products<Parts, Parts>(steps, mix, block_bytes, outputs, tiles, block, places, out, out_pitch, accumulate,
                                  true);
  } else {
    constexpr bool pairs = product == Product::kPair;
    const float* weights = reinterpret_cast<const float*>(mix);
    const int64_t step = block_bytes / 4;
    if (by_place) {
      for (int64_t o = 0; o < outputs; o += kStrip)
        for (int64_t p = 0; p < places; p += kRows)
          block_product_for<pairs>(smaller(kRows, places - p), smaller(kStrip, outputs - o))(
              columns, {panel + p * columns, columns, 1}, weights + o / kStrip * step, kStrip, out + p * out_pitch + o,
              out_pitch, accumulate);
    } else {
      for (int64_t p = 0; p < places; p += kStrip)
        for (int64_t o = 0; o < outputs; o += kRows)
          block_product_for<pairs>(smaller(kRows, outputs - o), smaller(kStrip, places - p))(
              columns, {weights + o / kRows * step, 1, kRows}, panel + p * columns, kStrip, out + o * out_pitch + p,
              out_pitch, accumulate);
    }
  }
}

// A run of results to neighbouring elements; `bias` per element, or one for all.
template <typename T>
inline void store_run(const float* from, int64_t count, const float* bias, bool one_bias, bool past_caches, T* to,
                      FiniteCheck& check) {
  if (count < kLanes) {
    for (int64_t i = 0; i < count; ++i) {
      check.add(from[i]);
      write(to + i, from[i] + (bias ? bias[one_bias ? 0 : i] : 0.0f));
    }
    return;
  }
  // a line of the cache must not be written in both ways
  past_caches &= (reinterpret_cast<uintptr_t>(to) | static_cast<uintptr_t>(count * 4)) % sizeof(Vec) == 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t at = smaller(i, count - kLanes);  // the last vector may overlap the one before
    Vec v = load(from + at);
    check.add(v);
    if (bias) v += one_bias ? Vec{} + *bias : load(bias + at);
    past_caches ? stream(to + at, v) : store_rounded(to + at, v);
  }
}

// `tile`: (outputs, places), or by place (places, outputs), with `count` outputs from `channel` on.
template <typename T>
void store_tile(const ConvCall& call, const TilePlace& at, int64_t channel, int64_t count, const float* tile,
                int64_t pitch, bool by_place, float* turned) {
  const int64_t* step = call.ys.of;
  const bool places_together = step[4] == 1, outputs_together = step[1] == 1 && !places_together;
  FiniteCheck check;  // finite data may overflow in a sum that the dense form never makes
  if (by_place != outputs_together) {
    const int64_t rows = by_place ? at.places() : count, columns = by_place ? count : at.places();
    const int64_t turned_pitch = round_up(rows, kLanes) + kLanes;
    transpose(tile, pitch, round_up(rows, kLanes), round_up(columns, kLanes), turned, turned_pitch);
    tile = turned, pitch = turned_pitch, by_place = !by_place;
  }
  const float* bias = call.bias ? call.bias + channel : nullptr;
  // lines that follow one another without a gap are one
  const bool joined = step[3] == at.size[2] * step[4];
  const int64_t lines = joined ? 1 : at.size[1], run = joined ? at.size[1] * at.size[2] : at.size[2];
  for (int64_t plane = 0; plane < at.images * at.size[0]; ++plane)
    for (int64_t y = 0; y < lines; ++y) {
      const int64_t image = plane / at.size[0], z = plane % at.size[0];
      T* line = static_cast<T*>(call.y) + (at.batch + image) * step[0] + channel * step[1] +
                (at.first[0] + z) * step[2] + (at.first[1] + y) * step[3] + at.first[2] * step[4];
      const int64_t place = (plane * at.size[1] + y) * at.line;
      if (by_place)
        for (int64_t x = 0; x < run; ++x)
          store_run(tile + (place + x) * pitch, count, bias, false, call.past_caches, line + x * step[4], check);
      else
        for (int64_t c = 0; c < count; ++c)
          store_run(tile + c * pitch + place, run, bias ? bias + c : nullptr, true, call.past_caches,
                    line + c * step[1], check);
    }
  if (call.past_caches) finish_streams();
  check.report(call.nonfinite);
}

// One tile, one block of outputs, some groups.  `Parts` are those of a product of tiles.
template <typename T, Product product, int Parts>
class ConvTile {
 public:
  ConvTile(const ConvCall& call, int64_t task)
      : call_(call),
        at_(place_of(call, task / call.out_blocks / call.group_tasks)),
        depthwise_(call.mix == nullptr),
        by_place_(call.tile.unit > 1),
        unit_(by_place_ ? kLanes : 1),
        group_task_(task / call.out_blocks % call.group_tasks),
        out_first_(task % call.out_blocks * call.out_block),
        out_count_(smaller(call.out_block, call.shape.out_per_group - out_first_)) {
    const int64_t pitch = call.tile.pitch,
                  outputs = depthwise_ && by_place_ ? unit_ : round_up(call.out_block, call.block);
    const int64_t room = round_up(outputs, kWholeStrips) + 16;
    out_pitch_ = !by_place_ ? pitch : depthwise_ ? unit_ : room;
    const bool turns = by_place_ != (call.ys.of[4] != 1);
    Carver carver;
    const StagePlaces places = ask_stage(carver, call, depthwise_ ? 0 : 2);
    const int64_t columns = depthwise_ ? 0 : call.layout.columns(call.chunk, call.rows);
    const int64_t panel = carver.ask(columns * pitch * (product == Product::kTile ? Parts : 1));
    const int64_t out = carver.ask(by_place_ ? pitch * out_pitch_ : room * out_pitch_);
    const int64_t turned = carver.ask(turns ? room * pitch + (room + pitch) * kLanes : 0);
    float* memory = carver.memory();
    stage_ = stage_at(call, places, memory);
    panel_ = memory + panel;
    out_ = memory + out;
    turned_ = memory + turned;
  }

  void run() {
    map_ = halo_map(call_, at_, stage_.map);
    const int64_t all = depthwise_ ? ceil_div(call_.shape.groups, unit_) : call_.shape.groups;
    const int64_t last = smaller((group_task_ + 1) * call_.groups_per_task, all);
    for (int64_t g = group_task_ * call_.groups_per_task; g < last; ++g) depthwise_ ? lane_group(g) : group(g);
  }

 private:
  // A lane group of a depthwise convolution: its basis rows are the outputs.
  void lane_group(int64_t g) {
    const int64_t channels = smaller(unit_, call_.shape.groups - g * unit_);
    const float* weights = call_.basis + g * call_.basis_stride;
    if (call_.corner != nullptr)
      depthwise_rows<T>(call_, at_, map_, g * unit_, channels, weights, stage_.rings, out_);
    else
      ring_rows<T>(call_, at_, map_, g * unit_, channels, weights, by_place_, stage_.rings, out_,
                   by_place_ ? 0 : out_pitch_);
    store_out(g * (by_place_ ? unit_ : out_count_), by_place_ ? channels : out_count_);
  }

  void group(int64_t g) {
    const MixLayout& layout = call_.layout;
    const int64_t pairs = ceil_div(ceil_div(call_.shape.in_per_group, unit_), 2);  // of lane groups
    const int64_t chunk = ceil_div(call_.chunk, 2 * unit_);
    const int64_t block_bytes = layout.block_bytes(layout.columns(call_.shape.in_per_group, call_.rows));
    const char* mix = static_cast<const char*>(call_.mix) +
                      (g * layout.blocks(call_.shape.out_per_group) + out_first_ / layout.block) * block_bytes;
    for (int64_t first = 0; first < pairs; first += chunk) {
      const int64_t columns = fill_panel(g, first, smaller(chunk, pairs - first));
      const int64_t before = layout.columns(first * 2 * unit_, call_.rows);
      multiply<product, Parts>(call_, at_, panel_, columns, mix + layout.block_bytes(before), block_bytes, out_count_,
                               out_, out_pitch_, first > 0);
    }
    store_out(g * call_.shape.out_per_group + out_first_, out_count_);
  }

  // Basis rows of some pairs of lane groups; returns the panel's columns.
  int64_t fill_panel(int64_t g, int64_t first, int64_t pairs) {
    const int64_t all = call_.shape.in_per_group, begin = first * 2 * unit_;
    const int64_t columns = call_.layout.columns(smaller(pairs * 2 * unit_, all - begin), call_.rows);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const int64_t channel = begin + pair * 2 * unit_;
      const bool alone = channel + unit_ >= all;
      for (int half = 0; half < (alone ? 1 : 2); ++half)
        ring_rows<T>(call_, at_, map_, g * all + channel + half * unit_, smaller(unit_, all - channel - half * unit_),
                     call_.basis, false, stage_.rings, stage_.half[half], stage_.pitch);
      if (alone && product != Product::kFma) std::memset(stage_.half[1], 0, call_.rows * stage_.pitch * sizeof(float));
      pack_panel<product, Parts>(call_, at_, stage_.half[0],
                                 alone && product == Product::kFma ? nullptr : stage_.half[1], stage_.pitch, pair,
                                 columns, panel_);
    }
    if (product == Product::kTile) zero_columns<Parts>(at_, pairs * call_.rows * unit_, columns, panel_);
    return columns;
  }

  void store_out(int64_t channel, int64_t count) {
    store_tile<T>(call_, at_, channel, count, out_, out_pitch_, by_place_, turned_);
  }

  const ConvCall& call_;
  const TilePlace at_;
  const bool depthwise_;
  const bool by_place_;  // lanes are channels
  const int64_t unit_, group_task_, out_first_, out_count_;
  HaloMap map_;
  Stage stage_;
  int64_t out_pitch_;
  float *panel_, *out_, *turned_;
};

}  // namespace
}  // namespace radconv::cpu
