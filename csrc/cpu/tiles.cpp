#include "tiles.h"

#include <algorithm>
#include <cmath>

#include "isa.h"

namespace radconv::cpu {
namespace {

constexpr int64_t kLargestTile = 4096;       // pixels
constexpr int64_t kSmallestTile = 96;        // pixels; below, the halo costs more than the cache saves
constexpr int64_t kCacheBytes = 768 * 1024;  // panel and output of a tile stay in a second-level cache
constexpr int64_t kRingFloats = 6 * 1024;    // rows of pair sums stay in a first-level cache,
constexpr int64_t kPlaneFloats = 12 * 1024;  // or all of a plane
constexpr int64_t kWidestTile = 96;          // columns
constexpr int64_t kLargestTurned = 1024;     // pixels of a sample
constexpr double kCopyWork = 3;              // copying a line, against adding one of pairs

// Of a tap in a halo row.
int64_t column(const Axis& axis, const TileShape& tile, int64_t tap) {
  const int64_t h = tap * axis.dilation;
  return h % axis.stride * tile.phase_pitch + h / axis.stride * tile.unit;
}

// Whether lanes are best channels although these lie apart: images so small that lines would leave most lanes empty.
bool worth_turning(const ConvShape& shape, const Strides& x) {
  const Axis* a = shape.axis;
  const int64_t lanes = kernels().lanes, pixels = a[0].in * a[1].in * a[2].in;
  return a[2].out <= lanes && pixels >= lanes && pixels <= kLargestTurned && 2 * shape.groups >= lanes &&
         x.of[4] == 1 && x.of[3] == a[2].in && (a[0].in == 1 || x.of[2] == a[1].in * a[2].in);
}

}  // namespace

std::vector<Sum> needed_sums(const ConvShape& shape, const RingModel& model) {
  const int64_t deep = shape.axis[0].kernel, high = shape.axis[1].kernel, wide = shape.axis[2].kernel;
  std::vector<Sum> sums;
  for (int64_t z = 0; z < (deep + 1) / 2; ++z)
    for (int64_t x = 0; x < (wide + 1) / 2; ++x) {
      bool needed = false;
      for (int64_t y = 0; y < high; ++y) needed |= model.bucket[static_cast<size_t>((z * high + y) * wide + x)] >= 0;
      if (needed) sums.push_back({z, x});
    }
  return sums;
}

int64_t lane_group(const Strides& x, int64_t channels) {
  const int64_t lanes = kernels().lanes;
  return x.of[1] == 1 && x.of[4] != 1 && 2 * channels >= lanes ? lanes : 1;
}

int64_t depthwise_lanes(const ConvShape& shape, const Strides& x) {
  return worth_turning(shape, x) ? kernels().lanes : lane_group(x, shape.groups);
}

int64_t tile_pixels(const ConvShape& shape, int64_t bytes_per_pixel, int64_t tasks_per_tile) {
  const int64_t by_cache = kCacheBytes / bytes_per_pixel;
  const int64_t image = shape.axis[0].out * shape.axis[1].out * shape.axis[2].out;
  const int64_t tiles = ceil_div(kTasks / 2, tasks_per_tile);
  const int64_t by_tasks = ceil_div(image * std::max<int64_t>(shape.batch, 1), tiles);
  return std::max(kSmallestTile, std::min({kLargestTile, by_cache, by_tasks}));
}

TileShape tile_shape(const ConvShape& shape, const std::vector<Sum>& sums, int64_t unit, bool even_lines,
                     int64_t pixels) {
  const Axis* a = shape.axis;
  const int64_t lanes = kernels().lanes;
  TileShape t;
  t.unit = unit;
  t.even_lines = even_lines;
  t.sum_rows = (a[1].kernel - 1) * a[1].dilation + 1;
  const bool one_line = a[0].out * a[1].out == 1;
  const int64_t kept = t.sum_rows * static_cast<int64_t>(sums.size()) * unit;
  // narrow images whole
  const int64_t narrowest = unit == 1 || a[2].out <= lanes ? lanes : 4;
  const int64_t widest = std::max(narrowest, std::min(kRingFloats / kept, kWidestTile));
  t.out[2] = balanced(a[2].out, one_line ? pixels : std::min(pixels, widest));
  if (unit == 1 && t.out[2] < a[2].out) t.out[2] = std::min(round_up(t.out[2], lanes), a[2].out);  // whole cache lines
  const int64_t lines = std::max<int64_t>(pixels / t.out[2], 1);
  // The shape that reads and adds up the fewest lines for one of outputs: halo lines are copied, and added in pairs
  // anew for each plane.
  double least = 0;
  for (int64_t high = 1; high <= std::min(lines, a[1].out); ++high) {
    const int64_t deep = std::min(lines / high, a[0].out);
    const double tall = static_cast<double>((high - 1) * a[1].stride + t.sum_rows) / static_cast<double>(high);
    const double thick = static_cast<double>((deep - 1) * a[0].stride + (a[0].kernel - 1) * a[0].dilation + 1) /
                         static_cast<double>(deep);
    const double work = tall * (kCopyWork * thick + static_cast<double>(sums.size()));
    if (high > 1 && work > least) continue;
    least = work;
    t.out[1] = high;
    t.out[0] = deep;
  }
  t.out[1] = balanced(a[1].out, t.out[1]);
  t.out[0] = balanced(a[0].out, t.out[0]);
  for (int i = 0; i < 3; ++i) {
    t.count[i] = ceil_div(a[i].out, t.out[i]);
    t.halo[i] = (t.out[i] - 1) * a[i].stride + (a[i].kernel - 1) * a[i].dilation + 1;
  }
  t.phase_pitch = ceil_div(t.halo[2], a[2].stride) * unit;
  t.row_pitch = t.phase_pitch * a[2].stride;
  const int64_t arrays = static_cast<int64_t>(sums.size());
  t.all_sums = unit == 1 && a[1].stride == 1 && arrays * t.halo[1] * t.out[2] <= kPlaneFloats;
  if (t.all_sums) t.sum_rows = t.halo[1];
  t.sum_pitch = t.all_sums ? t.out[2] : round_up(t.out[2] * unit, lanes);
  t.sum_step = round_up(t.sum_rows * t.sum_pitch, lanes) + lanes;
  const int64_t line = even_lines ? round_up(t.out[2], 2) : t.out[2];
  // an odd number of cache lines, so that neighbouring rows don't compete for the same place in the cache
  const int64_t places = t.out[0] * t.out[1] * line;
  const bool whole = t.count[0] * t.count[1] * t.count[2] == 1;
  t.images = whole ? std::max<int64_t>(1, balanced(std::max<int64_t>(shape.batch, 1), pixels / places)) : 1;
  t.pitch = round_up(t.images * places, kWholeStrips) + 16;
  return t;
}

Program::Program(const ConvShape& shape, const RingModel& model, const std::vector<Sum>& sums, const TileShape& tile) {
  const Axis* a = shape.axis;
  const int64_t deep = a[0].kernel, tall = a[1].kernel, wide = a[2].kernel;
  for (int64_t z = 0; z < deep / 2; ++z) {
    plane_low.push_back(z * a[0].dilation);
    plane_high.push_back((deep - 1 - z) * a[0].dilation);
  }
  centre = deep / 2 * a[0].dilation;
  for (const Sum& sum : sums) {
    const bool paired = sum.plane < deep / 2;
    const int64_t plane = paired ? sum.plane * tile.halo[1] * tile.row_pitch : 0;
    plane_sums += paired;
    low.push_back(plane + column(a[2], tile, sum.column));
    high.push_back(plane + column(a[2], tile, wide - 1 - sum.column));
  }
  for (int64_t phase = 0; phase < (tile.all_sums ? 1 : tile.sum_rows); ++phase)
    for (int bucket = 0; bucket < model.buckets; ++bucket) {
      for (size_t s = 0; s < sums.size(); ++s)
        for (int64_t y = 0; y < tall; ++y) {
          const int64_t tap = (sums[s].plane * tall + y) * wide + sums[s].column;
          if (model.bucket[static_cast<size_t>(tap)] != bucket) continue;
          const int64_t place = (phase + y * a[1].dilation) % tile.sum_rows;
          row.push_back(static_cast<int64_t>(s) * tile.sum_step + place * tile.sum_pitch);
        }
      if (phase == 0) begin.push_back(static_cast<int64_t>(row.size()));
    }
}

AddProgram Program::view() const {
  return {static_cast<int>(plane_low.size()),
          plane_low.data(),
          plane_high.data(),
          centre,
          plane_sums,
          low.data(),
          high.data(),
          static_cast<int64_t>(low.size()),
          static_cast<int>(begin.size()) - 1,
          begin.data(),
          row.data()};
}

}  // namespace radconv::cpu
