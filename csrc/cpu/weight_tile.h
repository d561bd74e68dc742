// Weight gradient: one task sums basis rows times the output's gradient over a part of the tiles.  For tile.cpp alone.

#pragma once

#include "product.h"
#include "stage.h"

namespace radconv::cpu {
namespace {

// The gradient of up to kLanes outputs: (places, outputs) or (outputs, places), missing ones zero.
template <typename T>
void load_gradient(const WeightCall& call, const TilePlace& at, int64_t channel, int64_t count, bool by_place,
                   float* to, int64_t pitch, float* turned) {
  const int64_t* step = call.gs.of;
  const T* grad = static_cast<const T*>(call.grad) + at.batch * step[0] + channel * step[1];
  const bool outputs_together = step[1] == 1 && step[4] != 1;
  const int64_t places = round_up(at.places(), 2 * kLanes);
  const bool turn = by_place != outputs_together;
  float* lines = turn ? turned : to;
  const int64_t lines_pitch = !turn ? pitch : outputs_together ? kLanes : places;
  FiniteCheck check;
  if (outputs_together) {
    for (int64_t p = 0; p < places; ++p) std::memset(lines + p * lines_pitch, 0, kLanes * sizeof(float));
  } else {
    for (int64_t o = 0; o < kLanes; ++o) std::memset(lines + o * lines_pitch, 0, places * sizeof(float));
  }
  for (int64_t plane = 0; plane < at.images * at.size[0]; ++plane)
    for (int64_t y = 0; y < at.size[1]; ++y) {
      const int64_t image = plane / at.size[0], z = plane % at.size[0];
      const T* line =
          grad + image * step[0] + (at.first[0] + z) * step[2] + (at.first[1] + y) * step[3] + at.first[2] * step[4];
      const int64_t place = (plane * at.size[1] + y) * at.line;
      if (outputs_together) {
        for (int64_t x = 0; x < at.size[2]; ++x)
          copy_run(line + x * step[4], count, lines + (place + x) * lines_pitch, check);
      } else if (step[4] == 1) {
        for (int64_t o = 0; o < count; ++o)
          copy_run(line + o * step[1], at.size[2], lines + o * lines_pitch + place, check);
      } else {
        for (int64_t o = 0; o < count; ++o)
          for (int64_t x = 0; x < at.size[2]; ++x)
            check.add(lines[o * lines_pitch + place + x] = read(line + o * step[1] + x * step[4]));
      }
    }
  check.report(call.nonfinite);
  if (!turn) return;
  if (outputs_together)
    transpose(lines, lines_pitch, places, kLanes, to, pitch);
  else
    transpose(lines, lines_pitch, kLanes, places, to, pitch);
}

// Places that are no pixels, up to whole tiles of 32, are zeros in a basis row.
void zero_places(const TilePlace& at, int64_t unit, float* row) {
  if (at.line != at.size[2])
    for (int64_t i = 0; i < at.lines(); ++i)
      std::memset(row + (i * at.line + at.size[2]) * unit, 0, unit * sizeof(float));
  std::memset(row + at.places() * unit, 0, (round_up(at.places(), 32) - at.places()) * unit * sizeof(float));
}

// sums[r] += sum over i of rows[r][i] * gradient[i]: lane by lane, or all lanes together.
void add_dots(int64_t count, const float* rows, int64_t pitch, int64_t depth, const float* gradient, bool by_lane,
              float* sums, int64_t step) {
  for (int64_t r = 0; r < depth; ++r) {
    const float* row = rows + r * pitch;
    Vec total[2]{};
    int64_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes)
      for (int v = 0; v < 2; ++v) total[v] += load(row + i + v * kLanes) * load(gradient + i + v * kLanes);
    for (; i + kLanes <= count; i += kLanes) total[0] += load(row + i) * load(gradient + i);
    total[0] += total[1];
    if (by_lane) {
      store(sums + r * kLanes, load(sums + r * kLanes) + total[0]);
      continue;
    }
    float sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += total[0][l];
    for (; i < count; ++i) sum += row[i] * gradient[i];
    sums[r * step] += sum;
  }
}

// One chunk of channels and one split of the tiles.  `PanelParts` and `GradParts` are those of a product of tiles.
template <typename T, Product product, int PanelParts, int GradParts>
class WeightChunk {
 public:
  WeightChunk(const WeightCall& call, int64_t task)
      : call_(call),
        by_place_(call.tile.unit > 1),
        by_lane_(by_place_ && call.shape.in_per_group == 1 && call.shape.out_per_group == 1),
        dots_(!kTiles && (by_lane_ || (!by_place_ && call.shape.out_per_group < 4))),
        direct_(!kTiles && !by_place_),
        unit_(by_place_ ? kLanes : 1),
        rows_(call.rows) {
    const int64_t groups = by_lane_ ? 1 : call.shape.groups;
    const int64_t all_channels = by_lane_ ? call.shape.groups : call.shape.in_per_group;
    group_ = task / call.chunks % groups;
    split_ = task / call.chunks / groups;
    first_ = task % call.chunks * call.chunk;
    channels_ = smaller(call.chunk, all_channels - first_);
    lane_groups_ = ceil_div(channels_, unit_);
    depth_ = lane_groups_ * rows_ * unit_;
    sums_ = call.sums + (split_ * groups + group_) * call.layout.group + call.layout.at(first_, 0, 0);

    const int64_t pitch = call.tile.pitch;
    const int64_t outputs = round_up(smaller(call.grad_block, call.shape.out_per_group), kWholeStrips);
    grad_pitch_ = outputs + kLanes;
    Carver carver;
    const StagePlaces places = ask_stage(carver, call, direct_ ? 0 : 1);
    const int64_t depth = by_lane_ ? 0 : round_up(ceil_div(call.chunk, unit_) * rows_ * unit_ + call.block, 16);
    const int64_t panel = carver.ask(!kTiles ? depth * pitch : depth * pitch * PanelParts / 2);
    const int64_t grad = carver.ask(dots_     ? pitch * kLanes
                                    : !kTiles ? pitch * grad_pitch_
                                              : outputs * pitch * GradParts / 2);
    const int64_t lines = carver.ask(pitch * kLanes), turned = carver.ask(pitch * kLanes);
    float* memory = carver.memory();
    stage_ = stage_at(call, places, memory);
    panel_ = memory + panel;
    grad_ = memory + grad;
    lines_ = memory + lines;
    turned_ = memory + turned;
  }

