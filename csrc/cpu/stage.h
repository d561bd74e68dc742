// A task's memory: the ring stage's buffers and its basis rows.  For tile.cpp alone.

#pragma once

#include "rings.h"

namespace radconv::cpu {
namespace {

constexpr int64_t kSlack = 8 * kLanes;  // vectors are read and written past the end of a row

// Carves a thread's scratch into parts: first asked for, then handed out.
class Carver {
 public:
  int64_t ask(int64_t floats) {
    const int64_t at = total_;
    total_ += round_up(floats + kSlack, 16);
    return at;
  }
  float* memory() const { return scratch(total_); }

 private:
  int64_t total_ = 0;
};

// What the ring stage of a task needs, and the basis rows of a pair of lane groups.
struct Stage {
  RingBuffers rings;
  int64_t* map;
  float* half[2];
  int64_t pitch;  // of a basis row
};

struct StagePlaces {
  int64_t map, turned, halo, planes, sums, buckets, half[2];
};

StagePlaces ask_stage(Carver& carver, const Call& call, int halves) {
  const TileShape& tile = call.tile;
  const int64_t rows = round_up(call.rows, call.block);
  StagePlaces at{};
  at.map = carver.ask(2 * (tile.halo[0] * tile.halo[1] + tile.halo[2]));
  const Axis* axis = call.shape.axis;
  at.turned = carver.ask(call.turned ? axis[0].in * axis[1].in * axis[2].in * tile.unit : 0);
  at.halo = carver.ask(tile.halo[0] * tile.halo[1] * tile.row_pitch);
  at.planes = carver.ask(call.add.planes * tile.halo[1] * tile.row_pitch);
  at.sums = carver.ask(call.add.sums * tile.sum_step);
  at.buckets = carver.ask(call.add.buckets * kBucketRun + 64 * kLanes);  // or a depthwise kernel's corner, up to 8 x 8
  for (int i = 0; i < halves; ++i) at.half[i] = carver.ask(rows * (tile.pitch * tile.unit + kLanes));
  return at;
}

Stage stage_at(const Call& call, const StagePlaces& at, float* memory) {
  return {{memory + at.turned, memory + at.halo, memory + at.planes, memory + at.sums, memory + at.buckets},
          reinterpret_cast<int64_t*>(memory + at.map),
          {memory + at.half[0], memory + at.half[1]},
          call.tile.pitch * call.tile.unit + kLanes};
}

}  // namespace
}  // namespace radconv::cpu
