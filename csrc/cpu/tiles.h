// From a problem to tiles and to the program of additions.

#pragma once

#include <vector>

#include "tile.h"

namespace radconv::cpu {

constexpr int64_t kTasks = 16;  // wanted, so that a few threads finish together

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Parts of at most `largest`, all but the last of one size: the least that takes no more parts.
inline int64_t balanced(int64_t size, int64_t largest) {
  return ceil_div(size, ceil_div(size, largest < 1 ? 1 : largest));
}

// A sum that lines of outputs are made of: a mirrored pair of planes and of columns, or the centre ones.
struct Sum {
  int64_t plane, column;  // of the first tap; its mirror image is as far from the other end
};

// Those that any tap needs, paired planes first.
std::vector<Sum> needed_sums(const ConvShape& shape, const RingModel& model);

// Channels of a lane group where `channels` of them are worked on alike: as many as a vector has lanes where they lie
// together, otherwise 1.
int64_t lane_group(const Strides& x, int64_t channels);

// The same of a depthwise convolution, whose samples may be transposed where lines would leave most lanes empty.
int64_t depthwise_lanes(const ConvShape& shape, const Strides& x);

// The pixels of one tile, so that what belongs to it fits the cache and a small problem still has tasks to share.
int64_t tile_pixels(const ConvShape& shape, int64_t bytes_per_pixel, int64_t tasks_per_tile);

// `pixels` is the most that a tile may have.
TileShape tile_shape(const ConvShape& shape, const std::vector<Sum>& sums, int64_t unit, bool even_lines,
                     int64_t pixels);

// Everything that an AddProgram points to.
struct Program {
  std::vector<int64_t> plane_low, plane_high, low, high, begin{0}, row;
  int64_t centre = 0, plane_sums = 0;

  Program(const ConvShape& shape, const RingModel& model, const std::vector<Sum>& sums, const TileShape& tile);
  AddProgram view() const;
};

}  // namespace radconv::cpu