  void run() {
    const int64_t tiles = call_.tile.tiles(call_.shape.batch);
    for (int64_t t = tiles * split_ / call_.splits; t < tiles * (split_ + 1) / call_.splits; ++t) {
      at_ = place_of(call_, t);
      steps_ = ceil_div(at_.places(), 32);
      fill_panel();
      if (by_lane_) continue;
      for (int64_t o = 0; o < call_.shape.out_per_group; o += call_.grad_block) {
        const int64_t outputs = smaller(call_.grad_block, call_.shape.out_per_group - o);
        for (int64_t b = 0; b < outputs; b += kLanes) add_outputs(o, b, smaller(kLanes, outputs - b));
        if (!dots_) multiply(outputs, sums_ + o * call_.layout.o_step);
      }
    }
  }

 private:
  static constexpr bool kTiles = product == Product::kTile;

  // Basis rows of all lane groups; where these are single channels with an output each, their sums too.
  void fill_panel() {
    const HaloMap map = halo_map(call_, at_, stage_.map);
    for (int64_t l = 0; l < lane_groups_; ++l) {
      const int64_t lanes = smaller(unit_, channels_ - l * unit_), first = first_ + l * unit_;
      float* to = direct_ ? panel_ + l * rows_ * call_.tile.pitch : stage_.half[0];
      ring_rows<T>(call_, at_, map, group_ * call_.shape.in_per_group + first, lanes, call_.basis, false, stage_.rings,
                   to, direct_ ? call_.tile.pitch : stage_.pitch);
      if (by_lane_) {
        load_gradient<T>(call_, at_, first, lanes, true, grad_, kLanes, turned_);
        add_dots(at_.places() * kLanes, to, stage_.pitch, rows_, grad_, true, sums_ + l * rows_ * kLanes, 1);
      } else if (!direct_) {
        for (int64_t r = 0; r < rows_; ++r) pack_row(l * rows_ + r, to + r * stage_.pitch);
      }
    }
    // rows that fill up the last tile
    if (kTiles && !by_place_)
      for (int64_t k = depth_; k % 16; ++k)
        for (int64_t part = 0; part < steps_ * PanelParts; ++part)
          std::memset(tile(panel_, k / 16, 0, PanelParts) + part * kTileBytes + k % 16 * 64, 0, 64);
  }

  // Row `k` of the panel: of a channel, or of a lane group.
  void pack_row(int64_t k, float* row) {
    if constexpr (!kTiles) {
      for (int64_t p = 0; p < at_.places(); ++p) store(panel_ + p * depth_ + k * kLanes, load(row + p * kLanes));
    } else {
      zero_places(at_, unit_, row);
      if (by_place_)
        pack_places<PanelParts>(row, panel_, k);
      else
        pack_lane<PanelParts>(row, panel_, k / 16, k % 16);
    }
  }

  // The gradient of outputs b .. b + lanes of the block that begins at `o`.
  void add_outputs(int64_t o, int64_t b, int64_t lanes) {
    const int64_t channel = group_ * call_.shape.out_per_group + o + b, pitch = call_.tile.pitch;
    if (dots_) {
      load_gradient<T>(call_, at_, channel, lanes, false, grad_, pitch, turned_);
      for (int64_t i = 0; i < lanes; ++i)
        add_dots(at_.places(), panel_, pitch, depth_, grad_ + i * pitch, false,
                 sums_ + (o + b + i) * call_.layout.o_step, call_.layout.k_step);
    } else if constexpr (!kTiles) {
      load_gradient<T>(call_, at_, channel, lanes, true, grad_ + b, grad_pitch_, turned_);
    } else {
      load_gradient<T>(call_, at_, channel, lanes, !by_place_, lines_, by_place_ ? pitch : kLanes, turned_);
      if (!by_place_) return pack_places<GradParts>(lines_, grad_, b / 16);
      for (int64_t i = 0; i < 16; ++i) pack_lane<GradParts>(lines_ + i * pitch, grad_, b / 16, i);
    }
  }

  // Tile `step` of a block of 16 rows or columns.
  char* tile(float* operand, int64_t block, int64_t step, int64_t parts) const {
    return reinterpret_cast<char*>(operand) + (block * steps_ + step) * parts * kTileBytes;
  }

  // (places, lanes): neighbouring places become pairs, lanes a tile's columns.
  template <int Parts>
  void pack_places(const float* from, float* operand, int64_t block) {
    for (int64_t p = 0; p < steps_ * 32; p += 2)
      round_pairs<Parts, Order::kInterleaved>(load(from + p * kLanes), load(from + (p + 1) * kLanes),
                                              tile(operand, block, p / 32, Parts) + p % 32 / 2 * 64, kTileBytes);
  }

  // (places) of one lane: neighbouring places become pairs, the lane a tile's row.
  template <int Parts>
  void pack_lane(const float* from, float* operand, int64_t block, int64_t lane) {
    for (int64_t p = 0; p < steps_ * 32; p += 32)
      round_pairs<Parts, Order::kNatural>(load(from + p), load(from + p + 16),
                                          tile(operand, block, p / 32, Parts) + lane * 64, kTileBytes);
  }

  // sums += panel times gradient.
  void multiply(int64_t outputs, float* sums) {
    const SumLayout& layout = call_.layout;
    if constexpr (kTiles) {
      const char *panel = tile(panel_, 0, 0, PanelParts), *grad = tile(grad_, 0, 0, GradParts);
      const int64_t panel_block = steps_ * PanelParts * kTileBytes, grad_block = steps_ * GradParts * kTileBytes;
      if (by_place_)
        tile_products<GradParts, PanelParts>(steps_, grad, grad_block, outputs, panel, panel_block, depth_, sums,
                                             layout.o_step, true, true);
      else
        tile_products<PanelParts, GradParts>(steps_, panel, panel_block, depth_, grad, grad_block, outputs, sums,
                                             layout.k_step, true, false);
    } else {
      const Left left = by_place_ ? Left{panel_, 1, depth_} : Left{panel_, call_.tile.pitch, 1};
      for (int64_t s = 0; s < outputs; s += kStrip)
        for (int64_t d = 0; d < depth_; d += kRows)
          block_product_for<false>(smaller(kRows, depth_ - d), smaller(kStrip, outputs - s))(
              at_.places(), {left.a + d * left.a_row, left.a_row, left.a_step}, grad_ + s, grad_pitch_,
              sums + d * layout.k_step + s, layout.k_step, true);
    }
  }

  const WeightCall& call_;
  const bool by_place_;  // lanes are channels
  const bool by_lane_;   // each channel has one output of its own: sums are made lane by lane
  const bool dots_;      // too few outputs for lanes (and tiles): each sum is a dot product over the places
  const bool direct_;    // basis rows are the panel's rows
  const int64_t unit_, rows_;
  int64_t group_, split_, first_, channels_, lane_groups_, depth_, grad_pitch_;
  float* sums_;
  Stage stage_;
  float *panel_, *grad_, *lines_, *turned_;
  TilePlace at_;
  int64_t steps_;  // tiles of 32 places
};

}  // namespace
}  // namespace radconv::cpu
